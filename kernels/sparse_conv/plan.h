// How one SparseConv call goes over its planes.
//
// Output positions are taken flat, with a pitch that input rows have too: then a tap reads at a constant distance from
// every position, and a mask per tap and tile says where that is inside of the image. With stride 1 the planes of x have
// such a pitch as they are, unless the output is wider. Else they are rearranged first: into one plane per phase
// (remainder of the coordinates by the strides) that a tap reads. Where rows of several channels are swept, masks cost
// more than to rearrange with zeros around the image, which one tap or another reads instead of the padding.
#pragma once
#include <cstddef>
#include <cstdint>

#include "sparse_conv/contract.h"

namespace graphopt::sparse_conv {

// A tap along one axis: output index o reads index o + shift of the phase, where first <= o < end.
struct AxisTap {
  int64_t shift;
  size_t phase, present;  // the phase, and how many input indices it has
  size_t first, end;
  size_t number;  // of the phase among those that are read, in the order of the taps
};

struct Plan {
  size_t pitch;
  size_t positions;       // flat, with the gaps between rows where the output is narrower than the pitch
  bool narrow;            // there are such gaps
  bool rearranged;        // x is copied into planes of phases first
  size_t row_phases, column_phases;
  size_t plane;           // floats of one plane
  size_t channel_floats;  // of the planes of one channel
  bool direct;            // one tap that is inside everywhere, and planes that vectors may read to the end
  bool masked;            // swept with sources and masks, without a copy
  bool spaced;            // rearranged with so many zeros around that no tap needs a mask
  size_t top;             // rows of zeros above the image, where spaced
  size_t reach;           // floats that the taps read ahead of a position, at most
  size_t tile, tiles;     // positions of a wide tile; tiles of a plane
  size_t wide, step;      // so many tiles are wide, those behind them have `step` positions less
  size_t run, runs;       // tiles that a task goes over, one behind the other; such runs of a plane
  size_t chunk, chunks;   // panels that a task goes over; such ranges of panels of a group
  bool fetches;           // the memory of outputs is asked for ahead
  bool shared;            // several tasks sweep a gathered tile: one leaves it to the next of its thread
  const AxisTap* rows;    // [kernel_h]
  const AxisTap* columns; // [kernel_w]

  bool gathers() const { return !direct && !masked && !spaced; }
  size_t first_of(size_t number) const { return number * tile - (number > wide ? (number - wide) * step : 0); }
};

// `taps` has room for kernel_h + kernel_w. False if a group's planes are too large for the offsets of Source.
bool make_plan(const Call& call, const Kernels& kernels, AxisTap* taps, Plan* out);

// Where every k of a group reads: [w.k].
void fill_sources(const Call& call, const Plan& plan, Source* sources);

// The flat positions from `p` on that are positions of the output, one bit each.
uint64_t valid_positions(const Call& call, const Plan& plan, size_t p);

// The masks of all taps for the positions from `p` on.
void fill_masks(const Call& call, const Plan& plan, size_t p, uint64_t* masks);

// The planes of phases of one channel, as far as rows h .. h_end of x fill them: with strides of 1 these may be any, else
// all. The first rows bring what lies above the image, the last what lies below.
void rearrange(const Call& call, const Kernels& kernels, const Plan& plan, size_t h, size_t h_end, const float* from,
               float* to);

}  // namespace graphopt::sparse_conv
