// SparseConv for AVX-512 (F, BW, DQ, VL).
#include <immintrin.h>

#include "sparse_conv/contract.h"

namespace graphopt::sparse_conv {
namespace {

#include "base/lane_avx512.h"

#include "base/activation_lane.h"
#include "sparse_conv/load_as.h"

struct Lane : FloatLane {
  static constexpr bool has_halves = true, masked = true, compact = true;
  static __mmask16 first(size_t count) { return static_cast<__mmask16>((1u << count) - 1); }
  static Vec load_some(const float* at, size_t count) { return _mm512_maskz_loadu_ps(first(count), at); }
  static void store_some(float* at, Vec v, size_t count) { _mm512_mask_storeu_ps(at, first(count), v); }
  static Vec load_masked(const float* at, unsigned bits) {
    return _mm512_maskz_loadu_ps(static_cast<__mmask16>(bits), at);
  }
  // Fours and pairs are loaded at once: a load into all lanes takes as long as one of a vector.
  template <unsigned R>
  static void set_each(const unsigned char* at, Vec (&v)[R]) {
    static_assert(R == 1 || R == 2 || R % 4 == 0, "rows of one, two or fours");
    if constexpr (R == 1) {
      v[0] = set1(load_as<float>(at));
    } else if constexpr (R == 2) {
      const Vec both = _mm512_castpd_ps(_mm512_set1_pd(load_as<double>(at)));
      v[0] = _mm512_moveldup_ps(both);
      v[1] = _mm512_movehdup_ps(both);
    } else {
      for (unsigned r = 0; r < R; r += 4, at += 16) {
        const Vec all = _mm512_broadcast_f32x4(load_as<__m128>(at));
        v[r] = _mm512_permute_ps(all, 0x00);
        v[r + 1] = _mm512_permute_ps(all, 0x55);
        v[r + 2] = _mm512_permute_ps(all, 0xAA);
        v[r + 3] = _mm512_permute_ps(all, 0xFF);
      }
    }
  }
  static Vec compress(unsigned bits, Vec v) { return _mm512_maskz_compress_ps(static_cast<__mmask16>(bits), v); }
  static Vec spread(unsigned bits, Vec v) { return _mm512_maskz_expand_ps(static_cast<__mmask16>(bits), v); }
};

// Eight positions in a vector of half the width.
struct Half {
  using Vec = __m256;
  static constexpr unsigned lanes = 8;
  static __mmask8 first(size_t count) { return static_cast<__mmask8>((1u << count) - 1); }
  static Vec of(__m512 v) { return _mm512_castps512_ps256(v); }
  static Vec set1(float a) { return _mm256_set1_ps(a); }
  static Vec load(const float* at) { return _mm256_loadu_ps(at); }
  static void store(float* at, Vec v) { _mm256_storeu_ps(at, v); }
  static Vec fma(Vec a, Vec b, Vec c) { return _mm256_fmadd_ps(a, b, c); }
  static Vec add(Vec a, Vec b) { return _mm256_add_ps(a, b); }
  static Vec at_least(Vec a, Vec low) { return _mm256_max_ps(low, a); }
  static Vec at_most(Vec a, Vec high) { return _mm256_min_ps(high, a); }
  static Vec load_some(const float* at, size_t count) { return _mm256_maskz_loadu_ps(first(count), at); }
  static void store_some(float* at, Vec v, size_t count) { _mm256_mask_storeu_ps(at, first(count), v); }
  static Vec load_masked(const float* at, unsigned bits) {
    return _mm256_maskz_loadu_ps(static_cast<__mmask8>(bits), at);
  }
  static Vec compress(unsigned bits, Vec v) { return _mm256_maskz_compress_ps(static_cast<__mmask8>(bits), v); }
  static Vec spread(unsigned bits, Vec v) { return _mm256_maskz_expand_ps(static_cast<__mmask8>(bits), v); }
};

constexpr unsigned widest_4 = 4, widest_8 = 3;

#include "sparse_conv/tile.h"

}  // namespace

const Kernels& avx512_kernels() {
  static constexpr Kernels kernels = {"avx512", Half::lanes, 2, {8, 8, 6}, true, true, space, gather, sweep, activate_all};
  return kernels;
}

}  // namespace graphopt::sparse_conv
