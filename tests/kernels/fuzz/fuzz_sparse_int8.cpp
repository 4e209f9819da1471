#include "fuzz.h"

struct Call {
  const float* x_floats;
  const unsigned char* x_bytes;
  const float* bias;
  const float* residual;
  float* y_floats;
  unsigned char* y_bytes;
  float x_scale, y_scale, low, high;
  int32_t x_zero_point, y_zero_point, activation;
};

extern "C" int graphopt_sparse_int8_check(const unsigned char*, size_t, uint64_t*, char*, size_t);
extern "C" int graphopt_sparse_int8_matmul(const unsigned char*, size_t, const char*, size_t, const Call*, char*, size_t);
extern "C" int graphopt_sparse_int8_conv(const unsigned char*, size_t, const char*, const int64_t*, const Call*, int64_t*,
                                         char*, size_t);

namespace {

// Everything an operator reads, and room for what it gives.
struct Data {
  fuzz::Floats floats, bias, residual, y_floats;
  fuzz::FencedBytes bytes, y_bytes;
  Call call{};

  Data(size_t in, size_t outputs, size_t out, fuzz::Random& random)
      : floats(random.numbers(in)),
        bias(random.numbers(outputs)),
        residual(random.numbers(out)),
        y_floats(out),
        bytes(in),
        y_bytes(out) {
    for (unsigned char& each : bytes) each = static_cast<unsigned char>(random.next());
    const bool from_bytes = random.below(2), to_bytes = random.below(2);
    call.x_bytes = from_bytes ? bytes.data() : nullptr;
    call.x_floats = from_bytes ? nullptr : floats.data();
    call.y_bytes = to_bytes ? y_bytes.data() : nullptr;
    call.y_floats = to_bytes ? nullptr : y_floats.data();
    call.bias = random.below(2) ? bias.data() : nullptr;
    call.residual = random.below(3) == 0 ? residual.data() : nullptr;
    call.x_scale = from_bytes || random.below(2) ? 0.01f : 0;
    call.y_scale = 0.02f;
    call.low = -1;
    call.high = 1;
    call.x_zero_point = call.x_scale == 0 ? 0 : static_cast<int32_t>(random.below(256));
    call.y_zero_point = static_cast<int32_t>(random.below(256));
    call.activation = static_cast<int32_t>(random.below(7));
  }
};

// All but the activations that need exp agree to the bit, and NaN is NaN.
template <class Run>
void try_all(Data& data, const Run& run) {
  run("reference", data.call);
  const fuzz::Floats floats = data.y_floats;
  const fuzz::FencedBytes bytes = data.y_bytes;
  for (const std::string& isa : fuzz::instruction_sets()) {
    run(isa.c_str(), data.call);
    if (data.call.activation > 3) continue;
    if (bytes != data.y_bytes) fuzz::fail(isa.c_str(), "differs in bytes");
    for (size_t i = 0; i < floats.size(); ++i) {
      const float found = data.y_floats[i], wanted = floats[i];
      if (found != wanted && (found == found || wanted == wanted)) fuzz::fail(isa.c_str(), "differs");
    }
  }
}

}  // namespace

bool fuzz::accepts_and_runs(const unsigned char* packed, size_t size, Random& random) {
  uint64_t shape[3];
  char message[300];
  if (graphopt_sparse_int8_check(packed, size, shape, message, sizeof message)) return false;
  const uint64_t k = shape[0], n = shape[1];
  if (k * n > (1u << 18)) return true;

  const size_t rows[] = {1, 2, 17, 70};
  const size_t m = rows[random.below(4)];
  Data product(m * k, n, m * n, random);
  try_all(product, [&](const char* isa, const Call& call) {
    if (graphopt_sparse_int8_matmul(packed, size, isa, m, &call, message, sizeof message)) fail(isa, message);
  });

  const int64_t height = k % 9 == 0 ? 3 : 1, width = k % 3 == 0 ? 3 : 1;
  const int64_t channels = static_cast<int64_t>(k) / (height * width), side = static_cast<int64_t>(2 + random.below(9));
  const int64_t stride = static_cast<int64_t>(1 + random.below(2)), pad = static_cast<int64_t>(1 + random.below(2));
  const int64_t sizes[] = {1,      channels, side,   side,   static_cast<int64_t>(n), 1,   height, width,
                           stride, stride,   1,      1,      pad,                     pad, pad,    pad,
                           static_cast<int64_t>(random.below(2))};
  int64_t out[2];
  Call nothing{};
  if (graphopt_sparse_int8_conv(packed, size, nullptr, sizes, &nothing, out, message, sizeof message)) return true;
  Data window(static_cast<size_t>(channels * side * side), n, n * static_cast<size_t>(out[0] * out[1]), random);
  try_all(window, [&](const char* isa, const Call& call) {
    if (graphopt_sparse_int8_conv(packed, size, isa, sizes, &call, out, message, sizeof message)) fail(isa, message);
  });
  return true;
}
