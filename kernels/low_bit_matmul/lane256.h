// What the 256-bit implementations have alike. Included inside an anonymous namespace, after base/lane_avx2.h.

struct Lane256 {
  static constexpr unsigned lanes = 8;
  using Bytes = __m256i;
  using Ints = __m256i;

  static Bytes load_bytes(const unsigned char* at) { return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(at)); }
  static void store_bytes(unsigned char* at, Bytes a) { _mm256_storeu_si256(reinterpret_cast<__m256i*>(at), a); }
  static FloatLane::Vec load_floats(const unsigned char* at) { return _mm256_castsi256_ps(load_bytes(at)); }
  static Ints set_ints(int a) { return _mm256_set1_epi32(a); }
  static void store_ints(int* at, Ints a) { _mm256_storeu_si256(reinterpret_cast<__m256i*>(at), a); }
  static Ints add_ints(Ints a, Ints b) { return _mm256_add_epi32(a, b); }
  static Ints mul_ints(Ints a, Ints b) { return _mm256_mullo_epi32(a, b); }
  static Ints as_ints(Bytes a) { return a; }
  static FloatLane::Vec to_float(Ints a) { return _mm256_cvtepi32_ps(a); }
  static Ints widen(const unsigned char* at) {
    return _mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(at)));
  }
  template <unsigned i>
  static Ints byte(Ints a) {
    return _mm256_and_si256(_mm256_srli_epi32(a, 8 * i), _mm256_set1_epi32(255));
  }

  template <unsigned bits, unsigned from, unsigned to>
  static Bytes moved_field(Bytes a) {
    if constexpr (from > to) a = _mm256_srli_epi16(a, from - to);
    if constexpr (from < to) a = _mm256_slli_epi16(a, to - from);
    return _mm256_and_si256(a, _mm256_set1_epi8(static_cast<char>(((1 << bits) - 1) << to)));
  }
  template <unsigned by>
  static Ints shift_down(Ints a) {
    return _mm256_srai_epi32(a, by);
  }
  static Bytes either(Bytes a, Bytes b) { return _mm256_or_si256(a, b); }
  static Bytes repeat(const unsigned char* sixteen) {
    return _mm256_broadcastsi128_si256(_mm_load_si128(reinterpret_cast<const __m128i*>(sixteen)));
  }
  static Bytes lookup(Bytes book, Bytes codes) { return _mm256_shuffle_epi8(book, codes); }
  template <unsigned rows>
  static Bytes broadcast(const signed char* at) {
    int four;
    __builtin_memcpy(&four, at, 4);
    return _mm256_set1_epi32(four);
  }

  static Ints magnitude(Ints largest, const float* x) {
    const Ints bits = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(x));
    return _mm256_max_epi32(largest, _mm256_and_si256(bits, _mm256_set1_epi32(0x7fffffff)));
  }
  static int highest(Ints a) {
    __m128i m = _mm_max_epi32(_mm256_castsi256_si128(a), _mm256_extracti128_si256(a, 1));
    m = _mm_max_epi32(m, _mm_shuffle_epi32(m, 0x4e));
    return _mm_cvtsi128_si32(_mm_max_epi32(m, _mm_shuffle_epi32(m, 0xb1)));
  }
  static int total(Ints a) {
    __m128i m = _mm_add_epi32(_mm256_castsi256_si128(a), _mm256_extracti128_si256(a, 1));
    m = _mm_add_epi32(m, _mm_shuffle_epi32(m, 0x4e));
    return _mm_cvtsi128_si32(_mm_add_epi32(m, _mm_shuffle_epi32(m, 0xb1)));
  }
  static Ints round(FloatLane::Vec a) { return _mm256_cvtps_epi32(a); }
  static void store_low(signed char* at, Ints a) {
    const __m128i words = _mm_packs_epi32(_mm256_castsi256_si128(a), _mm256_extracti128_si256(a, 1));
    _mm_storel_epi64(reinterpret_cast<__m128i*>(at), _mm_packs_epi16(words, words));
  }
  // Assembly: GCC 12 takes a function that only prefetches for one without effect and drops its calls.
  static void prefetch(const unsigned char* at) { __asm__ volatile("prefetcht0 (%0)" : : "r"(at)); }
};
