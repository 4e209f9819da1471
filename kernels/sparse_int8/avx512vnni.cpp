// The sparse int8 operators for AVX-512 with VNNI.
#include <immintrin.h>

#include "sparse_int8/contract.h"

namespace graphopt::sparse_int8 {
namespace {

#include "base/activation_lane.h"
#include "base/lane_avx512.h"
#include "base/transpose_eight.h"

struct Rounding;

struct Lane {
  using Int = __m512i;
  using Bytes = __m512i;
  using Weight = __m512i;
  using Vec = __m512;
  static constexpr unsigned lanes = 16;
  static constexpr unsigned most[2] = {4, 4};
  static constexpr unsigned char flip = 0;

  static Int set1(int32_t a) { return _mm512_set1_epi32(a); }
  static Int load(const int32_t* at) { return _mm512_loadu_si512(at); }
  static void store(int32_t* at, Int a) { _mm512_storeu_si512(at, a); }
  static Bytes bytes(const unsigned char* at) { return _mm512_loadu_si512(at); }
  static Weight weight(const unsigned char* at) {
    int32_t four;
    __builtin_memcpy(&four, at, sizeof four);
    return _mm512_set1_epi32(four);
  }
  static Int dot(Int sum, Bytes x, Weight w) { return _mm512_dpbusd_epi32(sum, x, w); }
  static Int add(Int a, Int b) { return _mm512_add_epi32(a, b); }
  static Vec to_float(Int a) { return _mm512_cvtepi32_ps(a); }
  static Int to_int(Vec a) { return _mm512_cvtps_epi32(a); }
  static Vec at_least(Vec a, Vec low) { return _mm512_max_ps(a, low); }
  static void put_bytes(unsigned char* at, Int a, unsigned count) {
    if (count == lanes) return _mm_storeu_si128(reinterpret_cast<__m128i*>(at), _mm512_cvtepi32_epi8(a));
    _mm_mask_storeu_epi8(at, first(count), _mm512_cvtepi32_epi8(a));
  }
  // Packing works within 128 bits; the fours that it leaves are put in order.
  static void put_four(unsigned char* at, Int a, Int b, Int c, Int d) {
    const Int bytes = _mm512_packus_epi16(_mm512_packs_epi32(a, b), _mm512_packs_epi32(c, d));
    _mm512_storeu_si512(at, _mm512_permutexvar_epi32(turned_fours(), bytes));
  }
  static void turn(const unsigned char* from, size_t stride, unsigned char* to, size_t pitch) {
#pragma GCC unroll 4
    for (unsigned i = 0; i < 4; ++i) {
      const unsigned row = i / 2 * 8, column = i % 2 * 8;
      transpose_eight(from + row * stride + column * 4, stride, 8, [&](unsigned c, __m256 v) {
        _mm256_storeu_ps(reinterpret_cast<float*>(to + (column + c) * pitch + row * 4), v);
      });
    }
  }

  static void interleave(const unsigned char* const (&rows)[4], unsigned width, unsigned char* p) {
    unsigned i = 0;
    if (width == 64) {
      // Fours of bytes are put where interleaving within 128 bits leaves them in order.
      const Int order = turned_fours();
      const auto all = [&](unsigned j) { return _mm512_permutexvar_epi32(order, _mm512_loadu_si512(rows[j])); };
      const Int a = all(0), b = all(1), c = all(2), d = all(3);
      const Int low = _mm512_unpacklo_epi8(a, b), high = _mm512_unpackhi_epi8(a, b);
      const Int low2 = _mm512_unpacklo_epi8(c, d), high2 = _mm512_unpackhi_epi8(c, d);
      _mm512_storeu_si512(p, _mm512_unpacklo_epi16(low, low2));
      _mm512_storeu_si512(p + 64, _mm512_unpackhi_epi16(low, low2));
      _mm512_storeu_si512(p + 128, _mm512_unpacklo_epi16(high, high2));
      _mm512_storeu_si512(p + 192, _mm512_unpackhi_epi16(high, high2));
      return;
    }
    for (; i + 32 <= width; i += 32) {
      const __m256i order = _mm256_setr_epi32(0, 2, 4, 6, 1, 3, 5, 7);
      const auto half = [&](unsigned j) {
        return _mm256_permutevar8x32_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(rows[j] + i)), order);
      };
      const __m256i a = half(0), b = half(1), c = half(2), d = half(3);
      const __m256i low = _mm256_unpacklo_epi8(a, b), high = _mm256_unpackhi_epi8(a, b);
      const __m256i low2 = _mm256_unpacklo_epi8(c, d), high2 = _mm256_unpackhi_epi8(c, d);
      __m256i* to = reinterpret_cast<__m256i*>(p + 4 * i);
      _mm256_storeu_si256(to, _mm256_unpacklo_epi16(low, low2));
      _mm256_storeu_si256(to + 1, _mm256_unpackhi_epi16(low, low2));
      _mm256_storeu_si256(to + 2, _mm256_unpacklo_epi16(high, high2));
      _mm256_storeu_si256(to + 3, _mm256_unpackhi_epi16(high, high2));
    }
    for (; i < width; i += 16) {
      const auto sixteen = [&](unsigned j) { return _mm_loadu_si128(reinterpret_cast<const __m128i*>(rows[j] + i)); };
      const __m128i a = sixteen(0), b = sixteen(1), c = sixteen(2), d = sixteen(3);
      const __m128i low = _mm_unpacklo_epi8(a, b), high = _mm_unpackhi_epi8(a, b);
      const __m128i low2 = _mm_unpacklo_epi8(c, d), high2 = _mm_unpackhi_epi8(c, d);
      __m128i* to = reinterpret_cast<__m128i*>(p + 4 * i);
      _mm_storeu_si128(to, _mm_unpacklo_epi16(low, low2));
      _mm_storeu_si128(to + 1, _mm_unpackhi_epi16(low, low2));
      _mm_storeu_si128(to + 2, _mm_unpacklo_epi16(high, high2));
      _mm_storeu_si128(to + 3, _mm_unpackhi_epi16(high, high2));
    }
  }

