// What every implementation of SparseMatMul computes, and the packed matrix it reads. Plain C types only: the files
// built for wide instruction sets include nothing else, so that no shared inline code is ever compiled with their flags.
//
//   y[m, n] = act(sum over k of x[m, k] * w[k, n] + bias[n] + residual[m, n])      fp32, row-major, x and y dense
//
// Only entries of w take part: where w[k, n] is no entry, x[m, k] is not read for y[m, n], so an infinity or NaN in x
// reaches exactly the outputs that have an entry there. Entries are the weights that are not zero (of either sign), NaN
// and infinities among them; in the block forms all weights of a block of which one is not zero. Activations:
// base/activation.h. Products are accumulated in fp32 in an order that depends on the instruction set and on m, fused
// where the set has FMA; it does not depend on threads. Denormals follow the floating-point mode of the calling thread.
#pragma once
#include <stddef.h>
#include <stdint.h>

#include "base/activation.h"

namespace graphopt::sparse_matmul {

// The packed matrix w^T, N rows of K. All pointers may be unaligned, all numbers are little-endian.
//
// Unstructured (block_rows 1): cut into blocks of `panel_rows` x `k_block`; block = panel * k_blocks + k-block. In a
// block, rows with equally many entries form a run; a row is in one run, or in none if it has no entries. Within a run,
// groups of rows (group_of) hold their entries interleaved: entry j of row r of a group of g rows lies at j * g + r.
//
// Blocks (block_rows R = 4, 8 or 16): rows go together in strips of R, the last one filled up with zeros, and an entry
// has one k and the R values of its strip. The entries of a strip follow each other with k rising, cut at multiples of
// `k_block`.
struct PackedMatrix {
  size_t k, n, entries;
  unsigned block_rows;
  size_t k_block, k_blocks;
  size_t panel_rows, panels;     // a panel is the part of w^T that one task takes
  size_t strips;                 // of the block forms
  const unsigned char* blocks;   // unstructured: panels * k_blocks + 1 records of block_bytes
                                 // strips: strips * k_blocks + 1 of {uint64 first entry}
  const unsigned char* runs;     // {uint16 entries per row, uint16 rows}; none for strips
  const unsigned char* rows;     // uint16 row within the panel; none for strips
  const unsigned char* indices;  // k within the K-block: uint8; strips: uint16
  const unsigned char* values;   // float; strips: R of them per entry
};

// Rows of one run are stored interleaved in groups of this many; the rest in a group of 4, of 2 and of 1 as needed.
constexpr unsigned group_rows = 8;
constexpr size_t group_of(size_t rows_left) {
  return rows_left >= group_rows ? group_rows : rows_left >= 4 ? 4 : rows_left >= 2 ? 2 : 1;
}
constexpr size_t block_bytes = 16;  // {uint64 first entry, uint32 first run, uint32 first row}
constexpr size_t run_bytes = 4;
constexpr size_t row_bytes = 2;
constexpr size_t strip_bytes = 8;
constexpr size_t strip_index_bytes = 2;
constexpr unsigned max_k_block = 256;  // an index within a K-block is one byte,
constexpr unsigned max_strip_k_block = 65536;  // of strips two
constexpr unsigned max_panel_rows = 4096;      // bounds the scratch memory of a task
constexpr unsigned tallest_block = 16;         // panels of strips are multiples of it

// Where the method for strips of this height stands in a table.
constexpr int strip_forms = 3;
constexpr int strip_form(unsigned block_rows) { return block_rows == 4 ? 0 : block_rows == 8 ? 1 : 2; }

struct Call {
  const PackedMatrix* w;
  const float* x;         // [m, k]
  float* y;               // [m, n]
  const float* bias;      // [n] or nullptr
  const float* residual;  // [m, n] or nullptr
  size_t m;
  Epilogue epilogue;
};

// Squares of y that `rows` below stores at once: several lines of memory that follow each other.
constexpr unsigned sums_in_lanes = 4;

// One way through the rows of x. A tile is some rows of x; `run` computes what one tile and one panel of w have in y.
struct Method {
  const char* name;
  unsigned most_rows;  // of a tile; 0: there is no such method
  unsigned row_step;   // tiles begin at multiples of it
  // How `run` gets the tile: straight from x, or transposed to p[k][width], width = rows rounded up to `lanes`.
  bool transposed;
  // Rows of sums[n][width] that `run` needs: as many as the panel has, or `sums_in_lanes` vectors, or none.
  enum class Sums : int { none, lanes, panel } sums;
  // y[m0 .. m0 + rows, the columns of one panel]; p and sums are aligned to 64.
  void (*run)(const Call& call, size_t m0, unsigned rows, size_t panel, const float* p, float* sums);
};

// The implementations for one instruction set.
struct Kernels {
  unsigned lanes;
  // x[m0 .. m0 + rows, :] -> p[k][width]; p is aligned to 64 and holds width * (k rounded up to lanes) floats.
  void (*pack)(const Call& call, size_t m0, unsigned rows, float* p);
  // Unstructured: up to `vectors_up_to` rows of x one by one, and tiles.
  Method vector;
  size_t vectors_up_to;
  Method tile;
  // Strips. `direct` takes few rows as they lie in x. `columns` and `rows` both read a transposed tile; a vector holds
  // several columns of y in the one and several rows in the other. Up to `columns_up_to` rows `columns` is the faster.
  Method direct[strip_forms], columns[strip_forms], rows[strip_forms];
  size_t columns_up_to[strip_forms];
};

const Kernels& scalar_kernels();
#if defined(GRAPHOPT_X86)
const Kernels& avx2_kernels();
const Kernels& avx512_kernels();
#elif defined(GRAPHOPT_ARM64)
const Kernels& neon_kernels();
#endif

}  // namespace graphopt::sparse_matmul
