// The kernels without ONNX Runtime: for tests, fuzzing and hosts that have a pool of their own.
#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "base/isa.h"
#include "sparse_int8/packed.h"
#include "sparse_int8/reference.h"
#include "sparse_int8/run.h"

#define GRAPHOPT_EXPORT extern "C" __attribute__((visibility("default")))

namespace graphopt::sparse_int8 {
namespace {

// nullptr is the chosen one.
bool find_isa(const char* name, Isa* isa, char* message, size_t message_size) {
  *isa = isa_choice().isa;
  if (name == nullptr || (isa_from_name(name, isa) && isa_supported(*isa))) return true;
  std::snprintf(message, message_size, "instruction set '%.40s' is unknown or not supported", name);
  return false;
}

template <class Work>
bool run_all(const Work& work, char* message, size_t message_size) {
  for (size_t task = 0; task < work.tasks(); ++task) {
    if (work.run(task)) continue;
    std::snprintf(message, message_size, "out of memory");
    return false;
  }
  return true;
}

}  // namespace
}  // namespace graphopt::sparse_int8

// 0, or 1 with a message if `size` bytes at `packed` are not a valid packed weight. `shape` gets {K, N, steps}.
GRAPHOPT_EXPORT int graphopt_sparse_int8_check(const unsigned char* packed, size_t size, uint64_t* shape, char* message,
                                               size_t message_size) {
  graphopt::sparse_int8::PackedWeights w{};
  if (!graphopt::sparse_int8::parse(packed, size, &w, message, message_size)) return 1;
  shape[0] = w.k;
  shape[1] = w.n;
  shape[2] = w.steps;
  return 0;
}

// The choice for `m` rows, as text: the instruction set and how many vectors of rows go together. 0, or 1 with a message.
GRAPHOPT_EXPORT int graphopt_sparse_int8_choice(const unsigned char* packed, size_t size, const char* isa, size_t m,
                                                char* text, size_t text_size) {
  using namespace graphopt;
  using namespace graphopt::sparse_int8;
  Isa chosen{};
  PackedWeights w{};
  if (!isa_from_name(isa, &chosen) || !parse(packed, size, &w, text, text_size)) return 1;
  const Kernels& kernels = kernels_for(chosen);
  std::snprintf(text, text_size, "%s %u", kernels.name,
                vectors_for(w, kernels, (m + kernels.lanes - 1) / kernels.lanes));
  return 0;
}

// What graphopt_sparse_int8_matmul computes beside X and W; the layout is fixed. Exactly one of each pair of floats and
// bytes is given. x_scale 0 finds the grid of x.
struct graphopt_sparse_int8_call {
  const float* x_floats;
  const unsigned char* x_bytes;
  const float* bias;
  const float* residual;
  float* y_floats;
  unsigned char* y_bytes;
  float x_scale, y_scale, low, high;
  int32_t x_zero_point, y_zero_point, activation;
};

// y[m, N] on the calling thread; see contract.h. `isa` names the instruction set; nullptr is the chosen one, "reference"
// the specification. 0, or 1 with a message.
GRAPHOPT_EXPORT int graphopt_sparse_int8_matmul(const unsigned char* packed, size_t size, const char* isa, size_t m,
                                                const graphopt_sparse_int8_call* c, char* message, size_t message_size) {
  using namespace graphopt;
  using namespace graphopt::sparse_int8;
  const bool specification = isa != nullptr && std::strcmp(isa, "reference") == 0;
  Isa chosen{};
  if (!find_isa(specification ? nullptr : isa, &chosen, message, message_size)) return 1;
  PackedWeights w{};
  if (!parse(packed, size, &w, message, message_size)) return 1;
  if (m == 0) return 0;
  const Epilogue epilogue = with_bounds({static_cast<Activation>(c->activation), c->low, c->high});
  MatMul call{&w, c->x_floats, c->x_bytes, {c->x_scale, c->x_zero_point}, m,
              {c->bias, c->residual, c->y_floats, c->y_bytes, {c->y_scale, c->y_zero_point}, epilogue}};
  const Kernels& kernels = kernels_for(chosen);
  if (specification) {
    if (call.floats && c->x_scale == 0.0f) call.grid = reference_grid(call.floats, m * w.k);
    unsigned char* bytes = static_cast<unsigned char*>(std::malloc(w.k));
    int32_t* sums = static_cast<int32_t*>(std::malloc(w.n * sizeof(int32_t)));
    const bool fits = bytes != nullptr && sums != nullptr;
    if (fits) reference(call, bytes, sums);
    std::free(bytes);
    std::free(sums);
    if (!fits) std::snprintf(message, message_size, "out of memory");
    return !fits;
  }
  if (call.floats && c->x_scale == 0.0f) {
    const FindGrid find(call.floats, m * w.k, kernels);
    if (!run_all(find, message, message_size)) return 1;
    call.grid = find.grid();
  }
  return !run_all(MatMulWork(call, kernels), message, message_size);
}
