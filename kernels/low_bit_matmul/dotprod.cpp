// LowBitMatMul for NEON with the dot products of Armv8.2.
#include <arm_neon.h>

#include "low_bit_matmul/contract.h"

namespace graphopt::low_bit_matmul {
namespace {

#include "base/lane_neon.h"
#include "base/activation_lane.h"
#include "low_bit_matmul/lane128.h"

struct Lane : Lane128 {
  static constexpr unsigned max_rows = 4;
  static constexpr unsigned max_float_rows = 16;
  static constexpr bool raises = false;
  static constexpr unsigned vectors(unsigned rows) { return rows == 1 ? 8 : 4; }

  struct Part {};
  template <bool wide>
  static void dot(Part&, Ints& sum, Bytes codes, Bytes x) {
    sum = vdotq_s32(sum, as_signed<wide>(codes), vreinterpretq_s8_u8(x));
  }
  static void fold(Part&, Ints&) {}
};

#include "low_bit_matmul/tile.h"

}  // namespace

const Kernels& dotprod_kernels() {
  static constexpr Kernels kernels = {Lane::max_rows, Lane::max_float_rows, 0, round, panels, panel_float};
  return kernels;
}

}  // namespace graphopt::low_bit_matmul
