#include "fuzz.h"

extern "C" int graphopt_sparse_matmul_check(const unsigned char*, size_t, uint64_t*, char*, size_t);
extern "C" int graphopt_sparse_matmul_f32(const unsigned char*, size_t, const char*, const float*, size_t, const float*,
                                          const float*, int, float, float, float*, char*, size_t);

bool fuzz::accepts_and_runs(const unsigned char* packed, size_t size, Random& random) {
  uint64_t shape[3];
  char message[300];
  if (graphopt_sparse_matmul_check(packed, size, shape, message, sizeof message)) return false;
  const uint64_t k = shape[0], n = shape[1];
  if (k > (1u << 20) || n > (1u << 20) || k * n > (1u << 20)) return true;  // forged sizes cost only time here

  const size_t sizes[] = {1, 2, 17, 70};
  const size_t m = sizes[random.below(4)];
  const Floats x = random.numbers(m * k), bias = random.numbers(n), residual = random.numbers(m * n);
  Floats wanted(m * n), y(m * n);
  const float* added = random.below(2) ? residual.data() : nullptr;
  const int activation = static_cast<int>(random.below(7));
  const auto run = [&](const char* isa, Floats& out) {
    if (graphopt_sparse_matmul_f32(packed, size, isa, x.data(), m, bias.data(), added, activation, -1, 1, out.data(),
                                   message, sizeof message))
      fail(isa, message);
  };
  run("reference", wanted);
  const float largest = largest_of(packed + size - shape[2] * 4, shape[2]);  // the values come last
  for (const std::string& isa : instruction_sets()) {
    run(isa.c_str(), y);
    compare(isa.c_str(), y, wanted, largest, k);
  }
  return true;
}
