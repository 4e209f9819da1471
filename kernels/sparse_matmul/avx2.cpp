// SparseMatMul for AVX2 with FMA.
#include <immintrin.h>

#include "sparse_matmul/contract.h"

namespace graphopt::sparse_matmul {
namespace {

#include "base/lane_avx2.h"

#include "base/activation_lane.h"

#include "base/transpose_eight.h"

#include "sparse_matmul/lane_four.h"

struct Lane : FloatLane {
  static constexpr unsigned sums_at_once = 8;

  template <class Sink>
  static void transpose(const float* src, size_t ld_src, unsigned rows, Sink sink) {
    transpose_eight(src, ld_src * sizeof(float), rows, sink);
  }

  static constexpr unsigned stored_rows = lanes;
  template <class Sink>
  static void transpose_stored(const float* src, size_t ld_src, unsigned rows, Sink sink) {
    transpose(src, ld_src, rows, sink);
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

#include "base/ahead.h"
#include "base/common.h"

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
