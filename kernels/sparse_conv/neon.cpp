// SparseConv for NEON on 64-bit Arm.
#include <arm_neon.h>

#include "sparse_conv/contract.h"

namespace graphopt::sparse_conv {
namespace {

#include "base/lane_neon.h"

#include "base/activation_lane.h"
#include "sparse_conv/load_as.h"

struct Lane : FloatLane {
  static constexpr bool has_halves = false, masked = false, compact = false;
  template <unsigned R>
  static void set_each(const unsigned char* at, Vec (&v)[R]) {
    for (unsigned r = 0; r < R; ++r) v[r] = set1(load_as<float>(at + 4 * r));
  }
  static Vec load_some(const float* at, size_t count) { return load_masked(at, (1u << count) - 1); }
  static void store_some(float* at, Vec v, size_t count) {
    if (count == lanes) return store(at, v);
    float all[lanes];
    store(all, v);
    for (unsigned i = 0; i < count; ++i) at[i] = all[i];
  }
  static Vec load_masked(const float* at, unsigned bits) {
    if ((bits & 15) == 15) return load(at);
    float all[lanes];
    for (unsigned i = 0; i < lanes; ++i) all[i] = bits >> i & 1 ? at[i] : 0.0f;
    return load(all);
  }
};

struct Half : Lane {
  static Vec of(Vec v) { return v; }
};

constexpr unsigned widest_4 = 4, widest_8 = 2;

#include "sparse_conv/tile.h"

}  // namespace

const Kernels& neon_kernels() {
  static constexpr Kernels kernels = {"neon", Lane::lanes, 1, {4, 4, 2}, false, false, space, gather, sweep, activate_all};
  return kernels;
}

}  // namespace graphopt::sparse_conv
