// The sparse int8 operators for AVX2.
#include <immintrin.h>

#include "sparse_int8/contract.h"

namespace graphopt::sparse_int8 {
namespace {

#include "base/activation_lane.h"
#include "base/lane_avx2.h"
#include "base/transpose_eight.h"
#include "sparse_int8/avx2_lane.h"

// Without instructions for four products of bytes: those of 16-bit numbers, for even and odd k. The product of bytes
// that AVX2 has would saturate.
struct Lane : LaneBase {
  static constexpr unsigned most[2] = {3, 1};
  struct Bytes {
    __m256i even, odd;
  };
  struct Weight {
    __m256i even, odd;
  };
  static Bytes bytes(const unsigned char* at) {
    const __m256i x = load_words(at);
    return {_mm256_and_si256(x, _mm256_set1_epi16(0xff)), _mm256_srli_epi16(x, 8)};
  }
  static Weight weight(const unsigned char* at) {
    int32_t four;
    __builtin_memcpy(&four, at, sizeof four);
    const __m256i w = _mm256_set1_epi32(four);
    return {_mm256_srai_epi16(_mm256_slli_epi16(w, 8), 8), _mm256_srai_epi16(w, 8)};
  }
  static Int dot(Int sum, Bytes x, Weight w) {
    const __m256i products = _mm256_add_epi32(_mm256_madd_epi16(x.even, w.even), _mm256_madd_epi16(x.odd, w.odd));
    return _mm256_add_epi32(sum, products);
  }
};

#include "base/ahead.h"
#include "base/common.h"

#include "sparse_int8/tile.h"
#include "sparse_int8/finish.h"
#include "sparse_int8/planes.h"

}  // namespace

const Kernels& avx2_kernels() {
  static constexpr Kernels kernels = {
      "avx2", Lane::lanes, {Lane::most[0], Lane::most[1]}, Lane::range, pack_rows, panel, finish_rows, fill_plane,
      pack_positions, finish_planes, Lane::flip == 0};
  return kernels;
}

}  // namespace graphopt::sparse_int8
