// What every implementation of the sparse int8 operators computes, and the packed weights they read. Plain C types only:
// the files built for wide instruction sets include nothing else of the library.
//
// x is rounded to bytes on a grid of one scale s and zero point z, or is given as such bytes:
//   q[m, k] = min(max(round(x[m, k] / s), -z), 255 - z) + z          round: to the nearest, ties to even; NaN gives 0
// A grid that is not given is that of DynamicQuantizeLinear: with low = min(0, least x) and high = max(0, largest x),
// NaN left out, s = (high - low) / 255, or 1 where they are equal, and z = round(min(max(-low / s, 0), 255)).
//
//   sum[m, n] = fix[n] + sum over k of (q[m, k] - z) w[k, n]           in int32, modulo 2^32
//   v[m, n] = act(float(sum) * (s * scale[n]) + bias[n] + residual[m, n])       every operation rounded to fp32, none fused
// The output is v, or v rounded to bytes on the output's grid (t, u) like x above. Where there is neither bias nor
// residual and act is none or a clip, the bytes come straight from the sum:
//   y[m, n] = min(max(round(float(sum) * (s * scale[n] / t)), low), high) + u, low and high the bounds of act and of the
// bytes on the output's grid. That is how ONNX Runtime's QLinearMatMul and QLinearConv round.
//
// Every instruction set gives the same bits, those of silu and gelu apart; no result depends on threads.
#pragma once
#include <stddef.h>
#include <stdint.h>

#include "base/activation.h"

