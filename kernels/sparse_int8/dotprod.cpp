// The sparse int8 operators for NEON with the dot products.
#include <arm_neon.h>

#include "sparse_int8/contract.h"

namespace graphopt::sparse_int8 {
namespace {

#include "base/activation_lane.h"
#include "base/lane_neon.h"
#include "sparse_int8/neon_lane.h"

struct Lane : LaneBase {
  using Weight = int8x16_t;
  static Int dot(Int sum, Bytes x, Weight w) { return vdotq_s32(sum, x, w); }
};

#include "base/ahead.h"
#include "base/common.h"

#include "sparse_int8/tile.h"
#include "sparse_int8/finish.h"
#include "sparse_int8/planes.h"

}  // namespace

const Kernels& dotprod_kernels() {
  static constexpr Kernels kernels = {
      "neon-dotprod", Lane::lanes, {Lane::most[0], Lane::most[1]}, Lane::range, pack_rows, panel, finish_rows, fill_plane,
      pack_positions, finish_planes, Lane::flip == 0};
  return kernels;
}

}  // namespace graphopt::sparse_int8
