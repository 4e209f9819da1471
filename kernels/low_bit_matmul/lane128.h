// What the NEON implementations have alike. Included inside an anonymous namespace, after base/lane_neon.h.

struct Lane128 {
  static constexpr unsigned lanes = 4;
  using Bytes = uint8x16_t;
  using Ints = int32x4_t;

  static Bytes load_bytes(const unsigned char* at) { return vld1q_u8(at); }
  static void store_bytes(unsigned char* at, Bytes a) { vst1q_u8(at, a); }
  static FloatLane::Vec load_floats(const unsigned char* at) { return vreinterpretq_f32_u8(vld1q_u8(at)); }
  static Ints set_ints(int a) { return vdupq_n_s32(a); }
  static void store_ints(int* at, Ints a) { vst1q_s32(at, a); }
  static Ints add_ints(Ints a, Ints b) { return vaddq_s32(a, b); }
  static Ints mul_ints(Ints a, Ints b) { return vmulq_s32(a, b); }
  static Ints as_ints(Bytes a) { return vreinterpretq_s32_u8(a); }
  static FloatLane::Vec to_float(Ints a) { return vcvtq_f32_s32(a); }
  static Ints widen(const unsigned char* at) {
    unsigned four;
    __builtin_memcpy(&four, at, 4);
    const uint16x8_t words = vmovl_u8(vcreate_u8(four));
    return vreinterpretq_s32_u32(vmovl_u16(vget_low_u16(words)));
  }
  template <unsigned i>
  static Ints byte(Ints a) {
    if constexpr (i == 0) return vandq_s32(a, vdupq_n_s32(255));
    if constexpr (i != 0) {
      const uint32x4_t moved = vshrq_n_u32(vreinterpretq_u32_s32(a), 8 * i);
      return vreinterpretq_s32_u32(vandq_u32(moved, vdupq_n_u32(255)));
    }
  }

  template <unsigned bits, unsigned from, unsigned to>
  static Bytes moved_field(Bytes a) {
    if constexpr (from > to) a = vshrq_n_u8(a, from - to);
    if constexpr (from < to) a = vshlq_n_u8(a, to - from);
    return vandq_u8(a, vdupq_n_u8(((1 << bits) - 1) << to));
  }
  template <unsigned by>
  static Ints shift_down(Ints a) {
    static_assert(by == 0);
    return a;
  }
  static Bytes either(Bytes a, Bytes b) { return vorrq_u8(a, b); }
  static Bytes repeat(const unsigned char* sixteen) { return vld1q_u8(sixteen); }
  static Bytes lookup(Bytes book, Bytes codes) { return vqtbl1q_u8(book, codes); }
  template <unsigned rows>
  static Bytes broadcast(const signed char* at) {
    int four;
    __builtin_memcpy(&four, at, 4);
    return vreinterpretq_u8_s32(vdupq_n_s32(four));
  }
  // Products are signed here: wide codes are moved to -128..127.
  template <bool wide>
  static int8x16_t as_signed(Bytes codes) {
    return vreinterpretq_s8_u8(wide ? veorq_u8(codes, vdupq_n_u8(128)) : codes);
  }
  template <bool wide>
  static constexpr int bias = wide ? 128 : 0;

  static Ints magnitude(Ints largest, const float* x) {
    return vmaxq_s32(largest, vreinterpretq_s32_f32(vabsq_f32(vld1q_f32(x))));
  }
  static int highest(Ints a) { return vmaxvq_s32(a); }
  static int total(Ints a) { return vaddvq_s32(a); }
  static Ints round(FloatLane::Vec a) { return vcvtnq_s32_f32(a); }
  static void store_low(signed char* at, Ints a) {
    const int16x4_t words = vmovn_s32(a);
    const int8x8_t bytes = vmovn_s16(vcombine_s16(words, words));
    __builtin_memcpy(at, &bytes, 4);
  }
  // Assembly: GCC 12 takes a function that only prefetches for one without effect and drops its calls.
  static void prefetch(const unsigned char* at) { __asm__ volatile("prfm pldl1keep, [%0]" : : "r"(at)); }
};