namespace graphopt::sparse_int8 {

constexpr size_t max_k = 65536;     // |sum| < 2^31: 65536 * 255 * 128
constexpr size_t max_panel = 1024;  // bounds the scratch memory of a task
constexpr unsigned step_bytes = 16;

// The packed matrix w, cut into panels of `panel` outputs (columns of w) and K-blocks of `k_block` rows;
// block = panel * k_blocks + K-block. A unit is what shares its places that are not zero: one output (blocks of 1 x 4),
// or four side by side (4 x 4). Rows of w go in fours: four weights of an output meet four bytes of x in one dot product.
// In a block, groups of 4 / unit units have equally many steps. A step is for each unit of the group one four of rows,
// as its place within the K-block (uint16), and its weights: 16 bytes [unit][output of the unit][k]. Shorter units are
// filled up with zero weights; a group that is not full names `panel / unit` as its missing units.
// The first K-block lists every unit once, the others list no unit twice. All pointers may be unaligned, all numbers are
// little-endian.
struct PackedWeights {
  size_t k, n;
  size_t padded_n;  // n rounded up to 4
  unsigned unit;    // 1 or 4
  unsigned group;   // 4 / unit
  size_t k_block;   // a multiple of 4
  size_t k_blocks;
  size_t panel;  // a multiple of 16
  size_t panels;
  size_t steps;
  const unsigned char* scales;   // float[padded_n]
  const unsigned char* fixes;    // int32[padded_n]: the bias on the grid of the sums
  const unsigned char* totals;   // int32[padded_n]: sum over k of w
  const unsigned char* blocks;   // panels * k_blocks + 1 records {uint64 first step, uint64 first group}
  const unsigned char* groups;   // {uint16 steps, uint16 unit[group]}
  const unsigned char* indices;  // uint16[group] per step
  const unsigned char* values;   // step_bytes per step
};
constexpr size_t block_bytes = 16;
constexpr size_t group_bytes(unsigned group) { return 2 + 2 * size_t{group}; }

struct Grid {
  float scale;
  int32_t zero_point;  // 0..255
};

// What is done to sums has its bounds in `low` and `high` for every activation up to clip.
constexpr Epilogue with_bounds(const Epilogue& e) {
  switch (e.activation) {
    case Activation::none: return {e.activation, -__builtin_inff(), __builtin_inff()};
    case Activation::relu: return {e.activation, 0.0f, __builtin_inff()};
    case Activation::relu6: return {e.activation, 0.0f, 6.0f};
    default: return e;
  }
}

// What becomes of the sums.
struct Output {
  const float* bias;      // [n] or nullptr
  const float* residual;  // like y, or nullptr
  float* floats;          // one of the two
  unsigned char* bytes;
  Grid grid;  // of the bytes
  Epilogue epilogue;  // with its bounds
};

// y[m, n] of x[m, k], both row-major.
struct MatMul {
  const PackedWeights* w;
  const float* floats;  // one of the two
  const unsigned char* bytes;
  Grid grid;
  size_t m;
  Output y;
};

// Sizes of a convolution of [batch, channels, height, width]; k counts (channel of the group, row, column of the
// kernel), or (row, column, channel) with channels_last. The outputs of a group begin at a multiple of w->panel among those of w.
//
// Every channel is laid out as stride_h * stride_w planes of `rows` x `pitch` bytes, padding included, which hold what
// lies at each remainder of row and column: then output f = row * pitch + column reads byte f + offset[k] of each k,
// whatever the stride, and the sums of all f from 0 to `positions` are computed, those between the rows of the output
// to no use.
struct ConvShape {
  size_t batch, channels, height, width, outputs, group;
  bool channels_last;
  size_t kernel_h, kernel_w, stride_h, stride_w, dilation_h, dilation_w, pad_top, pad_left, pad_bottom, pad_right;
  size_t out_h, out_w;
  size_t rows, pitch, plane;  // plane: bytes of a channel
  size_t positions;
};

struct Conv {
  const PackedWeights* w;
  const float* floats;  // one of the two
  const unsigned char* bytes;
  Grid grid;
  ConvShape shape;
  Output y;
};

// Memory that will be stored to: `rows` rows of `bytes` bytes, `stride` bytes apart.
struct Region {
  const void* first;
  size_t rows, bytes, stride;
};

// One implementation. A tile p[k / 4][width][4] holds `width` rows of x, a multiple of `lanes` and at most
// lanes * max_vectors(unit).
struct Kernels {
  const char* name;  // of the instruction set
  unsigned lanes;
  unsigned max_vectors[2];  // for units of 1 and of 4
  // Least and largest number of x, NaN left out; low and high are read first.
  void (*range)(const float* x, size_t count, float* low, float* high);
  // x[m0 .. m0 + rows, :] -> p, zeros for what is missing to `width` and to whole fours of k.
  void (*pack_rows)(const MatMul& call, size_t m0, unsigned rows, unsigned width, unsigned char* p);
  // sums[output of the panel][width] for one panel; there is room for 4 outputs more, and for `panel` + 4 starts. The
  // lines of `y`, where they will be stored, are asked for meanwhile.
  void (*panel)(const PackedWeights& w, size_t panel, int32_t zero_point, const unsigned char* p, unsigned width,
                const Region& y, int32_t* starts, int32_t* sums);
  // sums -> y[m0 .. m0 + rows, the outputs of the panel]; there is room for `panel` factors, and as many lines of `lanes`.
  void (*finish_rows)(const MatMul& call, size_t m0, unsigned rows, unsigned width, size_t panel, const int32_t* sums,
                      float* factors, int32_t* lines);
  // Rows first .. end of one channel of one image, as bytes with their padding; all rows where stride_h is not 1.
  void (*fill_plane)(const Conv& call, size_t image, size_t channel, size_t first, size_t end, unsigned char* plane);
  // Positions f0 .. f0 + count of the planes -> p, zeros for what is missing to `width` and to whole fours of k.
  void (*pack_positions)(const PackedWeights& w, const unsigned char* planes, const size_t* offsets, size_t f0,
                         unsigned count, unsigned width, unsigned char* p);
  // sums -> y of one image and group at positions f0 .. f0 + count
  void (*finish_planes)(const Conv& call, size_t image, size_t group, size_t f0, unsigned count, unsigned width,
                        size_t panel, const int32_t* sums, float* factors);
  bool plain_bytes;  // bytes of x are packed as they are
};

const Kernels& scalar_kernels();
#if defined(GRAPHOPT_X86)
const Kernels& avx2_kernels();
const Kernels& avxvnni_kernels();
const Kernels& avx512vnni_kernels();
#elif defined(GRAPHOPT_ARM64)
const Kernels& neon_kernels();
const Kernels& dotprod_kernels();
#endif

}  // namespace graphopt::sparse_int8
