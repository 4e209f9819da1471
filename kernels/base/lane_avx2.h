// Eight floats for AVX2 and FMA. Included inside an anonymous namespace, after <immintrin.h>.

struct FloatLane {
  using Vec = __m256;
  static constexpr unsigned lanes = 8;

  static Vec zero() { return _mm256_setzero_ps(); }
  static Vec set1(float a) { return _mm256_set1_ps(a); }
  static Vec load(const float* at) { return _mm256_loadu_ps(at); }
  static void store(float* at, Vec a) { _mm256_storeu_ps(at, a); }
  static Vec fma(Vec a, Vec b, Vec c) { return _mm256_fmadd_ps(a, b, c); }
  static Vec add(Vec a, Vec b) { return _mm256_add_ps(a, b); }
  static Vec mul(Vec a, Vec b) { return _mm256_mul_ps(a, b); }
  static Vec div(Vec a, Vec b) { return _mm256_div_ps(a, b); }
  // The second operand is returned if either is NaN: NaN passes.
  static Vec at_least(Vec a, Vec low) { return _mm256_max_ps(low, a); }
  static Vec at_most(Vec a, Vec high) { return _mm256_min_ps(high, a); }
  static Vec abs(Vec a) { return _mm256_andnot_ps(_mm256_set1_ps(-0.0f), a); }
  static Vec round(Vec a) { return _mm256_round_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
  static Vec exp2(Vec n) {
    const __m256i exponent = _mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127));
    return _mm256_castsi256_ps(_mm256_slli_epi32(exponent, 23));
  }
  static Vec where_greater(Vec a, Vec bound, Vec value) {
    return _mm256_and_ps(_mm256_cmp_ps(a, bound, _CMP_GT_OQ), value);
  }
  static Vec where_negative(Vec a, Vec negative, Vec other) { return _mm256_blendv_ps(other, negative, a); }
};
