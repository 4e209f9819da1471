// The kernels without ONNX Runtime: for tests, fuzzing and hosts that have a pool of their own.
#include <cstdio>
#include <cstring>

#include "base/isa.h"
#include "sparse_conv/geometry.h"
#include "sparse_conv/packed.h"
#include "sparse_conv/reference.h"
#include "sparse_conv/run.h"

#define GRAPHOPT_EXPORT extern "C" __attribute__((visibility("default")))

// 0, or 1 with a message if `size` bytes at `packed` are not a valid packed weight. `shape` gets {output channels,
// groups, input channels of a group, kernel height, kernel width, channels of a block, entries}.
GRAPHOPT_EXPORT int graphopt_sparse_conv_check(const unsigned char* packed, size_t size, uint64_t* shape, char* message,
                                               size_t message_size) {
  graphopt::sparse_conv::PackedConv w{};
  if (!graphopt::sparse_conv::parse(packed, size, &w, message, message_size)) return 1;
  const size_t all[] = {w.out_channels, w.groups, w.in_channels, w.kernel_h, w.kernel_w, w.block, w.entries};
  for (size_t i = 0; i < 7; ++i) shape[i] = all[i];
  return 0;
}

namespace graphopt::sparse_conv {
namespace {

// A call without data. `x_sizes`, `steps` and `padded` are those of graphopt_sparse_conv_f32.
bool describe(const PackedConv& w, const int64_t* x_sizes, const int64_t* steps, int padded, Call* call, char* message,
              size_t message_size) {
  const int64_t kernel[] = {static_cast<int64_t>(w.kernel_h), static_cast<int64_t>(w.kernel_w)};
  const int64_t strides[] = {steps[0], steps[4]}, dilations[] = {steps[1], steps[5]};
  const int64_t pads[] = {steps[2], steps[6], steps[3], steps[7]};
  Geometry geometry;
  if (!geometry.read({kernel, strides, dilations, pads, 2, 2, 2, 4}, message, message_size)) return false;
  if (x_sizes[0] < 0 || x_sizes[1] < 1 || x_sizes[2] < 1 || !geometry.shape(x_sizes + 1, &call->shape)) {
    std::snprintf(message, message_size, "x with its pads is smaller than the kernel");
    return false;
  }
  Shape& s = call->shape;
  s.images = static_cast<size_t>(x_sizes[0]);
  s.in_plane = (padded & 1) != 0 ? padded_plane(s.in_h * s.in_w) : s.in_h * s.in_w;
  s.out_plane = (padded & 2) != 0 ? padded_plane(s.out_h * s.out_w) : s.out_h * s.out_w;
  call->w = &w;
  return true;
}

}  // namespace
}  // namespace graphopt::sparse_conv

// The choice for a call, as text: the instruction set, how it reads x (shared: several tasks sweep a gathered
// tile), positions of a wide tile, tasks, and "ahead" where outputs are asked for ahead. `isa` need not be supported. 0, or
// 1 with a message.
GRAPHOPT_EXPORT int graphopt_sparse_conv_choice(const unsigned char* packed, size_t size, const char* isa,
                                                const int64_t* x_sizes, const int64_t* steps, int padded, char* text,
                                                size_t text_size) {
  using namespace graphopt;
  using namespace graphopt::sparse_conv;
  Isa chosen{};
  PackedConv w{};
  Call call{};
  if (!isa_from_name(isa, &chosen) || !parse(packed, size, &w, text, text_size) ||
      !describe(w, x_sizes, steps, padded, &call, text, text_size) || call.shape.images == 0)
    return 1;
  Job job;
  if (job.prepare(call, kernels_for(chosen)) != Job::Problem::none) return 1;
  const Plan& plan = job.plan();
  std::snprintf(text, text_size, "%s %s %zu %zu%s", job.kernels().name,
                plan.direct          ? "direct"
                : plan.spaced        ? "spaced"
                : plan.masked        ? "masked"
                : plan.shared        ? "shared"
                                     : "gather",
                plan.tile, Convolve(job).tasks(), plan.fetches ? " ahead" : "");
  return 0;
}

// y = act(conv(x, w) + bias + residual) on the calling thread.
//   isa       an instruction set; nullptr is the chosen one, "reference" the specification
//   x_sizes   {images, input height, input width}
//   steps     {stride, dilation, pad before, pad after} of the height, then of the width
//   padded    bit 0: x has padded planes; bit 1: y and residual have
// activation: as base/activation.h counts them. bias and residual may be nullptr. 0, or 1 with a message.
GRAPHOPT_EXPORT int graphopt_sparse_conv_f32(const unsigned char* packed, size_t size, const char* isa, const float* x,
                                             const int64_t* x_sizes, const int64_t* steps, int padded, const float* bias,
                                             const float* residual, int activation, float low, float high, float* y,
                                             char* message, size_t message_size) {
  using namespace graphopt;
  using namespace graphopt::sparse_conv;
  Isa chosen = isa_choice().isa;
  const bool specification = isa != nullptr && std::strcmp(isa, "reference") == 0;
  if (isa != nullptr && !specification && (!isa_from_name(isa, &chosen) || !isa_supported(chosen))) {
    std::snprintf(message, message_size, "instruction set '%.40s' is unknown or not supported", isa);
    return 1;
  }
  PackedConv w{};
  if (!parse(packed, size, &w, message, message_size)) return 1;
  Call call{};
  if (!describe(w, x_sizes, steps, padded, &call, message, message_size)) return 1;
  call.x = x;
  call.y = y;
  call.bias = bias;
  call.residual = residual;
  call.epilogue = {static_cast<Activation>(activation), low, high};
  if (call.shape.images == 0) return 0;
  if (specification) {
    reference(call);
    return 0;
  }
  Job job;
  const Job::Problem problem = job.prepare(call, kernels_for(chosen));
  bool ran = problem == Job::Problem::none;
  if (ran) {
    const Rearrange rearrange(job);
    for (size_t task = 0; task < rearrange.tasks(); ++task) ran = ran && rearrange.run(task);
    const Convolve convolve(job);
    for (size_t task = 0; task < convolve.tasks(); ++task) ran = ran && convolve.run(task);
  }
  if (!ran) std::snprintf(message, message_size, problem == Job::Problem::size ? "the planes are too large" : "out of memory");
  return ran ? 0 : 1;
}
