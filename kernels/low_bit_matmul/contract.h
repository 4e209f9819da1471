// What every implementation of LowBitMatMul computes, and the packed matrix it reads. Plain C types only: the files
// built for wide instruction sets include nothing else, so that no shared inline code is ever compiled with their flags.
//
//   y[m, n] = act(sum over k of x[m, k] w[k, n] + bias[n] + residual[m, n])        x, y fp32, row-major, dense
//   w[k, n] = scale[b, n] * (level[c[k, n]] - zero[b, n])                          b = k / block
//
// c is a code of 8, 4, 3, 2 or 1 bits. Its level is the code itself (8 to 2 bits), 2 c (1 bit, so that -1 and 1 are the
// levels 0 and 2 around the zero 1), or its place in a book of up to sixteen numbers.
//
// Activations as floats: w is restored in fp32, level - zero rounded, times scale rounded (or level * scale + offset
// where offsets are stored), and products are summed in fp32 in the order of k, fused where the instruction set has FMA.
//
// Activations as int8: each block of each row is rounded to q = round-half-even(x * (127 / a)), a its largest magnitude,
// with the factor in fp32, and
//   y[m, n] = act(sum over b of (a / 127) scale[b, n] (sum over k in b of q level - zero sum of q) + ...)
// The inner sums are exact integers. The outer one is fp32 in the order of b. So a result depends on its row alone, not
// on the rows beside it nor on threads. A block whose a is below 2^-100 counts as zeros. A row with an infinity or NaN
// anywhere is NaN throughout.
//
// NaN passes through every activation.
#pragma once
#include <stddef.h>
#include <stdint.h>

#include "base/activation.h"

namespace graphopt::low_bit_matmul {

constexpr unsigned panel_columns = 64;  // outputs of one stream
constexpr unsigned max_block = 1024;    // keeps every integer sum below 2^31
constexpr unsigned book_size = 16;

// constant: one small integer for the whole matrix. bytes: an integer of 0..255 per block and output. offsets: the float
// -scale * zero per block and output.
enum class Zeros : unsigned { constant = 0, bytes = 1, offsets = 2 };
// bytes: a book of integers 0..255. floats: of any finite numbers, for activations as floats only.
enum class Levels : unsigned { codes = 0, bytes = 1, floats = 2 };

// For each panel of 64 outputs one stream; in it for each block: float scale[64]; zeros: nothing, uint8 zero[64], or
// float offset[64]; the codes. Inputs go in chunks of 32 (of 16 in blocks of 16), in a chunk in groups of four. A row of
// codes is 256 bytes, byte 4 n + i for output n and input i of a group; a byte holds 8 / bits groups, the first in the
// lowest bits. A chunk has the rows its groups need; of 3 bits, rows for the two low bits are followed by one for the
// high bit. K is padded to whole blocks and N to whole panels with codes that nobody may rely on: x is 0 there, and
// outputs from N on are not stored. All pointers may be unaligned, all numbers are little-endian.
struct PackedMatrix {
  size_t k, n;
  unsigned bits;
  size_t block, blocks;  // inputs of a block: 16 (8, 4 or 2 bits), or a multiple of 32
  size_t panels;
  Zeros zeros;
  int zero;  // the constant one
  Levels levels;
  float book[book_size];
  const unsigned char* streams;
};

constexpr size_t zeros_bytes(Zeros zeros) {
  return zeros == Zeros::constant ? 0 : zeros == Zeros::bytes ? panel_columns : panel_columns * sizeof(float);
}
constexpr size_t block_bytes(const PackedMatrix& w) {
  return panel_columns * sizeof(float) + zeros_bytes(w.zeros) + w.block * panel_columns * w.bits / 8;
}

struct Call {
  const PackedMatrix* w;
  const float* x;         // [m, k]
  float* y;               // [m, n]
  const float* bias;      // [n] or nullptr
  const float* residual;  // [m, n] or nullptr
  size_t m;
  Epilogue epilogue;
};

// Rows of x rounded to int8. They are cut evenly into tiles; a tile is a record for each block: float scale[rows],
// int32 sum[rows] of the q, and int8 q[block / 4][rows][4]. Where the zero is constant, the sums are multiplied with what
// it takes off every code (sum_factor in tile.h), so that integer sums may start there.
struct Rounded {
  unsigned char* tiles;  // aligned to 64
  size_t m0, rows;       // of x
  size_t count;          // of tiles
  size_t stride;         // bytes from tile to tile, a multiple of 64

  constexpr size_t start(size_t tile) const { return tile * rows / count; }
  constexpr unsigned size(size_t tile) const { return static_cast<unsigned>(start(tile + 1) - start(tile)); }
};
constexpr size_t record_bytes(const PackedMatrix& w, size_t rows) { return rows * (8 + w.block); }
constexpr size_t records_bytes(const PackedMatrix& w, size_t rows) {
  return (w.blocks * record_bytes(w, rows) + 63) / 64 * 64;
}

struct Kernels {
  unsigned max_rows;         // of a tile
  unsigned max_float_rows;   // that panel_float takes at once
  unsigned max_lookup_rows;  // of calls that look up; 0 if none do
  // Rounds the rows of one tile.
  void (*round)(const Call& call, const Rounded& x, size_t tile);
  // y[rows of the tiles first .. end, the columns of the panels panel .. panel_end].
  void (*panels)(const Call& call, const Rounded& x, size_t first, size_t end, size_t panel, size_t panel_end);
  // y[m0 .. m0 + rows, the columns of one panel] with activations as floats.
  void (*panel_float)(const Call& call, size_t m0, unsigned rows, size_t panel);
};

// Whether the sums of so many rounded rows are looked up in tables (lookup_avx512.h): each row is a tile, and its tables,
// of lookup_bytes for each of its inputs, follow its records. The tables of all rows stay in L2, and there are outputs
// enough to be worth making them.
constexpr size_t lookup_bytes = 16;
constexpr size_t lookup_inputs = size_t{1} << 15;
constexpr unsigned lookup_panels = 4;  // at once
constexpr unsigned min_lookup_panels = 8;
constexpr bool looks_up(const PackedMatrix& w, const Kernels& kernels, size_t rows) {
  return w.bits == 1 && rows <= kernels.max_lookup_rows && rows * w.blocks * w.block <= lookup_inputs &&
         w.panels >= min_lookup_panels;
}

const Kernels& scalar_kernels();
#if defined(GRAPHOPT_X86)
const Kernels& avx2_kernels();
#if defined(GRAPHOPT_HAS_AVXVNNI)
const Kernels& avxvnni_kernels();
#endif
const Kernels& avx512vnni_kernels();
#elif defined(GRAPHOPT_ARM64)
const Kernels& neon_kernels();
const Kernels& dotprod_kernels();
#endif

}  // namespace graphopt::low_bit_matmul
