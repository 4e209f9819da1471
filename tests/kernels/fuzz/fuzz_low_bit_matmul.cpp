#include "fuzz.h"

extern "C" int graphopt_low_bit_matmul_check(const unsigned char*, size_t, uint64_t*, char*, size_t);
extern "C" int graphopt_low_bit_matmul_f32(const unsigned char*, size_t, const char*, int, const float*, size_t,
                                           const float*, const float*, int, float, float, float*, char*, size_t);

namespace {

// The largest magnitude of a scale, an offset and a level of the book; infinite where one is no number.
float largest_number(const unsigned char* packed, uint64_t k, uint64_t n, uint64_t bits, uint64_t block) {
  float largest = 255;
  const auto see = [&](const unsigned char* floats, size_t count) {
    for (size_t i = 0; i < count; ++i) {
      const float size = std::fabs(fuzz::load<float>(floats + 4 * i));
      largest = size == size ? std::fmax(largest, size) : INFINITY;
    }
  };
  see(packed + 64, 16);
  const uint64_t kind = fuzz::load<uint32_t>(packed + 48), zeros = kind == 0 ? 0 : kind == 1 ? 64 : 256;
  const uint64_t blocks = (n + 63) / 64 * ((k + block - 1) / block), bytes = 256 + zeros + block * 64 * bits / 8;
  for (uint64_t i = 0; i < blocks; ++i) {
    see(packed + 256 + i * bytes, 64);
    if (kind == 2) see(packed + 256 + i * bytes + 256, 64);
  }
  return largest;
}

}  // namespace

bool fuzz::accepts_and_runs(const unsigned char* packed, size_t size, Random& random) {
  uint64_t shape[4];
  char message[300];
  if (graphopt_low_bit_matmul_check(packed, size, shape, message, sizeof message)) return false;
  const uint64_t k = shape[0], n = shape[1];
  if (k > (1u << 20) || n > (1u << 20) || k * n > (1u << 20)) return true;

  const size_t sizes[] = {1, 2, 5, 18};
  const size_t m = sizes[random.below(4)];
  const Floats x = random.numbers(m * k), bias = random.numbers(n), residual = random.numbers(m * n);
  Floats wanted(m * n), y(m * n);
  const float* added = random.below(2) ? residual.data() : nullptr;
  const int activation = static_cast<int>(random.below(7));
  const bool book_of_floats = load<uint32_t>(packed + 56) == 2;
  const float largest = largest_number(packed, k, n, shape[2], shape[3]);
  for (const int rounds : {0, 1}) {
    if (rounds && book_of_floats) continue;
    const auto run = [&](const char* isa, Floats& out) {
      if (graphopt_low_bit_matmul_f32(packed, size, isa, rounds, x.data(), m, bias.data(), added, activation, -1, 1,
                                      out.data(), message, sizeof message))
        fail(isa, message);
    };
    run("reference", wanted);
    for (const std::string& isa : instruction_sets()) {
      run(isa.c_str(), y);
      compare(isa.c_str(), y, wanted, largest, k);
    }
  }
  return true;
}
