#include "sparse_conv/geometry.h"

#include <cstdio>

namespace graphopt::sparse_conv {
namespace {

constexpr int64_t limit = int64_t{1} << 31;

bool in_range(const int64_t* values, size_t count, int64_t lowest) {
  for (size_t i = 0; i < count; ++i) {
    if (values[i] < lowest || values[i] >= limit) return false;
  }
  return true;
}

}  // namespace

bool Geometry::read(const Lists& lists, char* message, size_t message_size) {
  const auto refuse = [&](const char* text) {
    std::snprintf(message, message_size, "%s", text);
    return false;
  };
  if (lists.kernels < 1 || lists.kernels > max_axes) return refuse("kernel_shape must have one or two sizes");
  axes = lists.kernels;
  if ((lists.stride_count != 0 && lists.stride_count != axes) ||
      (lists.dilation_count != 0 && lists.dilation_count != axes) || (lists.pad_count != 0 && lists.pad_count != 2 * axes))
    return refuse("strides and dilations must have a number, and pads two, for each size of kernel_shape");
  if (!in_range(lists.kernel, axes, 1) || !in_range(lists.strides, lists.stride_count, 1) ||
      !in_range(lists.dilations, lists.dilation_count, 1) || !in_range(lists.pads, lists.pad_count, 0))
    return refuse("kernel_shape, strides and dilations must be 1 or more, pads 0 or more, and all below 2^31");
  for (size_t i = 0; i < axes; ++i) {
    const size_t at = place(i);
    kernel[at] = lists.kernel[i];
    if (lists.stride_count != 0) strides[at] = lists.strides[i];
    if (lists.dilation_count != 0) dilations[at] = lists.dilations[i];
    if (lists.pad_count != 0) {
      before[at] = lists.pads[i];
      after[at] = lists.pads[i + axes];
    }
  }
  return true;
}

int64_t Geometry::output(size_t axis, int64_t input) const {
  const size_t at = place(axis);
  const int64_t reach = dilations[at] * (kernel[at] - 1) + 1;
  const int64_t padded = input + before[at] + after[at];
  return padded < reach ? -1 : (padded - reach) / strides[at] + 1;
}

bool Geometry::keeps(size_t axis) const {
  const size_t at = place(axis);
  return strides[at] == 1 && before[at] + after[at] == dilations[at] * (kernel[at] - 1);
}

bool Geometry::shape(const int64_t* input, Shape* out) const {
  int64_t in[max_axes] = {1, 1}, made[max_axes] = {1, 1};
  for (size_t i = 0; i < axes; ++i) {
    in[place(i)] = input[i];
    made[place(i)] = output(i, input[i]);
    if (made[place(i)] < 1) return false;
  }
  const auto size = [](int64_t value) { return static_cast<size_t>(value); };
  out->in_h = size(in[0]);
  out->in_w = size(in[1]);
  out->out_h = size(made[0]);
  out->out_w = size(made[1]);
  out->stride_h = size(strides[0]);
  out->stride_w = size(strides[1]);
  out->pad_top = size(before[0]);
  out->pad_left = size(before[1]);
  out->dilation_h = size(dilations[0]);
  out->dilation_w = size(dilations[1]);
  return true;
}

}  // namespace graphopt::sparse_conv
