#include "sparse_int8/conv.h"

#include <algorithm>

#include "sparse_int8/held.h"
#include "sparse_int8/run.h"

namespace graphopt::sparse_int8 {
namespace {

constexpr int64_t max_size = int64_t{1} << 30;
constexpr size_t max_elements = size_t{1} << 40;
constexpr size_t task_bytes = 8 * 1024;  // of planes: about a microsecond

bool inside(const int64_t* values, size_t count, int64_t low, int64_t high) {
  return std::all_of(values, values + count, [&](int64_t v) { return v >= low && v <= high; });
}

size_t panels_of_group(const PackedWeights& w, size_t outputs, size_t group) {
  return (outputs / group + w.panel - 1) / w.panel;
}

size_t ceil_div(size_t value, size_t by) { return (value + by - 1) / by; }
size_t round_up(size_t value, size_t step) { return (value + step - 1) / step * step; }

}  // namespace

const char* problem_of(const ConvAttributes& a, const PackedWeights& w) {
  if (!inside(a.kernel, 2, 1, max_size)) return "kernel_shape must have two numbers of 1 or more";
  if (!inside(a.strides, 2, 1, max_size)) return "strides must have two numbers of 1 or more";
  if (!inside(a.dilations, 2, 1, max_size)) return "dilations must have two numbers of 1 or more";
  if (!inside(a.pads, 4, 0, max_size)) return "pads must have four numbers of 0 or more";
  if (a.outputs < 1 || a.outputs > max_size || a.group < 1 || a.outputs % a.group != 0)
    return "N must be 1 or more, and a multiple of group";
  const size_t outputs = static_cast<size_t>(a.outputs), group = static_cast<size_t>(a.group);
  const size_t begin = panels_of_group(w, outputs, group) * w.panel;
  if ((group - 1) * begin + outputs / group != w.n) return "the packed weight does not have N outputs in so many groups";
  if (w.k % static_cast<size_t>(a.kernel[0] * a.kernel[1]) != 0)
    return "the rows of the packed weight are not a multiple of the size of the kernel";
  return nullptr;
}

int64_t out_size(int64_t size, int64_t kernel, int64_t stride, int64_t dilation, int64_t pads) {
  const int64_t reach = dilation * (kernel - 1) + 1, padded = size + pads;
  return padded < reach ? 0 : (padded - reach) / stride + 1;
}

const char* shape_of(const ConvAttributes& a, const PackedWeights& w, const int64_t (&x)[4], ConvShape* out) {
  const size_t taps = static_cast<size_t>(a.kernel[0] * a.kernel[1]);
  if (x[1] != static_cast<int64_t>(w.k / taps) * a.group) return "X does not have the channels of the weight";
  if (!inside(x + 2, 2, 0, max_size)) return "X is too large";
  const int64_t rows = out_size(x[2], a.kernel[0], a.strides[0], a.dilations[0], a.pads[0] + a.pads[2]);
  const int64_t columns = out_size(x[3], a.kernel[1], a.strides[1], a.dilations[1], a.pads[1] + a.pads[3]);
  if (rows < 1 || columns < 1) return "the kernel is larger than X with its padding";
  const auto size = [](int64_t v) { return static_cast<size_t>(v); };
  ConvShape s{};
  s.batch = size(x[0]), s.channels = size(x[1]), s.height = size(x[2]), s.width = size(x[3]);
  s.outputs = size(a.outputs), s.group = size(a.group), s.channels_last = a.channels_last != 0;
  s.kernel_h = size(a.kernel[0]), s.kernel_w = size(a.kernel[1]);
  s.stride_h = size(a.strides[0]), s.stride_w = size(a.strides[1]);
  s.dilation_h = size(a.dilations[0]), s.dilation_w = size(a.dilations[1]);
  s.pad_top = size(a.pads[0]), s.pad_left = size(a.pads[1]), s.pad_bottom = size(a.pads[2]), s.pad_right = size(a.pads[3]);
  s.out_h = size(rows), s.out_w = size(columns);
  s.rows = (s.height + s.pad_top + s.pad_bottom + s.stride_h - 1) / s.stride_h;
  s.pitch = (s.width + s.pad_left + s.pad_right + s.stride_w - 1) / s.stride_w;
  if (s.rows * s.pitch > max_elements / (s.stride_h * s.stride_w)) return "X with its padding is too large";
  s.plane = s.rows * s.pitch * s.stride_h * s.stride_w;
  s.positions = (s.out_h - 1) * s.pitch + s.out_w;
  if (s.batch != 0 && s.channels * s.plane > max_elements / s.batch) return "X with its padding is too large";
  *out = s;
  return nullptr;
}

ConvWork::ConvWork(const Conv& call, const Kernels& kernels) : call_(call), kernels_(kernels), serial_(next_serial()) {
  const ConvShape& s = call.shape;
  const bool as_it_is = s.pitch == s.width && s.rows == s.height && s.stride_h * s.stride_w == 1;
  in_place_ = call.bytes != nullptr && kernels.plain_bytes && as_it_is;
  offset_bytes_ = round_up(call.w->k * sizeof(size_t), 64);
  vectors_ = (s.positions + kernels.lanes - 1) / kernels.lanes;
  const size_t most = vectors_for(*call.w, kernels, vectors_);
  tiles_ = (vectors_ + most - 1) / most;
  // All channels of some rows where tiles are many, so that the thread which reads them mostly wrote them: what another
  // core wrote comes from its cache. On one thread longer pieces of a channel are a little faster.
  const bool by_rows = s.stride_h == 1 && tiles_ >= 8;
  channels_per_task_ = by_rows ? s.channels : std::max<size_t>(1, task_bytes / s.plane);
  rows_per_task_ =
      by_rows ? ceil_div(2 * task_bytes, s.channels * s.pitch * s.stride_w) : std::max<size_t>(1, s.height);
  const size_t ranges = std::max<size_t>(1, ceil_div(s.height, rows_per_task_));  // without rows there is still padding
  plane_tasks_ = ranges * ceil_div(s.channels, channels_per_task_);
  panels_ = panels_of_group(*call.w, s.outputs, s.group);
}

void ConvWork::use(unsigned char* memory) {
  const ConvShape& s = call_.shape;
  offsets_ = reinterpret_cast<size_t*>(memory);
  written_ = memory + offset_bytes_;
  planes_ = in_place_ ? call_.bytes : written_;
  const size_t channels = s.channels / s.group, taps = s.kernel_h * s.kernel_w;
  const size_t tap_step = s.channels_last ? channels : 1;
  for (size_t tap = 0; tap < taps; ++tap) {
    const size_t row = tap / s.kernel_w * s.dilation_h, column = tap % s.kernel_w * s.dilation_w;
    const size_t phase = row % s.stride_h * s.stride_w + column % s.stride_w;
    offsets_[tap * tap_step] = (phase * s.rows + row / s.stride_h) * s.pitch + column / s.stride_w;
  }
  // The other channels, in the order in which they lie.
  if (s.channels_last) {
    for (size_t tap = 0; tap < taps; ++tap) {
      for (size_t c = 1; c < channels; ++c) offsets_[tap * channels + c] = offsets_[tap * channels] + c * s.plane;
    }
  } else {
    for (size_t c = 1; c < channels; ++c) {
      for (size_t tap = 0; tap < taps; ++tap) offsets_[c * taps + tap] = offsets_[tap] + c * s.plane;
    }
  }
}

size_t ConvWork::Planes::tasks() const { return work->in_place_ ? 0 : work->call_.shape.batch * work->plane_tasks_; }

bool ConvWork::Planes::run(size_t task) const {
  const ConvShape& s = work->call_.shape;
  const size_t groups = ceil_div(s.channels, work->channels_per_task_), image = task / work->plane_tasks_;
  const size_t part = task % work->plane_tasks_;
  const size_t row = part / groups * work->rows_per_task_, first = part % groups * work->channels_per_task_;
  const size_t end = std::min(row + work->rows_per_task_, s.height);
  for (size_t c = first; c < std::min(first + work->channels_per_task_, s.channels); ++c)
    work->kernels_.fill_plane(work->call_, image, c, row, end, work->written_ + (image * s.channels + c) * s.plane);
  return true;
}

size_t ConvWork::Sums::tasks() const {
  return work->call_.shape.batch * work->call_.shape.group * work->tiles_ * work->panels_;
}

bool ConvWork::Sums::run(size_t task) const {
  const Conv& call = work->call_;
  const PackedWeights& w = *call.w;
  const ConvShape& s = call.shape;
  const Kernels& kernels = work->kernels_;
  const size_t local = task % work->panels_, place = task / work->panels_;
  const size_t tile = place % work->tiles_, group = place / work->tiles_ % s.group;
  const size_t image = place / work->tiles_ / s.group;
  const size_t begin = share_begin(work->vectors_, tile, work->tiles_);
  const size_t end = share_begin(work->vectors_, tile + 1, work->tiles_);
  const size_t f0 = begin * kernels.lanes;
  const unsigned width = static_cast<unsigned>((end - begin) * kernels.lanes);
  const unsigned count = static_cast<unsigned>(std::min<size_t>(width, s.positions - f0));

  Held& held = Held::of_this_thread();
  if (held.reserve(w, width, kernels.lanes) == nullptr) return false;
  if (held.is_new(work->serial_, place)) {
    const unsigned char* planes = work->planes_ + (image * s.channels + group * (s.channels / s.group)) * s.plane;
    // Beyond the last position lies what no output shows; in x itself there may be no more memory.
    kernels.pack_positions(w, planes, work->offsets_, f0, work->in_place_ ? count : width, width, held.tile);
  }
  const size_t panel = group * work->panels_ + local;
  kernels.panel(w, panel, call.grid.zero_point, held.tile, width, Region{}, held.starts, held.sums);
  kernels.finish_planes(call, image, group, f0, count, width, panel, held.sums, held.factors);
  return true;
}

}  // namespace graphopt::sparse_int8
