// LowBitMatMul for AVX2 with FMA: vpmaddubsw, whose 16-bit sums hold a chunk of codes up to 15 without saturating.
#include <immintrin.h>

#include "low_bit_matmul/contract.h"

namespace graphopt::low_bit_matmul {
namespace {

#include "base/lane_avx2.h"
#include "base/activation_lane.h"
#include "low_bit_matmul/lane256.h"

struct Lane : Lane256 {
  static constexpr unsigned max_rows = 4;
  static constexpr unsigned max_float_rows = 16;
  static constexpr bool raises = false;
  static constexpr unsigned vectors(unsigned rows) { return rows <= 2 ? 4 : 2; }

  struct Part {
    __m256i words = _mm256_setzero_si256();
  };
  // Eight groups of 2 * 15 * 127 stay below 2^15; wide codes go in two halves, each to 32 bits at once.
  template <bool wide>
  static void dot(Part& part, Ints& sum, Bytes codes, Bytes x) {
    if constexpr (!wide) {
      part.words = _mm256_add_epi16(part.words, _mm256_maddubs_epi16(codes, x));
    } else {
      const __m256i low = _mm256_maddubs_epi16(moved_field<4, 0, 0>(codes), x);
      const __m256i high = _mm256_maddubs_epi16(moved_field<4, 4, 0>(codes), x);
      sum = _mm256_add_epi32(sum, _mm256_madd_epi16(low, _mm256_set1_epi16(1)));
      sum = _mm256_add_epi32(sum, _mm256_madd_epi16(high, _mm256_set1_epi16(16)));
    }
  }
  static void fold(Part& part, Ints& sum) {
    sum = _mm256_add_epi32(sum, _mm256_madd_epi16(part.words, _mm256_set1_epi16(1)));
  }
  template <bool wide>
  static constexpr int bias = 0;
};

#include "low_bit_matmul/tile.h"

}  // namespace

const Kernels& avx2_kernels() {
  static constexpr Kernels kernels = {Lane::max_rows, Lane::max_float_rows, 0, round, panels, panel_float};
  return kernels;
}

}  // namespace graphopt::low_bit_matmul
