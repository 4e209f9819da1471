// SparseMatMul for the baseline of the platform: no vector types, the compiler vectorizes what it may.
#include "sparse_matmul/contract.h"

namespace graphopt::sparse_matmul {
namespace {

#include "base/lane_scalar.h"

#include "base/activation_lane.h"

// N floats at addresses that need not be aligned.
template <unsigned N>
struct Few {
  static constexpr unsigned lanes = N;
  struct Vec {
    float v[N];
  };
  static Vec zero() { return set1(0.0f); }
  static Vec set1(float a) {
    Vec r;
    for (float& v : r.v) v = a;
    return r;
  }
  static Vec load(const float* at) {
    Vec r;
    __builtin_memcpy(r.v, at, sizeof r.v);
    return r;
  }
  static void store(float* at, const Vec& a) { __builtin_memcpy(at, a.v, sizeof a.v); }
  static Vec fma(const Vec& a, const Vec& b, const Vec& c) {
    Vec r;
    for (unsigned i = 0; i < N; ++i) r.v[i] = a.v[i] * b.v[i] + c.v[i];
    return r;
  }
  static Vec add(const Vec& a, const Vec& b) {
    Vec r;
    for (unsigned i = 0; i < N; ++i) r.v[i] = a.v[i] + b.v[i];
    return r;
  }
  static Vec at_least(const Vec& a, const Vec& low) {
    Vec r;
    for (unsigned i = 0; i < N; ++i) r.v[i] = a.v[i] < low.v[i] ? low.v[i] : a.v[i];
    return r;
  }
  static Vec at_most(const Vec& a, const Vec& high) {
    Vec r;
    for (unsigned i = 0; i < N; ++i) r.v[i] = a.v[i] > high.v[i] ? high.v[i] : a.v[i];
    return r;
  }
};

struct Lane : FloatLane {
  static constexpr unsigned sums_at_once = 8;

  template <class Sink>
  static void transpose(const float* src, size_t ld_src, unsigned rows, Sink sink) {
    for (unsigned c = 0; c < lanes; ++c) {
      Vec column;
      for (unsigned r = 0; r < lanes; ++r) column.v[r] = r < rows ? src[r * ld_src + c] : 0.0f;
      sink(c, column);
    }
  }

  static constexpr unsigned stored_rows = lanes;
  template <class Sink>
  static void transpose_stored(const float* src, size_t ld_src, unsigned rows, Sink sink) {
    transpose(src, ld_src, rows, sink);
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

#include "base/ahead.h"
#include "base/common.h"

#include "sparse_matmul/store.h"

#include "sparse_matmul/strips.h"
#include "sparse_matmul/tile.h"

}  // namespace

const Kernels& scalar_kernels() {
  static constexpr Kernels kernels = {
      Lane::lanes,
      pack,
      vector_method(),
      1,
      tile_method(),
      {direct_method<Few<4>, 4>(), direct_method<Few<4>, 8>(), direct_method<Few<4>, 16>()},
      {columns_method<Few<4>, 4, 8>(), columns_method<Few<4>, 8, 8>(), columns_method<Few<4>, 16, 8>()},
      {},
      {SIZE_MAX, SIZE_MAX, SIZE_MAX}};
  return kernels;
}

}  // namespace graphopt::sparse_matmul
