// Four rows for NEON on arm64. Included in an anonymous namespace after base/lane_neon.h by files that add Weight,
// weight(at) and dot(sum, bytes, weight). Bytes of x are stored less 128, as signed numbers.

struct LaneBase {
  using Int = int32x4_t;
  using Bytes = int8x16_t;
  using Vec = float32x4_t;
  static constexpr unsigned lanes = 4;
  static constexpr unsigned most[2] = {4, 4};
  static constexpr unsigned char flip = 0x80;

  static Int set1(int32_t a) { return vdupq_n_s32(a); }
  static Int load(const int32_t* at) { return vld1q_s32(at); }
  static void store(int32_t* at, Int a) { vst1q_s32(at, a); }
  static Int load_words(const unsigned char* at) { return vreinterpretq_s32_u8(vld1q_u8(at)); }
  static void store_words(unsigned char* at, Int a) { vst1q_u8(at, vreinterpretq_u8_s32(a)); }
  static Bytes bytes(const unsigned char* at) { return vreinterpretq_s8_u8(vld1q_u8(at)); }
  static Bytes weight(const unsigned char* at) {
    int32_t four;
    __builtin_memcpy(&four, at, sizeof four);
    return vreinterpretq_s8_s32(vdupq_n_s32(four));
  }
  static Int add(Int a, Int b) { return vaddq_s32(a, b); }
  static Vec to_float(Int a) { return vcvtq_f32_s32(a); }
  static Int to_int(Vec a) { return vcvtnq_s32_f32(a); }
  static Vec at_least(Vec a, Vec low) { return vmaxnmq_f32(a, low); }
  static void put_bytes(unsigned char* at, Int a, unsigned count) {
    const uint16x4_t halves = vmovn_u32(vreinterpretq_u32_s32(a));
    unsigned char bytes[8];
    vst1_u8(bytes, vmovn_u16(vcombine_u16(halves, halves)));
    if (count == lanes) {
      __builtin_memcpy(at, bytes, 4);
    } else {
      for (unsigned i = 0; i < count; ++i) at[i] = bytes[i];
    }
  }
  static void put_four(unsigned char* at, Int a, Int b, Int c, Int d) {
    put_bytes(at, a, lanes);
    put_bytes(at + lanes, b, lanes);
    put_bytes(at + 2 * lanes, c, lanes);
    put_bytes(at + 3 * lanes, d, lanes);
  }
  static void turn(const unsigned char* from, size_t stride, unsigned char* to, size_t pitch) {
    const Int r[4] = {load_words(from), load_words(from + stride), load_words(from + 2 * stride), load_words(from + 3 * stride)};
    const Int a = vzip1q_s32(r[0], r[2]), b = vzip2q_s32(r[0], r[2]);
    const Int c = vzip1q_s32(r[1], r[3]), d = vzip2q_s32(r[1], r[3]);
    store_words(to, vzip1q_s32(a, c));
    store_words(to + pitch, vzip2q_s32(a, c));
    store_words(to + 2 * pitch, vzip1q_s32(b, d));
    store_words(to + 3 * pitch, vzip2q_s32(b, d));
  }

  static void interleave(const unsigned char* const (&rows)[4], unsigned width, unsigned char* p) {
    unsigned i = 0;
    for (; i + 16 <= width; i += 16) {
      const uint8x16x4_t fours = {{vld1q_u8(rows[0] + i), vld1q_u8(rows[1] + i), vld1q_u8(rows[2] + i), vld1q_u8(rows[3] + i)}};
      vst4q_u8(p + 4 * i, fours);
    }
    for (; i < width; ++i) {
      for (unsigned j = 0; j < 4; ++j) p[4 * i + j] = rows[j][i];
    }
  }

  template <class Rounding>
  static void quantize(const float* x, size_t count, const Rounding& q, unsigned char* out) {
    const Vec scale = vdupq_n_f32(q.scale), low = vdupq_n_f32(q.low), high = vdupq_n_f32(q.high);
    const Int zero_point = vdupq_n_s32(q.zero_point);
    for (size_t i = 0; i < count; i += 4) {
      const unsigned wide = count - i < 4 ? static_cast<unsigned>(count - i) : 4;
      float edge[4] = {};
      if (wide < 4) {
        for (unsigned c = 0; c < wide; ++c) edge[c] = x[i + c];
      }
      const Vec value = wide < 4 ? vld1q_f32(edge) : vld1q_f32(x + i);
      const Vec v = vminq_f32(vmaxnmq_f32(vdivq_f32(value, scale), low), high);
      put_bytes(out + i, veorq_s32(vaddq_s32(vcvtnq_s32_f32(v), zero_point), vdupq_n_s32(flip)), wide);
    }
  }

  static void range(const float* x, size_t count, float* low, float* high) {
    Vec least = vdupq_n_f32(*low), most_of = vdupq_n_f32(*high);
    size_t at = 0;
    for (; at + 4 <= count; at += 4) {
      const Vec v = vld1q_f32(x + at);
      least = vminnmq_f32(v, least);
      most_of = vmaxnmq_f32(v, most_of);
    }
    *low = vminnmvq_f32(least);
    *high = vmaxnmvq_f32(most_of);
    for (; at < count; ++at) {
      if (x[at] < *low) *low = x[at];
      if (x[at] > *high) *high = x[at];
    }
  }
};
