// SparseConv for the baseline of the platform: no vector types, the compiler vectorizes what it may.
#include "sparse_conv/contract.h"

namespace graphopt::sparse_conv {
namespace {

#include "base/lane_scalar.h"

#include "base/activation_lane.h"
#include "sparse_conv/load_as.h"

struct Lane : FloatLane {
  static constexpr bool has_halves = false, masked = false, compact = false;
  static Vec load_some(const float* at, size_t count) {
    return each([&](unsigned i) { return i < count ? at[i] : 0.0f; });
  }
  static void store_some(float* at, const Vec& v, size_t count) {
    for (unsigned i = 0; i < lanes && i < count; ++i) at[i] = v.v[i];
  }
  template <unsigned R>
  static void set_each(const unsigned char* at, Vec (&v)[R]) {
    for (unsigned r = 0; r < R; ++r) v[r] = set1(load_as<float>(at + 4 * r));
  }
  static Vec load_masked(const float* at, unsigned bits) {
    return each([&](unsigned i) { return bits >> i & 1 ? at[i] : 0.0f; });
  }
};

struct Half : Lane {
  static const Vec& of(const Vec& v) { return v; }
};

constexpr unsigned widest_4 = 1, widest_8 = 1;

#include "sparse_conv/tile.h"

}  // namespace

const Kernels& scalar_kernels() {
  static constexpr Kernels kernels = {"scalar", Lane::lanes, 1, {4, 1, 1}, false, false, space, gather, sweep, activate_all};
  return kernels;
}

}  // namespace graphopt::sparse_conv
