// The sparse int8 operators as plainly as they can be said: the specification that every implementation is tested
// against. Built without fused operations.
#include "sparse_int8/reference.h"

#include <cmath>

#include "base/activation_reference.h"
#include "base/blob.h"

namespace graphopt::sparse_int8 {
namespace {

// Calls visit(k, n, weight) for each stored weight.
template <class Visit>
void for_each_weight(const PackedWeights& w, Visit visit) {
  for (size_t b = 0; b < w.panels * w.k_blocks; ++b) {
    const unsigned char* here = w.blocks + b * block_bytes;
    uint64_t step = load_as<uint64_t>(here);
    const uint64_t end = load_as<uint64_t>(here + block_bytes + 8);
    for (uint64_t group = load_as<uint64_t>(here + 8); group < end; ++group) {
      const unsigned char* record = w.groups + group * group_bytes(w.group);
      for (const uint64_t last = step + load_as<uint16_t>(record); step < last; ++step) {
        for (size_t i = 0; i < step_bytes; ++i) {
          const size_t u = i / 4 / w.unit, unit = load_as<uint16_t>(record + 2 + 2 * u);
          if (unit == w.panel / w.unit) continue;
          const size_t four = load_as<uint16_t>(w.indices + (step * w.group + u) * 2);
          const size_t k = b % w.k_blocks * w.k_block + four * 4 + i % 4;
          const size_t n = b / w.k_blocks * w.panel + unit * w.unit + i / 4 % w.unit;
          if (k < w.k && n < w.n) visit(k, n, static_cast<signed char>(w.values[step * step_bytes + i]));
        }
      }
    }
  }
}

}  // namespace

Grid reference_grid(const float* x, size_t count) {
  float low = 0, high = 0;
  for (size_t i = 0; i < count; ++i) {
    if (x[i] < low) low = x[i];
    if (x[i] > high) high = x[i];
  }
  const float scale = low == high ? 1.0f : (high - low) / 255.0f;
  const float zero_point = 0.0f - low / scale;
  return {scale, !(zero_point < 255.0f) ? 255 : zero_point > 0 ? static_cast<int32_t>(std::nearbyint(zero_point)) : 0};
}

unsigned char reference_byte(float v, const Grid& grid) {
  const float scaled = v / grid.scale;
  if (!(scaled > static_cast<float>(-grid.zero_point))) return 0;
  if (scaled > static_cast<float>(255 - grid.zero_point)) return 255;
  return static_cast<unsigned char>(static_cast<int>(std::nearbyint(scaled)) + grid.zero_point);
}

namespace {

// One output of a sum: its float, or its byte as a float.
float reference_output(const PackedWeights& w, const Grid& x, const Output& y, size_t n, int32_t sum, size_t channel,
                       size_t at) {
  const float factor = x.scale * load_as<float>(w.scales + n * 4);
  const Epilogue& e = y.epilogue;
  if (y.bytes && !y.bias && !y.residual && e.activation <= Activation::clip) {
    const float v = static_cast<float>(sum) * (factor / y.grid.scale);
    const float least = static_cast<float>(-y.grid.zero_point), most = static_cast<float>(255 - y.grid.zero_point);
    const auto inside = [&](float bound) { return bound < least ? least : bound > most ? most : bound; };
    const float low = e.activation == Activation::none ? least : inside(e.low / y.grid.scale);
    const float high = e.activation == Activation::none ? most : inside(e.high / y.grid.scale);
    const float clipped = !(v > low) ? low : v > high ? high : v;
    return std::nearbyint(clipped) + static_cast<float>(y.grid.zero_point);
  }
  float v = static_cast<float>(sum) * factor;
  if (y.bias) v = v + y.bias[channel];
  if (y.residual) v = v + y.residual[at];
  if (e.activation != Activation::none) v = static_cast<float>(activation_reference(static_cast<double>(v), e));
  return y.bytes ? static_cast<float>(reference_byte(v, y.grid)) : v;
}

}  // namespace

void reference(const MatMul& call, unsigned char* bytes, int32_t* sums) {
  const PackedWeights& w = *call.w;
  for (size_t m = 0; m < call.m; ++m) {
    for (size_t k = 0; k < w.k; ++k)
      bytes[k] = call.floats ? reference_byte(call.floats[m * w.k + k], call.grid) : call.bytes[m * w.k + k];
    for (size_t n = 0; n < w.n; ++n) sums[n] = load_as<int32_t>(w.fixes + n * 4);
    for_each_weight(w, [&](size_t k, size_t n, int weight) {
      sums[n] = static_cast<int32_t>(static_cast<uint32_t>(sums[n]) +
                                     static_cast<uint32_t>((bytes[k] - call.grid.zero_point) * weight));
    });
    for (size_t n = 0; n < w.n; ++n) {
      const size_t at = m * w.n + n;
      const float v = reference_output(w, call.grid, call.y, n, sums[n], n, at);
      if (call.y.bytes) {
        call.y.bytes[at] = static_cast<unsigned char>(v);
      } else {
        call.y.floats[at] = v;
      }
    }
  }
}

void reference(const Conv& call, int32_t* sums) {
  const PackedWeights& w = *call.w;
  const ConvShape& s = call.shape;
  const size_t per_group = s.outputs / s.group, begin = (per_group + w.panel - 1) / w.panel * w.panel;
  const size_t taps = s.kernel_h * s.kernel_w, area = s.out_h * s.out_w, channels = s.channels / s.group;
  for (size_t i = 0; i < s.batch * area; ++i) {
    const size_t image = i / area, out_row = i % area / s.out_w, out_column = i % s.out_w;
    for (size_t n = 0; n < w.n; ++n) sums[n] = load_as<int32_t>(w.fixes + n * 4);
    for_each_weight(w, [&](size_t k, size_t n, int weight) {
      const size_t channel = n / begin * channels + (s.channels_last ? k % channels : k / taps);
      const size_t tap = s.channels_last ? k / channels : k % taps;
      const size_t row = out_row * s.stride_h + tap / s.kernel_w * s.dilation_h - s.pad_top;
      const size_t column = out_column * s.stride_w + tap % s.kernel_w * s.dilation_w - s.pad_left;
      if (row >= s.height || column >= s.width) return;  // padding is the zero point
      const size_t at = ((image * s.channels + channel) * s.height + row) * s.width + column;
      const int q = call.floats ? reference_byte(call.floats[at], call.grid) : call.bytes[at];
      sums[n] = static_cast<int32_t>(static_cast<uint32_t>(sums[n]) +
                                     static_cast<uint32_t>((q - call.grid.zero_point) * weight));
    });
    for (size_t channel = 0; channel < s.outputs; ++channel) {
      const size_t n = channel / per_group * begin + channel % per_group;
      const size_t at = (image * s.outputs + channel) * area + i % area;
      const float v = reference_output(w, call.grid, call.y, n, sums[n], channel, at);
      if (call.y.bytes) {
        call.y.bytes[at] = static_cast<unsigned char>(v);
      } else {
        call.y.floats[at] = v;
      }
    }
  }
}

}  // namespace graphopt::sparse_int8
