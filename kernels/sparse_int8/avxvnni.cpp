// The sparse int8 operators for AVX2 with AVX-VNNI.
#include <immintrin.h>

#include "sparse_int8/contract.h"

namespace graphopt::sparse_int8 {
namespace {

#include "base/activation_lane.h"
#include "base/lane_avx2.h"
#include "base/transpose_eight.h"
#include "sparse_int8/avx2_lane.h"

struct Lane : LaneBase {
  static constexpr unsigned most[2] = {4, 2};
  using Bytes = __m256i;
  using Weight = __m256i;
  static Bytes bytes(const unsigned char* at) { return load_words(at); }
  static Weight weight(const unsigned char* at) {
    int32_t four;
    __builtin_memcpy(&four, at, sizeof four);
    return _mm256_set1_epi32(four);
  }
  static Int dot(Int sum, Bytes x, Weight w) { return _mm256_dpbusd_avx_epi32(sum, x, w); }
};

#include "base/ahead.h"
#include "base/common.h"

#include "sparse_int8/tile.h"
#include "sparse_int8/finish.h"
#include "sparse_int8/planes.h"

}  // namespace

const Kernels& avxvnni_kernels() {
  static constexpr Kernels kernels = {
      "avxvnni", Lane::lanes, {Lane::most[0], Lane::most[1]}, Lane::range, pack_rows, panel, finish_rows, fill_plane,
      pack_positions, finish_planes, Lane::flip == 0};
  return kernels;
}

}  // namespace graphopt::sparse_int8