  template <class Rounding>
  static void quantize(const float* x, size_t count, const Rounding& q, unsigned char* out) {
    const Vec scale = _mm512_set1_ps(q.scale), inverse = _mm512_set1_ps(q.inverse);
    const Vec low = _mm512_set1_ps(q.low), high = _mm512_set1_ps(q.high), sure = _mm512_set1_ps(q.sure);
    const Int zero_point = _mm512_set1_epi32(q.zero_point);
    size_t i = 0;
    for (; i + 64 <= count; i += 64) {
      Vec v[4];
      __mmask16 unsure = 0;
#pragma GCC unroll 4
      for (unsigned j = 0; j < 4; ++j) {
        v[j] = _mm512_min_ps(high, _mm512_mul_ps(_mm512_loadu_ps(x + i + 16 * j), inverse));  // NaN passes
        unsure |= _mm512_cmp_ps_mask(_mm512_abs_ps(_mm512_reduce_ps(v[j], 0)), sure, _CMP_NLT_UQ);
      }
      if (__builtin_expect(unsure, 0)) {
#pragma GCC unroll 4
        for (unsigned j = 0; j < 4; ++j) v[j] = _mm512_min_ps(high, _mm512_div_ps(_mm512_loadu_ps(x + i + 16 * j), scale));
      }
      Int q4[4];
#pragma GCC unroll 4
      for (unsigned j = 0; j < 4; ++j)
        q4[j] = _mm512_add_epi32(_mm512_cvtps_epi32(_mm512_max_ps(v[j], low)), zero_point);  // low where v is NaN
      put_four(out + i, q4[0], q4[1], q4[2], q4[3]);
    }
    for (; i < count; i += 16) {
      const __mmask16 mask = first(count - i);
      const Vec value = _mm512_maskz_loadu_ps(mask, x + i);
      Vec v = _mm512_min_ps(high, _mm512_mul_ps(value, inverse));  // NaN passes
      if (__builtin_expect(_mm512_cmp_ps_mask(_mm512_abs_ps(_mm512_reduce_ps(v, 0)), sure, _CMP_NLT_UQ), 0))
        v = _mm512_min_ps(high, _mm512_div_ps(value, scale));
      v = _mm512_max_ps(v, low);  // low where v is NaN
      _mm_mask_storeu_epi8(out + i, mask, _mm512_cvtepi32_epi8(_mm512_add_epi32(_mm512_cvtps_epi32(v), zero_point)));
    }
  }

  static void range(const float* x, size_t count, float* low, float* high) {
    Vec least[4], most[4];
#pragma GCC unroll 4
    for (unsigned i = 0; i < 4; ++i) {
      least[i] = _mm512_set1_ps(*low);
      most[i] = _mm512_set1_ps(*high);
    }
    size_t at = 0;
    // The second operand is returned where either is NaN.
    for (; at + 64 <= count; at += 64) {
#pragma GCC unroll 4
      for (unsigned i = 0; i < 4; ++i) {
        const Vec v = _mm512_loadu_ps(x + at + 16 * i);
        least[i] = _mm512_min_ps(v, least[i]);
        most[i] = _mm512_max_ps(v, most[i]);
      }
    }
    for (; at < count; at += 16) {
      const __mmask16 mask = first(count - at);
      const Vec v = _mm512_maskz_loadu_ps(mask, x + at);
      least[0] = _mm512_mask_min_ps(least[0], mask, v, least[0]);
      most[0] = _mm512_mask_max_ps(most[0], mask, v, most[0]);
    }
    *low = _mm512_reduce_min_ps(_mm512_min_ps(_mm512_min_ps(least[0], least[1]), _mm512_min_ps(least[2], least[3])));
    *high = _mm512_reduce_max_ps(_mm512_max_ps(_mm512_max_ps(most[0], most[1]), _mm512_max_ps(most[2], most[3])));
  }

 private:
  static Int turned_fours() { return _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15); }
  // The first lanes, all if count is 16 or more.
  static __mmask16 first(size_t count) {
    return count >= 16 ? 0xffff : static_cast<__mmask16>((1u << count) - 1);
  }
};

#include "base/ahead.h"
#include "base/common.h"

#include "sparse_int8/tile.h"
#include "sparse_int8/finish.h"
#include "sparse_int8/planes.h"

}  // namespace

const Kernels& avx512vnni_kernels() {
  static constexpr Kernels kernels = {
      "avx512vnni", Lane::lanes, {Lane::most[0], Lane::most[1]}, Lane::range, pack_rows, panel, finish_rows, fill_plane,
      pack_positions, finish_planes, Lane::flip == 0};
  return kernels;
}

}  // namespace graphopt::sparse_int8
