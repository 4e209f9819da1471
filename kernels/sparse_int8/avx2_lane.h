// Eight rows for AVX2. Included in an anonymous namespace after base/lane_avx2.h and base/transpose_eight.h by files
// that add Bytes, Weight, weight(at) and dot(sum, bytes, weight), which differ between AVX2 and AVX-VNNI.

struct LaneBase {
  using Int = __m256i;
  using Vec = __m256;
  static constexpr unsigned lanes = 8;
  static constexpr unsigned char flip = 0;

  static Int set1(int32_t a) { return _mm256_set1_epi32(a); }
  static Int load(const int32_t* at) { return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(at)); }
  static void store(int32_t* at, Int a) { _mm256_storeu_si256(reinterpret_cast<__m256i*>(at), a); }
  static Int load_words(const unsigned char* at) { return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(at)); }
  static Int add(Int a, Int b) { return _mm256_add_epi32(a, b); }
  static Vec to_float(Int a) { return _mm256_cvtepi32_ps(a); }
  static Int to_int(Vec a) { return _mm256_cvtps_epi32(a); }
  static Vec at_least(Vec a, Vec low) { return _mm256_max_ps(a, low); }
  static void put_bytes(unsigned char* at, Int a, unsigned count) {
    const Int order = _mm256_setr_epi8(0, 4, 8, 12, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1,  //
                                       0, 4, 8, 12, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1);
    const Int fours = _mm256_shuffle_epi8(a, order);
    const __m128i eight = _mm_unpacklo_epi32(_mm256_castsi256_si128(fours), _mm256_extracti128_si256(fours, 1));
    if (count == lanes) return _mm_storel_epi64(reinterpret_cast<__m128i*>(at), eight);
    unsigned char bytes[16];
    _mm_storeu_si128(reinterpret_cast<__m128i*>(bytes), eight);
    for (unsigned i = 0; i < count; ++i) at[i] = bytes[i];
  }
  static void put_four(unsigned char* at, Int a, Int b, Int c, Int d) {
    put_bytes(at, a, lanes);
    put_bytes(at + lanes, b, lanes);
    put_bytes(at + 2 * lanes, c, lanes);
    put_bytes(at + 3 * lanes, d, lanes);
  }
  static void turn(const unsigned char* from, size_t stride, unsigned char* to, size_t pitch) {
    transpose_eight(from, stride, 8, [&](unsigned c, __m256 v) {
      _mm256_storeu_ps(reinterpret_cast<float*>(to + c * pitch), v);
    });
  }

  static void interleave(const unsigned char* const (&rows)[4], unsigned width, unsigned char* p) {
    for (unsigned i = 0; i < width; i += 8) {
      const auto eight = [&](unsigned j) { return _mm_loadl_epi64(reinterpret_cast<const __m128i*>(rows[j] + i)); };
      const __m128i even = _mm_unpacklo_epi8(eight(0), eight(1)), odd = _mm_unpacklo_epi8(eight(2), eight(3));
      _mm_storeu_si128(reinterpret_cast<__m128i*>(p + 4 * i), _mm_unpacklo_epi16(even, odd));
      _mm_storeu_si128(reinterpret_cast<__m128i*>(p + 4 * i + 16), _mm_unpackhi_epi16(even, odd));
    }
  }

  template <class Rounding>
  static void quantize(const float* x, size_t count, const Rounding& q, unsigned char* out) {
    const Vec scale = _mm256_set1_ps(q.scale), inverse = _mm256_set1_ps(q.inverse);
    const Vec low = _mm256_set1_ps(q.low), high = _mm256_set1_ps(q.high), sure = _mm256_set1_ps(q.sure);
    const Vec sign = _mm256_set1_ps(-0.0f);
    const Int zero_point = _mm256_set1_epi32(q.zero_point);
    for (size_t i = 0; i < count; i += 8) {
      const unsigned wide = count - i < 8 ? static_cast<unsigned>(count - i) : 8;
      alignas(32) float edge[8] = {};
      if (wide < 8) {
        for (unsigned c = 0; c < wide; ++c) edge[c] = x[i + c];
      }
      const Vec value = wide < 8 ? _mm256_load_ps(edge) : _mm256_loadu_ps(x + i);
      Vec v = _mm256_min_ps(high, _mm256_mul_ps(value, inverse));  // NaN passes
      const Vec whole = _mm256_round_ps(v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
      const Vec off = _mm256_andnot_ps(sign, _mm256_sub_ps(v, whole));
      if (__builtin_expect(_mm256_movemask_ps(_mm256_cmp_ps(off, sure, _CMP_NLT_UQ)), 0))
        v = _mm256_min_ps(high, _mm256_div_ps(value, scale));
      v = _mm256_max_ps(v, low);  // low where v is NaN
      put_bytes(out + i, _mm256_add_epi32(_mm256_cvtps_epi32(v), zero_point), wide);
    }
  }

  static void range(const float* x, size_t count, float* low, float* high) {
    Vec least = _mm256_set1_ps(*low), most = _mm256_set1_ps(*high);
    size_t at = 0;
    // The second operand is returned where either is NaN.
    for (; at + 8 <= count; at += 8) {
      const Vec v = _mm256_loadu_ps(x + at);
      least = _mm256_min_ps(v, least);
      most = _mm256_max_ps(v, most);
    }
    alignas(32) float a[8], b[8];
    _mm256_store_ps(a, least);
    _mm256_store_ps(b, most);
    for (unsigned i = 0; i < 8; ++i) {
      if (a[i] < *low) *low = a[i];
      if (b[i] > *high) *high = b[i];
    }
    for (; at < count; ++at) {
      if (x[at] < *low) *low = x[at];
      if (x[at] > *high) *high = x[at];
    }
  }
};
