#include "low_bit_matmul/reference.h"

#include <cmath>

#include "base/activation_reference.h"
#include "base/blob.h"

namespace graphopt::low_bit_matmul {
namespace {

// One input of one output, as it is stored.
struct Weight {
  double level, zero, scale, offset;  // scale * (level - zero) + offset
};

Weight weight(const PackedMatrix& w, size_t k, size_t n) {
  const size_t column = n % panel_columns, in_block = k % w.block, chunk = w.block == 16 ? 16 : 32;
  const unsigned char* block = w.streams + (n / panel_columns * w.blocks + k / w.block) * block_bytes(w);
  const unsigned char* zeros = block + panel_columns * sizeof(float);
  const size_t row_bytes = 4 * panel_columns, group = in_block % chunk / 4;
  const unsigned char* codes = zeros + zeros_bytes(w.zeros) + in_block / chunk * (chunk * panel_columns * w.bits / 8) +
                               4 * column + in_block % 4;
  unsigned code;
  if (w.bits == 3) {
    code = (codes[group / 4 * row_bytes] >> 2 * (group % 4) & 3u) | (codes[2 * row_bytes] >> group & 1u) << 2;
  } else {
    const size_t per_byte = 8 / w.bits;
    code = codes[group / per_byte * row_bytes] >> w.bits * (group % per_byte) & ((1u << w.bits) - 1);
  }
  Weight found{static_cast<double>(code), static_cast<double>(w.zero), 0, 0};
  if (w.bits == 1) found.level = 2 * code;
  if (w.levels != Levels::codes) found.level = w.book[code];
  if (w.zeros == Zeros::bytes) found.zero = zeros[column];
  if (w.zeros == Zeros::offsets) found.offset = load_as<float>(zeros + 4 * column);
  found.scale = load_as<float>(block + 4 * column);
  return found;
}

// The scale of a block of x; what x is multiplied with before it is rounded.
float block_scale(const float* x, size_t count, float* factor) {
  float a = 0;
  bool finite = true;
  for (size_t i = 0; i < count; ++i) {
    finite = finite && std::isfinite(x[i]);
    a = std::fmax(a, std::fabs(x[i]));
  }
  *factor = 0;
  if (!finite) return std::nanf("");
  if (a < 0x1p-100f) return 0;
  *factor = 127.0f / a;
  return a / 127.0f;
}

double sum(const Call& call, size_t m, size_t n, bool rounds) {
  const PackedMatrix& w = *call.w;
  const float* x = call.x + m * w.k;
  double total = 0;
  for (size_t k0 = 0; k0 < w.k; k0 += w.block) {
    const size_t count = w.k - k0 < w.block ? w.k - k0 : w.block;
    float factor = 1;
    const double x_scale = rounds ? block_scale(x + k0, count, &factor) : 1.0;
    double part = 0;
    for (size_t i = 0; i < count; ++i) {
      const Weight found = weight(w, k0 + i, n);
      const double q = rounds ? std::nearbyint(x[k0 + i] * factor) : x[k0 + i];
      part += (rounds && factor == 0 ? 0 : q) * (found.scale * (found.level - found.zero) + found.offset);
    }
    total += part * x_scale;
  }
  return total;
}

}  // namespace

void reference(const Call& call, bool rounds) {
  for (size_t m = 0; m < call.m; ++m) {
    for (size_t n = 0; n < call.w->n; ++n) {
      double v = sum(call, m, n, rounds);
      if (call.bias) v += call.bias[n];
      if (call.residual) v += call.residual[m * call.w->n + n];
      call.y[m * call.w->n + n] = static_cast<float>(activation_reference(v, call.epilogue));
    }
  }
}

}  // namespace graphopt::low_bit_matmul
