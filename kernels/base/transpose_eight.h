// 8 x 8 words of 32 bits turned with AVX2. Included inside an anonymous namespace after <immintrin.h>.

// Column i of the first `rows` rows at `src`, `stride` bytes apart, goes to sink(i, column), with zeros for the rows that
// are missing. Fours of two rows are loaded side by side, so that the rest happens within 128 bits: half the shuffles of
// turning whole vectors, and two of them go in a clock where one of 512 bits does.
template <class Sink>
__attribute__((always_inline)) inline void transpose_eight(const void* src, size_t stride, unsigned rows, Sink sink) {
  const unsigned char* at = static_cast<const unsigned char*>(src);
#pragma GCC unroll 2
  for (unsigned c = 0; c < 8; c += 4) {
    const auto four = [&](unsigned r) __attribute__((always_inline)) {
      return r < rows ? _mm_loadu_ps(reinterpret_cast<const float*>(at + r * stride) + c) : _mm_setzero_ps();
    };
    __m256 r[4];
#pragma GCC unroll 4
    for (unsigned i = 0; i < 4; ++i) r[i] = _mm256_insertf128_ps(_mm256_castps128_ps256(four(i)), four(i + 4), 1);
    const __m256 low = _mm256_unpacklo_ps(r[0], r[1]), high = _mm256_unpackhi_ps(r[0], r[1]);
    const __m256 low2 = _mm256_unpacklo_ps(r[2], r[3]), high2 = _mm256_unpackhi_ps(r[2], r[3]);
    sink(c, _mm256_shuffle_ps(low, low2, 0x44));
    sink(c + 1, _mm256_shuffle_ps(low, low2, 0xee));
    sink(c + 2, _mm256_shuffle_ps(high, high2, 0x44));
    sink(c + 3, _mm256_shuffle_ps(high, high2, 0xee));
  }
}
