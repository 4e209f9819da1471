#include "fuzz.h"

extern "C" int graphopt_sparse_conv_check(const unsigned char*, size_t, uint64_t*, char*, size_t);
extern "C" int graphopt_sparse_conv_f32(const unsigned char*, size_t, const char*, const float*, const int64_t*,
                                        const int64_t*, int, const float*, const float*, int, float, float, float*, char*,
                                        size_t);

namespace {

// Of ToPadded; see kernels/sparse_conv/contract.h.
size_t plane(size_t positions, bool padded) {
  const size_t whole = (positions + 15) / 16 * 16;
  return !padded ? positions : whole % 256 == 0 ? whole + 16 : whole;
}

}  // namespace

bool fuzz::accepts_and_runs(const unsigned char* packed, size_t size, Random& random) {
  uint64_t w[7];
  char message[300];
  if (graphopt_sparse_conv_check(packed, size, w, message, sizeof message)) return false;
  const uint64_t outputs = w[0], inputs = w[1] * w[2], kernel[] = {w[3], w[4]};
  if (outputs > 512 || inputs > 512 || kernel[0] > 9 || kernel[1] > 9) return true;

  int64_t x_sizes[3] = {static_cast<int64_t>(1 + random.below(2)), 0, 0}, steps[8];
  size_t out[2];
  for (int axis = 0; axis < 2; ++axis) {
    int64_t* step = steps + 4 * axis;
    step[0] = static_cast<int64_t>(1 + random.below(3));
    step[1] = static_cast<int64_t>(1 + random.below(2));
    for (int side = 2; side < 4; ++side) step[side] = static_cast<int64_t>(random.below(3));
    const int64_t reach = step[1] * (static_cast<int64_t>(kernel[axis]) - 1) + 1, pads = step[2] + step[3];
    const int64_t least = reach > pads ? reach - pads : 1;
    x_sizes[1 + axis] = least + static_cast<int64_t>(random.below(20));
    out[axis] = static_cast<size_t>((x_sizes[1 + axis] + pads - reach) / step[0] + 1);
  }
  const int padded = static_cast<int>(random.below(4));
  const size_t in_positions = static_cast<size_t>(x_sizes[1] * x_sizes[2]), positions = out[0] * out[1];
  const size_t images = static_cast<size_t>(x_sizes[0]);
  const size_t in_plane = plane(in_positions, padded & 1), out_plane = plane(positions, padded & 2);

  Floats x = random.numbers(images * inputs * in_plane);
  for (size_t i = 0; i < x.size(); ++i) {
    if (i % in_plane >= in_positions) x[i] = 0;
  }
  const Floats bias = random.numbers(outputs), residual = random.numbers(images * outputs * out_plane);
  Floats wanted(residual.size()), y(residual.size());
  const float* added = random.below(2) ? residual.data() : nullptr;
  const int activation = static_cast<int>(random.below(7));
  const auto run = [&](const char* isa, Floats& result) {
    if (graphopt_sparse_conv_f32(packed, size, isa, x.data(), x_sizes, steps, padded, bias.data(), added, activation, -1, 1,
                                 result.data(), message, sizeof message))
      fail(isa, message);
  };
  run("reference", wanted);
  const size_t values = w[5] * w[6];  // they come last
  const float largest = largest_of(packed + size - 4 * values, values);
  for (const std::string& isa : instruction_sets()) {
    run(isa.c_str(), y);
    compare(isa.c_str(), y, wanted, largest, w[2] * kernel[0] * kernel[1]);
  }
  return true;
}
