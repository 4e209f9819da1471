// Four floats for the strips of four on processors with FMA. Included inside an anonymous namespace, after
// <immintrin.h>.

struct Four {
  using Vec = __m128;
  static constexpr unsigned lanes = 4;

  static Vec zero() { return _mm_setzero_ps(); }
  static Vec set1(float a) { return _mm_set1_ps(a); }
  static Vec load(const float* at) { return _mm_loadu_ps(at); }
  static void store(float* at, Vec a) { _mm_storeu_ps(at, a); }
  static Vec fma(Vec a, Vec b, Vec c) { return _mm_fmadd_ps(a, b, c); }
  static Vec add(Vec a, Vec b) { return _mm_add_ps(a, b); }
  // The second operand is returned if either is NaN: NaN passes.
  static Vec at_least(Vec a, Vec low) { return _mm_max_ps(low, a); }
  static Vec at_most(Vec a, Vec high) { return _mm_min_ps(high, a); }
};
