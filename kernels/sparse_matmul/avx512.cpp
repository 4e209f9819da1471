// SparseMatMul for AVX-512 (F, BW, DQ, VL).
#include <immintrin.h>

#include "sparse_matmul/contract.h"

namespace graphopt::sparse_matmul {
namespace {

namespace narrow {
#include "base/lane_avx2.h"
}
#include "base/lane_avx512.h"

#include "base/activation_lane.h"

#include "base/transpose_eight.h"

#include "sparse_matmul/lane_four.h"

using Eight = narrow::FloatLane;

struct Lane : FloatLane {
  static constexpr unsigned sums_at_once = 8;

  template <class Sink>
  static void transpose(const float* src, size_t ld_src, unsigned rows, Sink sink) {
    __m512 r[16], t[16];
#pragma GCC unroll 16
    for (unsigned i = 0; i < 16; ++i) r[i] = i < rows ? load(src + i * ld_src) : zero();
#pragma GCC unroll 8
    for (unsigned i = 0; i < 8; ++i) {
      t[2 * i] = _mm512_unpacklo_ps(r[2 * i], r[2 * i + 1]);
      t[2 * i + 1] = _mm512_unpackhi_ps(r[2 * i], r[2 * i + 1]);
    }
#pragma GCC unroll 4
    for (unsigned i = 0; i < 4; ++i) {
      r[4 * i] = _mm512_shuffle_ps(t[4 * i], t[4 * i + 2], 0x44);
      r[4 * i + 1] = _mm512_shuffle_ps(t[4 * i], t[4 * i + 2], 0xee);
      r[4 * i + 2] = _mm512_shuffle_ps(t[4 * i + 1], t[4 * i + 3], 0x44);
      r[4 * i + 3] = _mm512_shuffle_ps(t[4 * i + 1], t[4 * i + 3], 0xee);
    }
#pragma GCC unroll 4
    for (unsigned i = 0; i < 4; ++i) {
      t[i] = _mm512_shuffle_f32x4(r[i], r[4 + i], 0x88);
      t[4 + i] = _mm512_shuffle_f32x4(r[i], r[4 + i], 0xdd);
      t[8 + i] = _mm512_shuffle_f32x4(r[8 + i], r[12 + i], 0x88);
      t[12 + i] = _mm512_shuffle_f32x4(r[8 + i], r[12 + i], 0xdd);
    }
#pragma GCC unroll 4
    for (unsigned i = 0; i < 4; ++i) {
      r[i] = _mm512_shuffle_f32x4(t[i], t[8 + i], 0x88);
      r[8 + i] = _mm512_shuffle_f32x4(t[i], t[8 + i], 0xdd);
      r[4 + i] = _mm512_shuffle_f32x4(t[4 + i], t[12 + i], 0x88);
      r[12 + i] = _mm512_shuffle_f32x4(t[4 + i], t[12 + i], 0xdd);
    }
#pragma GCC unroll 16
    for (unsigned i = 0; i < 16; ++i) sink(i, r[i]);
  }

  static constexpr unsigned stored_rows = 8;
  template <class Sink>
  static void transpose_stored(const float* src, size_t ld_src, unsigned rows, Sink sink) {
    __m256 low[8];
    transpose_eight(src, ld_src * sizeof(float), rows,
                    [&](unsigned i, __m256 v) __attribute__((always_inline)) { low[i] = v; });
    const auto both = [&](unsigned i, __m256 high) __attribute__((always_inline)) {
      sink(i, _mm512_insertf32x8(_mm512_castps256_ps512(low[i]), high, 1));
    };
    transpose_eight(src + 8 * ld_src, ld_src * sizeof(float), rows > 8 ? rows - 8 : 0, both);
  }

  // A K-block of one row of x, held in registers where it has at most 128 columns: sixteen entries pick theirs with
  // four permutations of 32 columns each, of which bits 5 and 6 of the index choose one.
  class Columns {
   public:
    Columns(const float* x, size_t count) : x_(x), in_registers_(count <= 128) {
#pragma GCC unroll 8
      for (size_t i = 0; i < 8; ++i) block_[i] = _mm512_maskz_loadu_ps(first(count, 16 * i), x + 16 * i);
    }

    void dot(const unsigned char* indices, const unsigned char* values, size_t end, size_t group, float* sums) const {
      Vec sum = zero();
      size_t at = 0;
      for (; at + 16 <= end; at += 16) {
        const __m128i index = _mm_loadu_si128(reinterpret_cast<const __m128i*>(indices + at));
        sum = fma(load(reinterpret_cast<const float*>(values + at * sizeof(float))), pick(index), sum);
      }
      if (at < end) {
        const __mmask16 mask = first(end, at);
        const __m128i index = _mm_maskz_loadu_epi8(mask, indices + at);
        const Vec value = _mm512_maskz_loadu_ps(mask, values + at * sizeof(float));
        sum = _mm512_mask3_fmadd_ps(value, pick(index), sum, mask);
      }
      // 16 is a multiple of every group: lane l belongs to row l % group.
      const __m256 eight = _mm256_add_ps(_mm512_castps512_ps256(sum), _mm512_extractf32x8_ps(sum, 1));
      if (group == 8) return _mm256_storeu_ps(sums, eight);
      __m128 four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
      if (group < 4) four = _mm_add_ps(four, _mm_movehl_ps(four, four));
      if (group < 2) four = _mm_add_ss(four, _mm_movehdup_ps(four));
      _mm_storeu_ps(sums, four);
    }

   private:
    // The lanes of sixteen starting at `at` that lie below `count`.
    static __mmask16 first(size_t count, size_t at) {
      return count >= at + 16 ? 0xffff : count <= at ? 0 : static_cast<__mmask16>((1u << (count - at)) - 1);
    }

    Vec pick(__m128i index) const {
      const __m512i i = _mm512_cvtepu8_epi32(index);
      if (!in_registers_) return _mm512_i32gather_ps(i, x_, 4);
      const __mmask16 bit5 = _mm_test_epi8_mask(index, _mm_set1_epi8(32));
      const __mmask16 bit6 = _mm_test_epi8_mask(index, _mm_set1_epi8(64));
      const Vec low = _mm512_mask_mov_ps(_mm512_permutex2var_ps(block_[0], i, block_[1]), bit5,
                                         _mm512_permutex2var_ps(block_[2], i, block_[3]));
      const Vec high = _mm512_mask_mov_ps(_mm512_permutex2var_ps(block_[4], i, block_[5]), bit5,
                                          _mm512_permutex2var_ps(block_[6], i, block_[7]));
      return _mm512_mask_mov_ps(low, bit6, high);
    }

    const float* x_;
    bool in_registers_;
    Vec block_[8];
  };
};

#include "base/ahead.h"
#include "base/common.h"

#include "sparse_matmul/store.h"

#include "sparse_matmul/strips.h"
#include "sparse_matmul/tile.h"

}  // namespace

const Kernels& avx512_kernels() {
  static constexpr Kernels kernels = {
      Lane::lanes,
      pack,
      vector_method(),
      2,
      tile_method(),
      {direct_method<Four, 4>(), direct_method<Eight, 8>(), direct_method<Lane, 16>()},
      {columns_method<Four, 4, 8>(), columns_method<Eight, 8, 8>(), columns_method<Lane, 16, 16>()},
      {rows_method<4, 2>(), rows_method<8, 2>(), {}},
      {8, 8, SIZE_MAX}};
  return kernels;
}

}  // namespace graphopt::sparse_matmul
