// SparseMatMul for AVX-512 (F, BW, DQ, VL).
#include <immintrin.h>

#include "sparse_matmul/contract.h"

namespace graphopt::sparse_matmul {
namespace {

struct Lane {
  using Vec = __m512;
  static constexpr unsigned lanes = 16;
  static Vec zero() { return _mm512_setzero_ps(); }
  static Vec set1(float a) { return _mm512_set1_ps(a); }
  static Vec load(const float* at) { return _mm512_loadu_ps(at); }
  static void store(float* at, Vec a) { _mm512_storeu_ps(at, a); }
  static Vec fma(Vec a, Vec b, Vec c) { return _mm512_fmadd_ps(a, b, c); }
  // The second operand is returned if either is NaN: NaN passes.
  static Vec relu(Vec a) { return _mm512_max_ps(_mm512_setzero_ps(), a); }

  template <bool with_relu>
  static void transpose(const float* src, size_t ld_src, unsigned rows, float* dst, size_t ld_dst) {
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
    for (unsigned i = 0; i < 16; ++i) store(dst + i * ld_dst, with_relu ? relu(r[i]) : r[i]);
  }

  static void dot_group(const float* x, const unsigned char* indices, const unsigned char* values, size_t end, float* sums) {
    __m256 sum = _mm256_setzero_ps();
    for (size_t at = 0; at < end; at += group_rows) {
      const unsigned char* i = indices + at;
      const __m256 gathered = _mm256_setr_ps(x[i[0]], x[i[1]], x[i[2]], x[i[3]], x[i[4]], x[i[5]], x[i[6]], x[i[7]]);
      sum = _mm256_fmadd_ps(_mm256_loadu_ps(reinterpret_cast<const float*>(values + at * sizeof(float))), gathered, sum);
    }
    _mm256_storeu_ps(sums, sum);
  }
};

#include "sparse_matmul/tile.h"

}  // namespace

const Kernels& avx512_kernels() {
  static constexpr Kernels kernels = {Lane::lanes, 4 * Lane::lanes, pack, panel, vector};
  return kernels;
}

}  // namespace graphopt::sparse_matmul
