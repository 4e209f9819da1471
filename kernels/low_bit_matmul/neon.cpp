// LowBitMatMul for NEON, the baseline of 64-bit Arm.
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
  // Sums of two products, 2 * 128 * 127 at most, fit 16 bits.
  template <bool wide>
  static void dot(Part&, Ints& sum, Bytes codes, Bytes x) {
    const int8x16_t w = as_signed<wide>(codes), q = vreinterpretq_s8_u8(x);
    const int16x8_t first = vmull_s8(vget_low_s8(w), vget_low_s8(q));
    sum = vpadalq_s16(sum, vpaddq_s16(first, vmull_high_s8(w, q)));
  }
  static void fold(Part&, Ints&) {}
};

#include "low_bit_matmul/tile.h"

}  // namespace

const Kernels& neon_kernels() {
  static constexpr Kernels kernels = {Lane::max_rows, Lane::max_float_rows, 0, round, panels, panel_float};
  return kernels;
}

}  // namespace graphopt::low_bit_matmul
