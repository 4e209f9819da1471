// Sixteen floats for AVX-512 (F, DQ). Included inside an anonymous namespace, after <immintrin.h>.

struct FloatLane {
  using Vec = __m512;
  static constexpr unsigned lanes = 16;

  static Vec zero() { return _mm512_setzero_ps(); }
  static Vec set1(float a) { return _mm512_set1_ps(a); }
  static Vec load(const float* at) { return _mm512_loadu_ps(at); }
  static void store(float* at, Vec a) { _mm512_storeu_ps(at, a); }
  static Vec fma(Vec a, Vec b, Vec c) { return _mm512_fmadd_ps(a, b, c); }
  static Vec add(Vec a, Vec b) { return _mm512_add_ps(a, b); }
  static Vec mul(Vec a, Vec b) { return _mm512_mul_ps(a, b); }
  static Vec div(Vec a, Vec b) { return _mm512_div_ps(a, b); }
  // The second operand is returned if either is NaN: NaN passes.
  static Vec at_least(Vec a, Vec low) { return _mm512_max_ps(low, a); }
  static Vec at_most(Vec a, Vec high) { return _mm512_min_ps(high, a); }
  static Vec abs(Vec a) { return _mm512_abs_ps(a); }
  static Vec round(Vec a) { return _mm512_roundscale_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
  static Vec exp2(Vec n) { return _mm512_scalef_ps(_mm512_set1_ps(1.0f), n); }
  static Vec where_greater(Vec a, Vec bound, Vec value) {
    return _mm512_maskz_mov_ps(_mm512_cmp_ps_mask(a, bound, _CMP_GT_OQ), value);
  }
  static Vec where_negative(Vec a, Vec negative, Vec other) {
    return _mm512_mask_mov_ps(other, _mm512_movepi32_mask(_mm512_castps_si512(a)), negative);
  }
};
