// The kernels without ONNX Runtime: for tests, fuzzing and hosts that have a pool of their own.
#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "base/isa.h"
#include "sparse_int8/conv.h"
#include "sparse_int8/packed.h"
#include "sparse_int8/reference.h"
#include "sparse_int8/run.h"

#define GRAPHOPT_EXPORT extern "C" __attribute__((visibility("default")))

// What the functions below compute beside the weights; the layout is fixed. Exactly one of each pair of floats and
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
bool run_all(const Work& work) {
  for (size_t task = 0; task < work.tasks(); ++task) {
    if (!work.run(task)) return false;
  }
  return true;
}

int no_memory(char* message, size_t message_size) {
  std::snprintf(message, message_size, "out of memory");
  return 1;
}

struct Room {
  explicit Room(size_t bytes) : at(std::aligned_alloc(64, (bytes + 64) / 64 * 64)) {}
  Room(const Room&) = delete;
  Room& operator=(const Room&) = delete;
  ~Room() { std::free(at); }
  void* const at;
};

Output output_of(const graphopt_sparse_int8_call& c) {
  const Epilogue epilogue = with_bounds({static_cast<Activation>(c.activation), c.low, c.high});
  return {c.bias, c.residual, c.y_floats, c.y_bytes, {c.y_scale, c.y_zero_point}, epilogue};
}

// The grid of x where none is given.
bool find_grid(const graphopt_sparse_int8_call& c, size_t count, const Kernels& kernels, Grid* out) {
  if (c.x_floats == nullptr || c.x_scale != 0.0f) return true;
  const FindGrid find(c.x_floats, count, kernels);
  if (!run_all(find)) return false;
  *out = find.grid();
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
  const Output y = output_of(*c);
  MatMul call{&w, c->x_floats, c->x_bytes, {c->x_scale, c->x_zero_point}, m, y};
  const Kernels& kernels = kernels_for(chosen);
  if (specification) {
    if (call.floats && c->x_scale == 0.0f) call.grid = reference_grid(call.floats, m * w.k);
    const Room bytes(w.k), sums(w.n * sizeof(int32_t));
    if (!bytes.at || !sums.at) return no_memory(message, message_size);
    reference(call, static_cast<unsigned char*>(bytes.at), static_cast<int32_t*>(sums.at));
    return 0;
  }
  if (!find_grid(*c, m * w.k, kernels, &call.grid) || !run_all(MatMulWork(call, kernels)))
    return no_memory(message, message_size);
  return 0;
}

// y[batch, N, ...] of x[batch, channels, height, width]. `sizes` has those four, then outputs, group, kernel (2),
// strides (2), dilations (2), pads (4) and channels_last. y may be nullptr in a first call: `out` gets the height and width of y.
GRAPHOPT_EXPORT int graphopt_sparse_int8_conv(const unsigned char* packed, size_t size, const char* isa,
                                              const int64_t* sizes, const graphopt_sparse_int8_call* c, int64_t* out,
                                              char* message, size_t message_size) {
  using namespace graphopt;
  using namespace graphopt::sparse_int8;
  const bool specification = isa != nullptr && std::strcmp(isa, "reference") == 0;
  Isa chosen{};
  if (!find_isa(specification ? nullptr : isa, &chosen, message, message_size)) return 1;
  PackedWeights w{};
  if (!parse(packed, size, &w, message, message_size)) return 1;
  ConvAttributes attributes;
  attributes.outputs = sizes[4], attributes.group = sizes[5];
  attributes.channels_last = sizes[16];
  std::memcpy(attributes.kernel, sizes + 6, sizeof attributes.kernel);
  std::memcpy(attributes.strides, sizes + 8, sizeof attributes.strides);
  std::memcpy(attributes.dilations, sizes + 10, sizeof attributes.dilations);
  std::memcpy(attributes.pads, sizes + 12, sizeof attributes.pads);
  Conv call{&w, c->x_floats, c->x_bytes, {c->x_scale, c->x_zero_point}, {}, output_of(*c)};
  const int64_t x[4] = {sizes[0], sizes[1], sizes[2], sizes[3]};
  const char* problem = problem_of(attributes, w);
  if (problem == nullptr) problem = shape_of(attributes, w, x, &call.shape);
  if (problem != nullptr) {
    std::snprintf(message, message_size, "%s", problem);
    return 1;
  }
  out[0] = static_cast<int64_t>(call.shape.out_h);
  out[1] = static_cast<int64_t>(call.shape.out_w);
  if (call.y.floats == nullptr && call.y.bytes == nullptr) return 0;
  const size_t count = call.shape.batch * call.shape.channels * call.shape.height * call.shape.width;
  if (specification) {
    if (call.floats && c->x_scale == 0.0f) call.grid = reference_grid(call.floats, count);
    const Room sums(w.n * sizeof(int32_t));
    if (!sums.at) return no_memory(message, message_size);
    reference(call, static_cast<int32_t*>(sums.at));
    return 0;
  }
  const Kernels& kernels = kernels_for(chosen);
  if (!find_grid(*c, count, kernels, &call.grid)) return no_memory(message, message_size);
  ConvWork work(call, kernels);
  const Room memory(work.bytes());
  if (!memory.at) return no_memory(message, message_size);
  work.use(static_cast<unsigned char*>(memory.at));
  if (!run_all(work.planes()) || !run_all(work.sums())) return no_memory(message, message_size);
  return 0;
}
