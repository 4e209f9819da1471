// SparseMatMul for the baseline of the platform: no vector types, the compiler vectorizes what it may.
#include "sparse_matmul/contract.h"

namespace graphopt::sparse_matmul {
namespace {

#include "base/lane_scalar.h"

#include "base/activation_lane.h"

struct Lane : FloatLane {
  template <bool relu>
  static void transpose(const float* src, size_t ld_src, unsigned rows, float* dst, size_t ld_dst) {
    for (unsigned c = 0; c < lanes; ++c) {
      for (unsigned r = 0; r < lanes; ++r) {
        const float a = r < rows ? src[r * ld_src + c] : 0.0f;
        dst[c * ld_dst + r] = relu && a < 0.0f ? 0.0f : a;
      }
    }
  }

  struct Columns {
    const float* x;
    Columns(const float* start, size_t) : x(start) {}
    void dot(const unsigned char* indices, const unsigned char* values, size_t end, size_t group, float* sums) const {
      for (size_t r = 0; r < group; ++r) sums[r] = 0.0f;
      for (size_t at = 0; at < end; at += group) {
        for (size_t r = 0; r < group; ++r) {
          float value;
          __builtin_memcpy(&value, values + (at + r) * sizeof value, sizeof value);
          sums[r] += value * x[indices[at + r]];
        }
      }
    }
  };
};

#include "sparse_matmul/tile.h"

}  // namespace

const Kernels& scalar_kernels() {
  static constexpr Kernels kernels = {Lane::lanes, 4 * Lane::lanes, 1, pack, panel, vector};
  return kernels;
}

}  // namespace graphopt::sparse_matmul
