// LowBitMatMul for AVX2 with AVX-VNNI: vpdpbusd in 256-bit vectors.
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
  static constexpr bool raises = true;
  static constexpr unsigned vectors(unsigned rows) { return rows == 1 ? 8 : rows == 2 ? 4 : 2; }

  struct Part {};
  template <bool wide>
  static void dot(Part&, Ints& sum, Bytes codes, Bytes x) {
    sum = _mm256_dpbusd_avx_epi32(sum, codes, x);
  }
  static void fold(Part&, Ints&) {}
  template <bool wide>
  static constexpr int bias = 0;
};

#include "low_bit_matmul/tile.h"

}  // namespace

const Kernels& avxvnni_kernels() {
  static constexpr Kernels kernels = {Lane::max_rows, Lane::max_float_rows, 0, round, panels, panel_float};
  return kernels;
}

}  // namespace graphopt::low_bit_matmul
