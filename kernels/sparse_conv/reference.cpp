#include "sparse_conv/reference.h"

#include "base/activation_reference.h"
#include "base/blob.h"

namespace graphopt::sparse_conv {
namespace {

// Calls visit(group, row of the group, k, values) for each entry, in the order of the bytes.
template <class Visit>
void for_each_entry(const PackedConv& w, Visit visit) {
  for (size_t part = 0; part < w.groups * w.panels * w.k_blocks; ++part) {
    const unsigned char* here = w.parts + part * part_bytes;
    size_t entry = load_as<uint64_t>(here), listed = load_as<uint32_t>(here + 12);
    const size_t panel = part / w.k_blocks;
    const size_t k0 = part % w.k_blocks * w.k_block, row0 = panel % w.panels * w.panel_rows;
    for (size_t run = load_as<uint32_t>(here + 8), end = load_as<uint32_t>(here + part_bytes + 8); run < end; ++run) {
      const size_t per_row = load_as<uint32_t>(w.runs + run * run_bytes);
      const size_t rows = load_as<uint32_t>(w.runs + run * run_bytes + 4);
      for (size_t first = 0, group = 0; first < rows; first += group) {
        group = w.block == 1 ? group_of(rows - first) : 1;
        for (size_t j = 0; j < per_row; ++j) {
          for (size_t r = 0; r < group; ++r, ++entry) {
            const size_t row = row0 + load_as<uint16_t>(w.listed + (listed + first + r) * 2);
            const size_t k = k0 + load_as<uint16_t>(w.indices + entry * 2);
            visit(panel / w.panels, row, k, w.values + entry * w.block * sizeof(float));
          }
        }
      }
      listed += rows;
    }
  }
}

// x where tap (a, b) of output position (oh, ow) reads; false in the padding.
bool read(const Call& call, const float* plane, size_t oh, size_t ow, size_t a, size_t b, double* out) {
  const Shape& s = call.shape;
  const size_t h = oh * s.stride_h + a * s.dilation_h, w = ow * s.stride_w + b * s.dilation_w;
  if (h < s.pad_top || w < s.pad_left || h - s.pad_top >= s.in_h || w - s.pad_left >= s.in_w) return false;
  *out = static_cast<double>(plane[(h - s.pad_top) * s.in_w + (w - s.pad_left)]);
  return true;
}

double sum_at(const Call& call, size_t image, size_t channel, size_t oh, size_t ow) {
  const PackedConv& w = *call.w;
  double sum = call.bias != nullptr ? static_cast<double>(call.bias[channel]) : 0.0;
  for_each_entry(w, [&](size_t group, size_t row, size_t k, const unsigned char* values) {
    const size_t of_group = channel - group * w.group_out();
    if (channel / w.group_out() != group || of_group / w.block != row) return;
    const size_t in = group * w.in_channels + k / w.taps(), tap = k % w.taps();
    const float* plane = call.x + (image * w.groups * w.in_channels + in) * call.shape.in_plane;
    double x = 0;
    if (read(call, plane, oh, ow, tap / w.kernel_w, tap % w.kernel_w, &x))
      sum += x * static_cast<double>(load_as<float>(values + of_group % w.block * sizeof(float)));
  });
  return sum;
}

}  // namespace

void reference(const Call& call) {
  const Shape& s = call.shape;
  for (size_t plane = 0; plane < s.images * call.w->out_channels; ++plane) {
    float* y = call.y + plane * s.out_plane;
    for (size_t p = 0; p < s.out_h * s.out_w; ++p) {
      double sum = sum_at(call, plane / call.w->out_channels, plane % call.w->out_channels, p / s.out_w, p % s.out_w);
      if (call.residual != nullptr) sum += static_cast<double>(call.residual[plane * s.out_plane + p]);
      y[p] = static_cast<float>(activation_reference(sum, call.epilogue));
    }
    for (size_t p = s.out_h * s.out_w; p < s.out_plane; ++p) y[p] = 0.0f;
  }
}

}  // namespace graphopt::sparse_conv
