// Four floats for NEON on arm64. Included inside an anonymous namespace, after <arm_neon.h>.

struct FloatLane {
  using Vec = float32x4_t;
  static constexpr unsigned lanes = 4;

  static Vec zero() { return vdupq_n_f32(0.0f); }
  static Vec set1(float a) { return vdupq_n_f32(a); }
  static Vec load(const float* at) { return vld1q_f32(at); }
  static void store(float* at, Vec a) { vst1q_f32(at, a); }
  static Vec fma(Vec a, Vec b, Vec c) { return vfmaq_f32(c, a, b); }
  static Vec add(Vec a, Vec b) { return vaddq_f32(a, b); }
  static Vec mul(Vec a, Vec b) { return vmulq_f32(a, b); }
  static Vec div(Vec a, Vec b) { return vdivq_f32(a, b); }
  // FMAX and FMIN give NaN where either operand is NaN.
  static Vec at_least(Vec a, Vec low) { return vmaxq_f32(a, low); }
  static Vec at_most(Vec a, Vec high) { return vminq_f32(a, high); }
  static Vec abs(Vec a) { return vabsq_f32(a); }
  static Vec round(Vec a) { return vrndnq_f32(a); }
  static Vec exp2(Vec n) {
    return vreinterpretq_f32_s32(vshlq_n_s32(vaddq_s32(vcvtnq_s32_f32(n), vdupq_n_s32(127)), 23));
  }
  static Vec where_greater(Vec a, Vec bound, Vec value) {
    return vreinterpretq_f32_u32(vandq_u32(vcgtq_f32(a, bound), vreinterpretq_u32_f32(value)));
  }
  static Vec where_negative(Vec a, Vec negative, Vec other) { return vbslq_f32(vcltzq_f32(a), negative, other); }
};
