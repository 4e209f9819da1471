// SparseConv for AVX2 with FMA.
#include <immintrin.h>

#include "sparse_conv/contract.h"

namespace graphopt::sparse_conv {
namespace {

#include "base/lane_avx2.h"

#include "base/activation_lane.h"
#include "sparse_conv/load_as.h"

struct Lane : FloatLane {
  static constexpr bool has_halves = false, masked = true, compact = false;
  // All ones in the lanes whose bit is set.
  static __m256i lanes_of(unsigned bits) {
    const __m256i bit = _mm256_setr_epi32(1, 2, 4, 8, 16, 32, 64, 128);
    return _mm256_cmpeq_epi32(_mm256_and_si256(_mm256_set1_epi32(static_cast<int>(bits)), bit), bit);
  }
  static __m256i first(size_t count) {
    return _mm256_cmpgt_epi32(_mm256_set1_epi32(static_cast<int>(count)), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
  }
  static Vec load_some(const float* at, size_t count) { return _mm256_maskload_ps(at, first(count)); }
  static void store_some(float* at, Vec v, size_t count) { _mm256_maskstore_ps(at, first(count), v); }
  // Fours and pairs are loaded at once: a load into all lanes takes as long as one of a vector.
  template <unsigned R>
  static void set_each(const unsigned char* at, Vec (&v)[R]) {
    static_assert(R == 1 || R == 2 || R % 4 == 0, "rows of one, two or fours");
    if constexpr (R == 1) {
      v[0] = set1(load_as<float>(at));
    } else if constexpr (R == 2) {
      const Vec both = _mm256_castpd_ps(_mm256_set1_pd(load_as<double>(at)));
      v[0] = _mm256_moveldup_ps(both);
      v[1] = _mm256_movehdup_ps(both);
    } else {
      for (unsigned r = 0; r < R; r += 4, at += 16) {
        const __m128 four = load_as<__m128>(at);
        const Vec all = _mm256_insertf128_ps(_mm256_castps128_ps256(four), four, 1);
        v[r] = _mm256_permute_ps(all, 0x00);
        v[r + 1] = _mm256_permute_ps(all, 0x55);
        v[r + 2] = _mm256_permute_ps(all, 0xAA);
        v[r + 3] = _mm256_permute_ps(all, 0xFF);
      }
    }
  }
  static Vec load_masked(const float* at, unsigned bits) { return _mm256_maskload_ps(at, lanes_of(bits)); }
};

struct Half : Lane {
  static Vec of(Vec v) { return v; }
};

constexpr unsigned widest_4 = 2, widest_8 = 1;

#include "sparse_conv/tile.h"

}  // namespace

const Kernels& avx2_kernels() {
  static constexpr Kernels kernels = {"avx2", Lane::lanes, 1, {4, 2, 1}, true, false, space, gather, sweep, activate_all};
  return kernels;
}

}  // namespace graphopt::sparse_conv
