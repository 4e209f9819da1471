// LowBitMatMul for the baseline of the platform: no vector types, the compiler vectorizes what it may.
#include "low_bit_matmul/contract.h"

namespace graphopt::low_bit_matmul {
namespace {

#include "base/lane_scalar.h"
#include "base/activation_lane.h"

struct Lane {
  static constexpr unsigned lanes = 8;
  static constexpr unsigned max_rows = 1;
  static constexpr unsigned max_float_rows = 16;
  static constexpr bool raises = false;
  static constexpr unsigned vectors(unsigned) { return 1; }
  struct Bytes {
    unsigned char v[4 * lanes];
  };
  struct Ints {
    int v[lanes];
  };

  template <class Function>
  static Ints each(Function function) {
    Ints r;
    for (unsigned i = 0; i < lanes; ++i) r.v[i] = function(i);
    return r;
  }
  template <class Function>
  static Bytes each_byte(Function function) {
    Bytes r;
    for (unsigned i = 0; i < 4 * lanes; ++i) r.v[i] = static_cast<unsigned char>(function(i));
    return r;
  }

  static Bytes load_bytes(const unsigned char* at) {
    return each_byte([&](unsigned i) { return at[i]; });
  }
  static void store_bytes(unsigned char* at, const Bytes& a) { __builtin_memcpy(at, a.v, sizeof a.v); }
  static FloatLane::Vec load_floats(const unsigned char* at) {
    FloatLane::Vec r;
    __builtin_memcpy(r.v, at, sizeof r.v);
    return r;
  }
  static Ints set_ints(int a) {
    return each([&](unsigned) { return a; });
  }
  static void store_ints(int* at, const Ints& a) {
    for (unsigned i = 0; i < lanes; ++i) at[i] = a.v[i];
  }
  static Ints add_ints(const Ints& a, const Ints& b) {
    return each([&](unsigned i) { return a.v[i] + b.v[i]; });
  }
  static Ints mul_ints(const Ints& a, const Ints& b) {
    return each([&](unsigned i) { return a.v[i] * b.v[i]; });
  }
  // Lane i holds bytes 4 i to 4 i + 3, the first in its lowest bits.
  static Ints as_ints(const Bytes& a) {
    return each([&](unsigned i) {
      return static_cast<int>(static_cast<unsigned>(a.v[4 * i]) | static_cast<unsigned>(a.v[4 * i + 1]) << 8 |
                              static_cast<unsigned>(a.v[4 * i + 2]) << 16 | static_cast<unsigned>(a.v[4 * i + 3]) << 24);
    });
  }
  static FloatLane::Vec to_float(const Ints& a) {
    return FloatLane::each([&](unsigned i) { return static_cast<float>(a.v[i]); });
  }
  static Ints widen(const unsigned char* at) {
    return each([&](unsigned i) { return int{at[i]}; });
  }
  template <unsigned i>
  static Ints byte(const Ints& a) {
    return each([&](unsigned lane) { return a.v[lane] >> 8 * i & 255; });
  }

  template <unsigned bits, unsigned from, unsigned to>
  static Bytes moved_field(const Bytes& a) {
    return each_byte([&](unsigned i) { return (a.v[i] >> from & ((1 << bits) - 1)) << to; });
  }
  template <unsigned by>
  static Ints shift_down(const Ints& a) {
    return each([&](unsigned i) { return a.v[i] >> by; });
  }
  static Bytes either(const Bytes& a, const Bytes& b) {
    return each_byte([&](unsigned i) { return a.v[i] | b.v[i]; });
  }
  static Bytes repeat(const unsigned char* sixteen) {
    return each_byte([&](unsigned i) { return sixteen[i & 15]; });
  }
  static Bytes lookup(const Bytes& book, const Bytes& codes) {
    return each_byte([&](unsigned i) { return book.v[codes.v[i] & 15]; });
  }
  template <unsigned rows>
  static Bytes broadcast(const signed char* at) {
    return each_byte([&](unsigned i) { return at[i & 3]; });
  }

  struct Part {};
  template <bool wide>
  static void dot(Part&, Ints& sum, const Bytes& codes, const Bytes& x) {
    for (unsigned i = 0; i < lanes; ++i) {
      for (unsigned j = 0; j < 4; ++j) sum.v[i] += int{codes.v[4 * i + j]} * static_cast<signed char>(x.v[4 * i + j]);
    }
  }
  static void fold(Part&, Ints&) {}
  template <bool wide>
  static constexpr int bias = 0;

  static Ints magnitude(const Ints& largest, const float* x) {
    return each([&](unsigned i) {
      int bits;
      __builtin_memcpy(&bits, x + i, sizeof bits);
      bits &= 0x7fffffff;
      return bits > largest.v[i] ? bits : largest.v[i];
    });
  }
  static int highest(const Ints& a) {
    int found = a.v[0];
    for (unsigned i = 1; i < lanes; ++i) found = a.v[i] > found ? a.v[i] : found;
    return found;
  }
  static int total(const Ints& a) {
    int sum = 0;
    for (unsigned i = 0; i < lanes; ++i) sum += a.v[i];
    return sum;
  }
  static Ints round(const FloatLane::Vec& a) {
    const FloatLane::Vec rounded = FloatLane::round(a);
    return each([&](unsigned i) { return static_cast<int>(rounded.v[i]); });
  }
  static void store_low(signed char* at, const Ints& a) {
    for (unsigned i = 0; i < lanes; ++i) at[i] = static_cast<signed char>(a.v[i]);
  }
  static void prefetch(const unsigned char*) {}
};

#include "low_bit_matmul/tile.h"

}  // namespace

const Kernels& scalar_kernels() {
  static constexpr Kernels kernels = {Lane::max_rows, Lane::max_float_rows, 0, round, panels, panel_float};
  return kernels;
}

}  // namespace graphopt::low_bit_matmul
