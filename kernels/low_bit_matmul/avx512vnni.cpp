// LowBitMatMul for AVX-512 with VNNI: vpdpbusd in 512-bit vectors, or for few rows and codes of one bit tables in registers.
//
// Bit fields are taken out with a shift and a mask: vgf2p8affineqb does it in one instruction, but Zen 4 starts one of
// 512 bits only every other clock, where a shift and an AND take one clock of two different units.
#include <immintrin.h>

#include "low_bit_matmul/contract.h"

namespace graphopt::low_bit_matmul {
namespace {

#include "base/lane_avx512.h"
#include "base/activation_lane.h"

struct Lane {
  static constexpr unsigned lanes = 16;
  static constexpr unsigned max_rows = 6;
  static constexpr unsigned max_float_rows = 16;
  static constexpr bool raises = true;
  static constexpr unsigned vectors(unsigned) { return 4; }
  using Bytes = __m512i;
  using Ints = __m512i;

  static Bytes load_bytes(const unsigned char* at) { return _mm512_loadu_si512(at); }
  static void store_bytes(unsigned char* at, Bytes a) { _mm512_storeu_si512(at, a); }
  static FloatLane::Vec load_floats(const unsigned char* at) { return _mm512_loadu_ps(at); }
  static Ints set_ints(int a) { return _mm512_set1_epi32(a); }
  static void store_ints(int* at, Ints a) { _mm512_storeu_si512(at, a); }
  static Ints add_ints(Ints a, Ints b) { return _mm512_add_epi32(a, b); }
  static Ints mul_ints(Ints a, Ints b) { return _mm512_mullo_epi32(a, b); }
  static Ints as_ints(Bytes a) { return a; }
  static FloatLane::Vec to_float(Ints a) { return _mm512_cvtepi32_ps(a); }
  static Ints widen(const unsigned char* at) {
    return _mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(at)));
  }
  template <unsigned i>
  static Ints byte(Ints a) {
    return _mm512_and_si512(_mm512_srli_epi32(a, 8 * i), _mm512_set1_epi32(255));
  }

  template <unsigned bits, unsigned from, unsigned to>
  static Bytes moved_field(Bytes a) {
    if constexpr (from > to) a = _mm512_srli_epi16(a, from - to);
    if constexpr (from < to) a = _mm512_slli_epi16(a, to - from);
    return _mm512_and_si512(a, _mm512_set1_epi8(static_cast<char>(((1 << bits) - 1) << to)));
  }
  template <unsigned by>
  static Ints shift_down(Ints a) {
    return _mm512_srai_epi32(a, by);
  }
  static Bytes either(Bytes a, Bytes b) { return _mm512_or_si512(a, b); }
  static Bytes repeat(const unsigned char* sixteen) {
    return _mm512_broadcast_i32x4(_mm_load_si128(reinterpret_cast<const __m128i*>(sixteen)));
  }
  static Bytes lookup(Bytes book, Bytes codes) { return _mm512_shuffle_epi8(book, codes); }

  // Four bytes of x are read by the instruction itself where there are many sums: held in registers, they would push sums
  // onto the stack, as GCC does from twenty sums on.
  struct FourBytes {
    signed char q[4];
  };
  template <unsigned rows>
  static auto broadcast(const signed char* at) {
    if constexpr (rows > 2) {
      return reinterpret_cast<const FourBytes*>(at);
    } else {
      int four;
      __builtin_memcpy(&four, at, 4);
      return _mm512_set1_epi32(four);
    }
  }

  struct Part {};
  template <bool wide>
  static void dot(Part&, Ints& sum, Bytes codes, const FourBytes* x) {
    __asm__("vpdpbusd %2%{1to16%}, %1, %0" : "+v"(sum) : "v"(codes), "m"(*x));
  }
  template <bool wide>
  static void dot(Part&, Ints& sum, Bytes codes, Bytes x) {
    sum = _mm512_dpbusd_epi32(sum, codes, x);
  }
  static void fold(Part&, Ints&) {}
  template <bool wide>
  static constexpr int bias = 0;

  static Ints magnitude(Ints largest, const float* x) {
    const Ints bits = _mm512_loadu_si512(x);
    return _mm512_max_epi32(largest, _mm512_and_si512(bits, _mm512_set1_epi32(0x7fffffff)));
  }
  static int highest(Ints a) { return _mm512_reduce_max_epi32(a); }
  static int total(Ints a) { return _mm512_reduce_add_epi32(a); }
  static Ints round(FloatLane::Vec a) { return _mm512_cvtps_epi32(a); }
  static void store_low(signed char* at, Ints a) {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(at), _mm512_cvtepi32_epi8(a));
  }
  // Assembly: GCC 12 takes a function that only prefetches for one without effect and drops its calls.
  static void prefetch(const unsigned char* at) { __asm__ volatile("prefetcht0 (%0)" : : "r"(at)); }
};

#include "low_bit_matmul/tile.h"
#include "low_bit_matmul/lookup_avx512.h"

constexpr unsigned max_lookup_rows = 32;

void round_and_make_tables(const Call& call, const Rounded& x, size_t tile);
void look_up_or_multiply(const Call& call, const Rounded& x, size_t first, size_t end, size_t panel, size_t panel_end);

constexpr Kernels kernels = {Lane::max_rows,        Lane::max_float_rows, max_lookup_rows,
                             round_and_make_tables, look_up_or_multiply,  panel_float};

void round_and_make_tables(const Call& call, const Rounded& x, size_t tile) {
  round(call, x, tile);
  if (looks_up(*call.w, kernels, x.rows)) make_tables(*call.w, x.tiles + tile * x.stride);
}

void look_up_or_multiply(const Call& call, const Rounded& x, size_t first, size_t end, size_t panel, size_t panel_end) {
  (looks_up(*call.w, kernels, x.rows) ? look_up : panels)(call, x, first, end, panel, panel_end);
}

}  // namespace

const Kernels& avx512vnni_kernels() { return kernels; }

}  // namespace graphopt::low_bit_matmul
