// SparseMatMul for NEON on 64-bit Arm.
#include <arm_neon.h>

#include "sparse_matmul/contract.h"

namespace graphopt::sparse_matmul {
namespace {

#include "base/lane_neon.h"

#include "base/activation_lane.h"

struct Lane : FloatLane {
  static constexpr unsigned sums_at_once = 16;  // four units of four cycles each

  template <class Sink>
  static void transpose(const float* src, size_t ld_src, unsigned rows, Sink sink) {
    Vec r[4];
#pragma GCC unroll 4
    for (unsigned i = 0; i < 4; ++i) r[i] = i < rows ? load(src + i * ld_src) : zero();
    const float32x4x2_t low = vtrnq_f32(r[0], r[1]), high = vtrnq_f32(r[2], r[3]);
    sink(0, vcombine_f32(vget_low_f32(low.val[0]), vget_low_f32(high.val[0])));
    sink(1, vcombine_f32(vget_low_f32(low.val[1]), vget_low_f32(high.val[1])));
    sink(2, vcombine_f32(vget_high_f32(low.val[0]), vget_high_f32(high.val[0])));
    sink(3, vcombine_f32(vget_high_f32(low.val[1]), vget_high_f32(high.val[1])));
  }

  static constexpr unsigned stored_rows = lanes;
  template <class Sink>
  static void transpose_stored(const float* src, size_t ld_src, unsigned rows, Sink sink) {
    transpose(src, ld_src, rows, sink);
  }

  class Columns {
   public:
    Columns(const float* x, size_t) : x_(x) {}

    void dot(const unsigned char* indices, const unsigned char* values, size_t end, size_t group, float* sums) const {
      Vec low = zero(), high = zero();
      size_t at = 0;
      for (; at + 8 <= end; at += 8) {
        const unsigned char* i = indices + at;
        const Vec first = {x_[i[0]], x_[i[1]], x_[i[2]], x_[i[3]]}, second = {x_[i[4]], x_[i[5]], x_[i[6]], x_[i[7]]};
        low = fma(weights(values + at * sizeof(float)), first, low);
        high = fma(weights(values + (at + 4) * sizeof(float)), second, high);
      }
      // 8 is a multiple of every group: place l belongs to row l % group, and `at` to row 0.
      if (group == 8) {
        store(sums, low);
        return store(sums + 4, high);
      }
      float four[4];
      store(four, add(low, high));
      for (size_t r = 0; r < group; ++r) sums[r] = four[r];
      for (size_t r = group; r < 4; ++r) sums[r % group] += four[r];
      for (; at < end; ++at) {
        float value;
        __builtin_memcpy(&value, values + at * sizeof value, sizeof value);
        sums[at % group] += value * x_[indices[at]];
      }
    }

   private:
    // Four floats at an address that need not be aligned.
    static Vec weights(const unsigned char* at) { return vreinterpretq_f32_u8(vld1q_u8(at)); }

    const float* x_;
  };
};

#include "base/ahead.h"
#include "base/common.h"

#include "sparse_matmul/store.h"

#include "sparse_matmul/strips.h"
#include "sparse_matmul/tile.h"

}  // namespace

const Kernels& neon_kernels() {
  static constexpr Kernels kernels = {
      Lane::lanes,
      pack,
      vector_method(),
      1,
      tile_method(),
      {direct_method<Lane, 4>(), direct_method<Lane, 8>(), direct_method<Lane, 16>()},
      {columns_method<Lane, 4, 16>(), columns_method<Lane, 8, 16>(), columns_method<Lane, 16, 16>()},
      {},
      {SIZE_MAX, SIZE_MAX, SIZE_MAX}};
  return kernels;
}

}  // namespace graphopt::sparse_matmul
