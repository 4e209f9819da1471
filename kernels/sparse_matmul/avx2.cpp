// SparseMatMul for AVX2 with FMA.
#include <immintrin.h>

#include "sparse_matmul/contract.h"

namespace graphopt::sparse_matmul {
namespace {

#include "base/lane_avx2.h"

#include "base/activation_lane.h"

#include "sparse_matmul/lane_four.h"

struct Lane : FloatLane {
  static constexpr unsigned sums_at_once = 8;

  template <class Sink>
  static void transpose(const float* src, size_t ld_src, unsigned rows, Sink sink) {
    __m256 r[8], t[8];
#pragma GCC unroll 8
    for (unsigned i = 0; i < 8; ++i) r[i] = i < rows ? load(src + i * ld_src) : zero();
#pragma GCC unroll 4
    for (unsigned i = 0; i < 4; ++i) {
      t[2 * i] = _mm256_unpacklo_ps(r[2 * i], r[2 * i + 1]);
      t[2 * i + 1] = _mm256_unpackhi_ps(r[2 * i], r[2 * i + 1]);
    }
#pragma GCC unroll 2
    for (unsigned i = 0; i < 2; ++i) {
      r[4 * i] = _mm256_shuffle_ps(t[4 * i], t[4 * i + 2], 0x44);
      r[4 * i + 1] = _mm256_shuffle_ps(t[4 * i], t[4 * i + 2], 0xee);
      r[4 * i + 2] = _mm256_shuffle_ps(t[4 * i + 1], t[4 * i + 3], 0x44);
      r[4 * i + 3] = _mm256_shuffle_ps(t[4 * i + 1], t[4 * i + 3], 0xee);
    }
#pragma GCC unroll 4
    for (unsigned i = 0; i < 4; ++i) {
      sink(i, _mm256_permute2f128_ps(r[i], r[4 + i], 0x20));
      sink(4 + i, _mm256_permute2f128_ps(r[i], r[4 + i], 0x31));
    }
  }

  class Columns {
   public:
    Columns(const float* x, size_t) : x_(x) {}

    void dot(const unsigned char* indices, const unsigned char* values, size_t end, size_t group, float* sums) const {
      Vec sum = zero();
      size_t at = 0;
      for (; at + 8 <= end; at += 8) {
        const unsigned char* i = indices + at;
        const Vec x = _mm256_setr_ps(x_[i[0]], x_[i[1]], x_[i[2]], x_[i[3]], x_[i[4]], x_[i[5]], x_[i[6]], x_[i[7]]);
        sum = fma(load(reinterpret_cast<const float*>(values + at * sizeof(float))), x, sum);
      }
      // 8 is a multiple of every group: lane l belongs to row l % group, and `at` to row 0.
      if (group == 8) return store(sums, sum);
      __m128 four = _mm_add_ps(_mm256_castps256_ps128(sum), _mm256_extractf128_ps(sum, 1));
      if (group < 4) four = _mm_add_ps(four, _mm_movehl_ps(four, four));
      if (group < 2) four = _mm_add_ss(four, _mm_movehdup_ps(four));
      _mm_storeu_ps(sums, four);
      for (; at < end; ++at) {
        float value;
        __builtin_memcpy(&value, values + at * sizeof value, sizeof value);
        sums[at % group] += value * x_[indices[at]];
      }
    }

   private:
    const float* x_;
  };
};

#include "sparse_matmul/store.h"

#include "sparse_matmul/strips.h"
#include "sparse_matmul/tile.h"

}  // namespace

const Kernels& avx2_kernels() {
  static constexpr Kernels kernels = {
      Lane::lanes,
      pack,
      vector_method(),
      1,
      tile_method(),
      {direct_method<Four, 4>(), direct_method<Lane, 8>(), direct_method<Lane, 16>()},
      {{}, {}, columns_method<Lane, 16, 12>()},
      {rows_method<4, 2>(), rows_method<8, 1>(), {}},
      {0, 0, SIZE_MAX}};
  return kernels;
}

}  // namespace graphopt::sparse_matmul
