// The kernels without ONNX Runtime: for tests, fuzzing and hosts that have a pool of their own.
#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "base/isa.h"
#include "sparse_matmul/packed.h"
#include "sparse_matmul/reference.h"
#include "sparse_matmul/run.h"

#define GRAPHOPT_EXPORT extern "C" __attribute__((visibility("default")))

// 0, or 1 with a message if `size` bytes at `packed` are not a valid packed matrix. `shape` gets {K, N, stored values}.
GRAPHOPT_EXPORT int graphopt_sparse_matmul_check(const unsigned char* packed, size_t size, uint64_t* shape, char* message,
                                                 size_t message_size) {
  graphopt::sparse_matmul::PackedMatrix w{};
  if (!graphopt::sparse_matmul::parse(packed, size, &w, message, message_size)) return 1;
  shape[0] = w.k;
  shape[1] = w.n;
  shape[2] = w.entries * w.block_rows;
  return 0;
}

// How m rows of x would go: "lanes method rows" as `text`; for any instruction set this library has, whatever the CPU.
// 0, or 1 with a message in its place.
GRAPHOPT_EXPORT int graphopt_sparse_matmul_choice(const unsigned char* packed, size_t size, const char* isa, size_t m,
                                                  char* text, size_t text_size) {
  using namespace graphopt;
  using namespace graphopt::sparse_matmul;
  Isa chosen{};
  PackedMatrix w{};
  if (!parse(packed, size, &w, text, text_size)) return 1;
  if (!isa_from_name(isa, &chosen)) {
    std::snprintf(text, text_size, "instruction set '%.40s' is unknown", isa);
    return 1;
  }
  const Choice choice = choose(chosen, w, m);
  std::snprintf(text, text_size, "%u %s %u", choice.kernels->lanes, choice.method->name, choice.most_rows);
  return 0;
}

// y[m, N] = act(x[m, K] * w + bias + residual) on the calling thread. `isa` names the instruction set; nullptr is the
// chosen one, "reference" the specification.
// 0, or 1 with a message. activation: as base/activation.h counts them. bias and residual may be nullptr.
GRAPHOPT_EXPORT int graphopt_sparse_matmul_f32(const unsigned char* packed, size_t size, const char* isa, const float* x,
                                               size_t m, const float* bias, const float* residual, int activation,
                                               float low, float high, float* y, char* message, size_t message_size) {
  using namespace graphopt;
  using namespace graphopt::sparse_matmul;
  Isa chosen = isa_choice().isa;
  const bool specification = isa != nullptr && std::strcmp(isa, "reference") == 0;
  if (isa != nullptr && !specification && (!isa_from_name(isa, &chosen) || !isa_supported(chosen))) {
    std::snprintf(message, message_size, "instruction set '%.40s' is unknown or not supported", isa);
    return 1;
  }
  PackedMatrix w{};
  if (!parse(packed, size, &w, message, message_size)) return 1;
  if (m == 0) return 0;
  const Call call{&w, x, y, bias, residual, m, {static_cast<Activation>(activation), low, high}};
  if (specification) {
    double* sums = static_cast<double*>(std::malloc(w.n * sizeof(double)));
    if (sums != nullptr) reference(call, sums);
    std::free(sums);
    if (sums == nullptr) std::snprintf(message, message_size, "out of memory");
    return sums == nullptr;
  }
  const Work work(call, choose(chosen, w, m));
  for (size_t task = 0; task < work.tasks(); ++task) {
    if (!work.run(task)) {
      std::snprintf(message, message_size, "out of memory");
      return 1;
    }
  }
  return 0;
}
