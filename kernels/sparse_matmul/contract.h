// What every implementation of SparseMatMul computes, and the packed matrix it reads. Plain C types only: the files
// built for wide instruction sets include nothing else, so that no shared inline code is ever compiled with their flags.
//
//   y[m, n] = act(sum over k of x[m, k] * w[k, n] + bias[n] + residual[m, n])      fp32, row-major, x and y dense
//
// Only entries of w that are not zero take part: where w[k, n] is 0 (of either sign), x[m, k] is not read for y[m, n],
// so an infinity or NaN in x reaches exactly the outputs whose weight there is not zero. NaN and infinite weights are
// entries like any other. Activations: base/activation.h. Products are accumulated in fp32 in an order that depends on the
// instruction set, fused where it has FMA; for one instruction set the result does not depend on threads.
// Denormals follow the floating-point mode of the calling thread.
#pragma once
#include <stddef.h>
#include <stdint.h>

#include "base/activation.h"

namespace graphopt::sparse_matmul {

// Rows of one run are stored interleaved in groups of this many; the rest in a group of 4, of 2 and of 1 as needed.
constexpr unsigned group_rows = 8;
constexpr size_t group_of(size_t rows_left) {
  return rows_left >= group_rows ? group_rows : rows_left >= 4 ? 4 : rows_left >= 2 ? 2 : 1;
}
constexpr unsigned max_k_block = 256;      // an index within a K-block is one byte
constexpr unsigned max_panel_rows = 4096;  // bounds the scratch memory of a task

// The packed matrix w^T, N rows of K, cut into blocks of `panel_rows` x `k_block`; block = panel * k_blocks + k-block.
// In a block, rows with equally many entries form a run; rows without entries are in no run. Within a run, groups of
// rows (group_of) hold their entries interleaved: entry j of row r of a group of g rows lies at j * g + r. All pointers may be unaligned, all numbers are little-endian.
struct PackedMatrix {
  size_t k, n, entries;
  size_t k_block, k_blocks;
  size_t panel_rows, panels;
  const unsigned char* blocks;   // panels * k_blocks + 1 records of block_bytes
  const unsigned char* runs;     // {uint16 entries per row, uint16 rows}
  const unsigned char* rows;     // uint16 row within the panel
  const unsigned char* indices;  // uint8 k within the K-block
  const unsigned char* values;   // float
};
constexpr size_t block_bytes = 16;  // {uint64 first entry, uint32 first run, uint32 first row}
constexpr size_t run_bytes = 4;
constexpr size_t row_bytes = 2;

struct Call {
  const PackedMatrix* w;
  const float* x;         // [m, k]
  float* y;               // [m, n]
  const float* bias;      // [n] or nullptr
  const float* residual;  // [m, n] or nullptr
  size_t m;
  Epilogue epilogue;
};

// One implementation. A tile is `rows` rows of x, transposed to p[k][width], width = rows rounded up to `lanes`.
struct Kernels {
  unsigned lanes;        // columns of a tile come in multiples of this
  unsigned max_width;    // widest tile
  unsigned max_vectors;  // up to so many rows of x go one by one through `vector`
  // x[m0 .. m0 + rows, :] -> p[k][width]; p is aligned to 64 and holds width * (k rounded up to lanes) floats.
  void (*pack)(const Call& call, size_t m0, unsigned rows, float* p);
  // y[m0 .. m0 + rows, the columns of one panel]; sums is aligned to 64 and holds width * (panel_rows rounded up to
  // lanes) floats.
  void (*panel)(const Call& call, size_t m0, unsigned rows, size_t panel, const float* p, float* sums);
  // The same for one row, straight from x.
  void (*vector)(const Call& call, size_t m0, size_t panel);
};

const Kernels& scalar_kernels();
#if defined(GRAPHOPT_X86)
const Kernels& avx2_kernels();
const Kernels& avx512_kernels();
#endif

}  // namespace graphopt::sparse_matmul
