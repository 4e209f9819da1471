// The sparse int8 operators for NEON.
#include <arm_neon.h>

#include "sparse_int8/contract.h"

namespace graphopt::sparse_int8 {
namespace {

#include "base/activation_lane.h"
#include "base/lane_neon.h"
#include "sparse_int8/neon_lane.h"

struct Lane : LaneBase {
  using Weight = int8x16_t;
  static Int dot(Int sum, Bytes x, Weight w) {
    // Two products of -128 by -128 would not fit in 16 bits together.
    const int32x4_t low = vpaddlq_s16(vmull_s8(vget_low_s8(x), vget_low_s8(w)));
    const int32x4_t high = vpaddlq_s16(vmull_high_s8(x, w));
    return vaddq_s32(sum, vpaddq_s32(low, high));
  }
};

#include "base/ahead.h"
#include "base/common.h"

#include "sparse_int8/tile.h"
#include "sparse_int8/finish.h"
#include "sparse_int8/planes.h"

}  // namespace

const Kernels& neon_kernels() {
  static constexpr Kernels kernels = {
      "neon", Lane::lanes, {Lane::most[0], Lane::most[1]}, Lane::range, pack_rows, panel, finish_rows, fill_plane,
      pack_positions, finish_planes, Lane::flip == 0};
  return kernels;
}

}  // namespace graphopt::sparse_int8
