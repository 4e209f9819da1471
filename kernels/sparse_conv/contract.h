// What every implementation of SparseConv computes, and the packed weight it reads. Plain C types only: the files built
// for wide instruction sets include nothing else, so that no shared inline code is ever compiled with their flags.
//
//   y[n, o, p] = act(sum over i, t of x[n, i, source(p, t)] * w[o, i, t] + bias[o] + residual[n, o, p])        fp32
//
// as ONNX Conv has it: 1-D or 2-D, any kernel, strides, pads, dilations and groups; t are the taps of the kernel. Taps
// that lie in the padding add nothing. Only entries of w that are not zero take part (in blocks of several output
// channels: whole blocks), so an infinity or NaN in x reaches exactly the outputs whose entries meet it. NaN and
// infinite weights are entries like any other; activations let NaN pass. Products are accumulated in fp32 in the order
// of the entries, fused where the instruction set has FMA: the result depends neither on the number of threads nor on
// the width of the vectors. Denormals follow the floating-point mode of the calling thread.
//
// Tensors are planes of floats, one per image and channel, in one of two layouts:
//   nchw    planes of height * width floats, one behind the other
//   padded  planes of padded_plane(height * width) floats: whole vectors; what lies behind the image is zero
#pragma once
#include <stddef.h>
#include <stdint.h>

#include "base/activation.h"

namespace graphopt::sparse_conv {

constexpr size_t padded_unit = 16;
// Planes whose distance is a multiple of 1 KiB would compete for few sets of the caches.
constexpr size_t padded_plane(size_t positions) {
  const size_t whole = (positions + padded_unit - 1) / padded_unit * padded_unit;
  return whole % 256 == 0 && whole != 0 ? whole + padded_unit : whole;
}

// Rows of one run are stored interleaved in groups of this many; the rest in a group of 4, of 2 and of 1 as needed.
constexpr unsigned group_rows = 8;
constexpr size_t group_of(size_t rows_left) {
  return rows_left >= group_rows ? group_rows : rows_left >= 4 ? 4 : rows_left >= 2 ? 2 : 1;
}
constexpr size_t max_k_block = 65536;     // an index within a K-block is a uint16
constexpr size_t max_panel_rows = 65535;  // a row within a panel is a uint16
constexpr size_t max_block = 8;

// The packed weight. Within a group of the convolution (`groups`) it is a matrix of rows x k. A row is `block`
// consecutive output channels (1, 4 or 8; channels that are missing in the last row of a group have zeros), and
// k = input channel of the group * taps + tap. The matrix is cut into panels of `panel_rows` rows and K-blocks of
// `k_block` columns; part = (group * panels + panel) * k_blocks + K-block. A part lists every row of its panel once;
// rows with equally many entries form a run. Where block is 1, groups of rows (group_of) of a run hold their entries
// interleaved: entry j of row r of a group of g rows lies at j * g + r. Else the rows of a run lie one behind the other.
// An entry is an index, k within its K-block, and `block` values. All pointers may be unaligned.
struct PackedConv {
  size_t out_channels, groups;  // in all
  size_t in_channels;           // of one group
  size_t kernel_h, kernel_w;
  size_t block, rows;  // rows of one group
  size_t k, k_block, k_blocks;
  size_t panel_rows, panels;  // panels of one group
  size_t entries;
  const unsigned char* parts;    // groups * panels * k_blocks + 1 records of part_bytes
  const unsigned char* runs;     // {uint32 entries per row, uint32 rows}
  const unsigned char* listed;   // uint16 row within the panel
  const unsigned char* indices;  // uint16
  const unsigned char* values;   // float[block]

  size_t taps() const { return kernel_h * kernel_w; }
  size_t group_out() const { return out_channels / groups; }
};
constexpr size_t part_bytes = 16;  // {uint64 first entry, uint32 first run, uint32 first listed row}
constexpr size_t run_bytes = 8;    // {uint32 entries per row, uint32 rows}

struct Shape {
  size_t images, in_h, in_w, in_plane, out_h, out_w, out_plane;
  size_t stride_h, stride_w, pad_top, pad_left, dilation_h, dilation_w;
};

struct Call {
  const PackedConv* w;
  Shape shape;
  const float* x;
  float* y;
  const float* bias;      // [out_channels] or nullptr
  const float* residual;  // as y, or y itself, or nullptr
  Epilogue epilogue;
};

// Where k reads: `offset` floats from a position, wherever the mask of `tap` has the position's bit.
struct Source {
  int32_t offset;
  uint32_t tap;
};

constexpr unsigned max_tile = 64;  // positions of a tile; a mask has one bit for each

// The inputs of one tile and K-block, copied so that vectors are aligned and taps outside of the image are zero:
// tile[k - k_first][units * unit].
struct Gather {
  const float* x;  // at the tile's first position in the plane of the group's first channel
  const Source* sources;
  const uint64_t* masks;
  size_t k_first, k_end;
  unsigned units;
  float* tile;
};

// One part of w against one tile.
struct Sweep {
  const PackedConv* w;
  size_t part;
  unsigned units;  // width of the tile, as Kernels::unit counts
  unsigned count;  // positions of the tile that exist; less than `unit` are missing

  // Where index i of the part reads: x + i * stride, or, if there are sources, where sources[i] says; without masks
  // at every position.
  const float* x;
  size_t stride;
  const Source* sources;
  const uint64_t* masks;

  bool first, last;    // K-block of the panel
  size_t channels;     // of the panel, without those that are missing
  const float* bias;   // of the panel, or nullptr
  float* sums;         // [rows * block of the panel][units * unit], kept from the first to the last K-block
  float* y;            // at the panel's first channel and the tile's first position
  const float* residual;
  size_t y_plane;      // from channel to channel, of the residual too
  uint64_t valid;      // 0, or the positions that the output has, one bit each: the others are left out of y
  size_t zeros;        // floats behind the tile's positions in a plane of y that become zero
  bool fetches;        // the memory of outputs and residuals is asked for ahead
  float low, high;     // bounds of the result
};

// One implementation.
struct Kernels {
  const char* name;
  unsigned unit;             // positions of a tile come in multiples of this
  unsigned vector_units;     // units of a whole vector; tiles start at multiples of a vector
  unsigned max_units[3];     // of a tile, where a row is 1, 4, 8 channels; at most max_tile positions
  bool masked;               // rows of several channels are swept with sources and masks; else never with masks
  bool compact;              // sweeps leave positions out of y, and rows of several channels take sources without masks
  // Copies rows to a distance of `pitch` >= `width` floats and fills what lies between them with zeros.
  void (*space)(const float* rows, size_t count, size_t width, size_t pitch, float* to);
  void (*gather)(const Gather&);
  void (*sweep)(const Sweep&);
  void (*activate)(float* values, size_t count, const Epilogue&);
};

const Kernels& scalar_kernels();
#if defined(GRAPHOPT_X86)
const Kernels& avx2_kernels();
const Kernels& avx512_kernels();
#endif
#if defined(GRAPHOPT_ARM64)
const Kernels& neon_kernels();
#endif

}  // namespace graphopt::sparse_conv
