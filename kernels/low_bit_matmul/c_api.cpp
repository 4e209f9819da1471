// The kernels without ONNX Runtime: for tests, fuzzing and hosts that have a pool of their own.
#include <cstdio>
#include <cstring>

#include "base/isa.h"
#include "low_bit_matmul/packed.h"
#include "low_bit_matmul/reference.h"
#include "low_bit_matmul/run.h"

#define GRAPHOPT_EXPORT extern "C" __attribute__((visibility("default")))

// 0, or 1 with a message if `size` bytes at `packed` are not a valid packed matrix. `shape` gets {K, N, bits, block}.
GRAPHOPT_EXPORT int graphopt_low_bit_matmul_check(const unsigned char* packed, size_t size, uint64_t* shape,
                                                  char* message, size_t message_size) {
  graphopt::low_bit_matmul::PackedMatrix w{};
  if (!graphopt::low_bit_matmul::parse(packed, size, &w, message, message_size)) return 1;
  shape[0] = w.k;
  shape[1] = w.n;
  shape[2] = w.bits;
  shape[3] = w.block;
  return 0;
}

// How the sums of `m` rows rounded to int8 are made, as text: "lookup" or "dot". 0, or 1 with a message.
GRAPHOPT_EXPORT int graphopt_low_bit_matmul_choice(const unsigned char* packed, size_t size, const char* isa, size_t m,
                                                   char* text, size_t text_size) {
  using namespace graphopt;
  using namespace graphopt::low_bit_matmul;
  Isa chosen{};
  PackedMatrix w{};
  if (!isa_from_name(isa, &chosen)) {
    std::snprintf(text, text_size, "instruction set '%.40s' is unknown", isa);
    return 1;
  }
  if (!parse(packed, size, &w, text, text_size)) return 1;
  std::snprintf(text, text_size, looks_up(w, kernels_for(chosen), m) ? "lookup" : "dot");
  return 0;
}

// y[m, N] = act(x[m, K] * w + bias + residual) on the calling thread. `isa` names the instruction set; nullptr is the
// chosen one, "reference" the specification. 0, or 1 with a message. rounds: activations as int8. activation: as
// base/activation.h counts them. bias and residual may be nullptr.
GRAPHOPT_EXPORT int graphopt_low_bit_matmul_f32(const unsigned char* packed, size_t size, const char* isa, int rounds,
                                                const float* x, size_t m, const float* bias, const float* residual,
                                                int activation, float low, float high, float* y, char* message,
                                                size_t message_size) {
  using namespace graphopt;
  using namespace graphopt::low_bit_matmul;
  Isa chosen = isa_choice().isa;
  const bool specification = isa != nullptr && std::strcmp(isa, "reference") == 0;
  if (isa != nullptr && !specification && (!isa_from_name(isa, &chosen) || !isa_supported(chosen))) {
    std::snprintf(message, message_size, "instruction set '%.40s' is unknown or not supported", isa);
    return 1;
  }
  if (activation < 0 || activation >= activation_count) {
    std::snprintf(message, message_size, "there is no activation %d", activation);
    return 1;
  }
  PackedMatrix w{};
  if (!parse(packed, size, &w, message, message_size)) return 1;
  if (rounds && w.levels == Levels::floats) {
    std::snprintf(message, message_size, "a book of floats needs activations as floats");
    return 1;
  }
  const Call call{&w, x, y, bias, residual, m, {static_cast<Activation>(activation), low, high}};
  if (specification) {
    reference(call, rounds != 0);
    return 0;
  }
  const Kernels& kernels = kernels_for(chosen);
  if (m == 0) return 0;
  const auto run = [](const auto& work) {
    for (size_t task = 0; task < work.tasks(); ++task) work.run(task);
  };
  if (!rounds) run(Product(call, kernels));
  for (size_t m0 = 0; rounds && m0 < m; m0 += slab_rows) {
    const Rounded rounded = rounded_rows(call, kernels, m0);
    if (rounded.tiles == nullptr) {
      std::snprintf(message, message_size, "out of memory");
      return 1;
    }
    run(Rounding(call, kernels, rounded));
    run(Product(call, kernels, rounded));
  }
  return 0;
}
