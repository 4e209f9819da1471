// The sparse int8 operators for the baseline of the platform: no vector types, the compiler vectorizes what it may.
#include "sparse_int8/contract.h"

namespace graphopt::sparse_int8 {
namespace {

#include "base/activation_lane.h"
#include "base/lane_scalar.h"

struct Lane {
  static constexpr unsigned lanes = 8;
  static constexpr unsigned most[2] = {2, 1};
  static constexpr unsigned char flip = 0;
  struct Int {
    int32_t v[lanes];
  };
  struct Bytes {
    unsigned char v[4 * lanes];
  };
  struct Weight {
    signed char v[4];
  };
  using Vec = FloatLane::Vec;

  static Int set1(int32_t a) {
    Int r;
    for (unsigned i = 0; i < lanes; ++i) r.v[i] = a;
    return r;
  }
  static Int load(const int32_t* at) {
    Int r;
    __builtin_memcpy(&r, at, sizeof r);
    return r;
  }
  static void store(int32_t* at, const Int& a) { __builtin_memcpy(at, &a, sizeof a); }
  static Bytes bytes(const unsigned char* at) {
    Bytes r;
    __builtin_memcpy(&r, at, sizeof r);
    return r;
  }
  static Weight weight(const unsigned char* at) {
    Weight r;
    __builtin_memcpy(&r, at, sizeof r);
    return r;
  }
  static Int dot(Int sum, const Bytes& x, const Weight& w) {
    for (unsigned i = 0; i < lanes; ++i) {
      int32_t products = 0;
      for (unsigned j = 0; j < 4; ++j) products += x.v[4 * i + j] * w.v[j];
      sum.v[i] = static_cast<int32_t>(static_cast<uint32_t>(sum.v[i]) + static_cast<uint32_t>(products));
    }
    return sum;
  }
  static Int add(Int a, const Int& b) {
    for (unsigned i = 0; i < lanes; ++i)
      a.v[i] = static_cast<int32_t>(static_cast<uint32_t>(a.v[i]) + static_cast<uint32_t>(b.v[i]));
    return a;
  }
  static Vec to_float(const Int& a) {
    return FloatLane::each([&](unsigned i) { return static_cast<float>(a.v[i]); });
  }
  // For |a| below 2^22, as bytes are.
  static Int to_int(const Vec& a) {
    const Vec whole = FloatLane::round(a);
    Int r;
    for (unsigned i = 0; i < lanes; ++i) r.v[i] = static_cast<int32_t>(whole.v[i]);
    return r;
  }
  static Vec at_least(const Vec& a, const Vec& low) {
    return FloatLane::each([&](unsigned i) { return a.v[i] > low.v[i] ? a.v[i] : low.v[i]; });
  }
  static void put_bytes(unsigned char* at, const Int& a, unsigned count) {
    for (unsigned i = 0; i < count; ++i) at[i] = static_cast<unsigned char>(a.v[i]);
  }
  static void put_four(unsigned char* at, Int a, Int b, Int c, Int d) {
    put_bytes(at, a, lanes);
    put_bytes(at + lanes, b, lanes);
    put_bytes(at + 2 * lanes, c, lanes);
    put_bytes(at + 3 * lanes, d, lanes);
  }
  static void turn(const unsigned char* from, size_t stride, unsigned char* to, size_t pitch) {
    for (unsigned i = 0; i < lanes; ++i) {
      for (unsigned j = 0; j < lanes; ++j) __builtin_memcpy(to + j * pitch + 4 * i, from + i * stride + 4 * j, 4);
    }
  }

  static void interleave(const unsigned char* const (&rows)[4], unsigned width, unsigned char* p) {
    for (unsigned i = 0; i < width; ++i) {
      for (unsigned j = 0; j < 4; ++j) p[4 * i + j] = rows[j][i];
    }
  }

  template <class Rounding>
  static void quantize(const float* x, size_t count, const Rounding& q, unsigned char* out) {
    for (size_t i = 0; i < count; ++i) {
      float v = x[i] / q.scale;
      v = v > q.low ? v : q.low;  // NaN becomes low
      v = v > q.high ? q.high : v;
      const float shifted = v + 12582912.0f;  // to the nearest integer, ties to even
      out[i] = static_cast<unsigned char>(static_cast<int32_t>(shifted - 12582912.0f) + q.zero_point);
    }
  }

  static void range(const float* x, size_t count, float* low, float* high) {
    for (size_t i = 0; i < count; ++i) {
      if (x[i] < *low) *low = x[i];
      if (x[i] > *high) *high = x[i];
    }
  }
};

#include "base/ahead.h"
#include "base/common.h"

#include "sparse_int8/tile.h"
#include "sparse_int8/finish.h"
#include "sparse_int8/planes.h"

}  // namespace

const Kernels& scalar_kernels() {
  static constexpr Kernels kernels = {
      "scalar", Lane::lanes, {Lane::most[0], Lane::most[1]}, Lane::range, pack_rows, panel, finish_rows, fill_plane,
      pack_positions, finish_planes, Lane::flip == 0};
  return kernels;
}

}  // namespace graphopt::sparse_int8
