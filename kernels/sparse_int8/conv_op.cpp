#include "base/describe.h"
#include "base/isa.h"
#include "base/node.h"
#include "base/scratch.h"
#include "sparse_int8/attributes.h"
#include "sparse_int8/conv.h"
#include "sparse_int8/op.h"
#include "sparse_int8/run.h"

namespace graphopt::sparse_int8 {
namespace {

using ort::Api;
using ort::Status;

thread_local Scratch plane_memory;

template <bool bytes_in, bool bytes_out>
class ConvKernel : public Signature<bytes_in, bytes_out> {
 public:
  static constexpr const char* name = "SparseInt8Conv";

  ConvKernel(const Api& api, const OrtKernelInfo* info) : node_(api, name, info) {}

  Status read(const OrtKernelInfo* info) {
    size_t count = 0;
    GRAPHOPT_TRY(node_.read_int(info, "N", &conv_.outputs));
    GRAPHOPT_TRY(node_.read_int_or(info, "group", 1, &conv_.group));
    GRAPHOPT_TRY(node_.read_int_or(info, "channels_last", 0, &conv_.channels_last));
    GRAPHOPT_TRY(read_two(info, "kernel_shape", conv_.kernel));
    GRAPHOPT_TRY(read_two(info, "strides", conv_.strides));
    GRAPHOPT_TRY(read_two(info, "dilations", conv_.dilations));
    GRAPHOPT_TRY(node_.read_ints(info, "pads", conv_.pads, 4, &count));
    if (count != 0 && count != 4)
      return node_.refuse(ort::error_invalid_graph, "the attribute 'pads' must have four numbers; it has %zu", count);
    GRAPHOPT_TRY(given_.read(node_, info, bytes_in, bytes_out));
    if (const char* problem = problem_of(conv_, given_.w)) return node_.refuse(ort::error_invalid_graph, "%s", problem);
    return nullptr;
  }

  Status compute(OrtKernelContext* context) const {
    ort::Tensor x;
    GRAPHOPT_TRY(node_.input(context, 0, this->input_type(0), &x));
    if (x.rank != 4)
      return node_.refuse(ort::error_invalid_argument, "X must have rank 4, [batch, channels, height, width]; it has %zu",
                          x.rank);
    Conv call{};
    call.w = &given_.w;
    call.grid = given_.x;
    const int64_t sizes[4] = {x.dims[0], x.dims[1], x.dims[2], x.dims[3]};
    if (const char* problem = shape_of(conv_, given_.w, sizes, &call.shape))
      return node_.refuse(ort::error_invalid_argument, "%s", problem);
    const ConvShape& s = call.shape;
    const int64_t dims[4] = {x.dims[0], conv_.outputs, static_cast<int64_t>(s.out_h), static_cast<int64_t>(s.out_w)};
    call.y.grid = given_.y;
    call.y.epilogue = given_.epilogue;
    GRAPHOPT_TRY(node_.read_bias(context, 2, s.outputs, &call.y.bias));
    GRAPHOPT_TRY(node_.read_residual(context, 3, dims, 4, &call.y.residual));
    void* y = nullptr;
    GRAPHOPT_TRY(node_.output(context, 0, dims, 4, &y));
    if (y == nullptr) return nullptr;
    this->place(x.data, y, &call);
    const Kernels& kernels = kernels_for(isa_choice().isa);
    if (given_.finds_grid) {
      const FindGrid find(call.floats, s.batch * s.channels * s.height * s.width, kernels);
      GRAPHOPT_TRY(node_.parallel(context, find));
      call.grid = find.grid();
    }
    // Lent to all threads until the call returns.
    ConvWork work(call, kernels);
    unsigned char* memory = static_cast<unsigned char*>(plane_memory.reserve(work.bytes()));
    if (memory == nullptr) return node_.refuse(ort::error_fail, "out of memory");
    work.use(memory);
    GRAPHOPT_TRY(node_.parallel(context, work.planes()));
    return node_.parallel(context, work.sums());
  }

  // [batch, channels, height, width] -> [batch, N, ...]; the batch keeps its name.
  static Status infer(OrtShapeInferContext* context) {
    const ort::Inference inference(context);
    ort::KnownShape x, y;
    int type = 0;
    GRAPHOPT_TRY(inference.input(0, &x));
    GRAPHOPT_TRY(infer_type(inference, &type));
    if (!x.known || x.rank != 4) return nullptr;
    y.rank = 4;
    y.dims[0] = x.dims[0];
    y.names[0] = x.names[0];
    y.dims[1] = y.dims[2] = y.dims[3] = -1;
    GRAPHOPT_TRY(inference.read_int("N", &y.dims[1]));
    int64_t kernel[2] = {1, 1}, strides[2] = {1, 1}, dilations[2] = {1, 1}, pads[4] = {0, 0, 0, 0};
    size_t count = 0;
    GRAPHOPT_TRY(inference.read_ints("kernel_shape", kernel, 2, &count));
    GRAPHOPT_TRY(inference.read_ints("strides", strides, 2, &count));
    GRAPHOPT_TRY(inference.read_ints("dilations", dilations, 2, &count));
    GRAPHOPT_TRY(inference.read_ints("pads", pads, 4, &count));
    for (size_t i = 0; i < 2; ++i) {
      if (x.dims[2 + i] < 0 || strides[i] < 1) continue;
      const int64_t size = out_size(x.dims[2 + i], kernel[i], strides[i], dilations[i], pads[i] + pads[2 + i]);
      if (size > 0) y.dims[2 + i] = size;
    }
    return inference.set_output(0, type, y);
  }

 private:
  // One number for height and one for width; 1 where the attribute is absent.
  Status read_two(const OrtKernelInfo* info, const char* attribute, int64_t (&out)[2]) {
    size_t count = 0;
    GRAPHOPT_TRY(node_.read_ints(info, attribute, out, 2, &count));
    if (count == 0 || count == 2) return nullptr;
    return node_.refuse(ort::error_invalid_graph, "the attribute '%s' must have two numbers; it has %zu", attribute, count);
  }

  ort::Node node_;
  Attributes given_;
  ConvAttributes conv_;
};

}  // namespace

const OrtCustomOp* conv_op(size_t type_pair) {
  switch (type_pair) {
    case 0: return ort::operator_of<ConvKernel<false, false>>();
    case 1: return ort::operator_of<ConvKernel<false, true>>();
    case 2: return ort::operator_of<ConvKernel<true, false>>();
    default: return ort::operator_of<ConvKernel<true, true>>();
  }
}

const OrtCustomOp* custom_op(size_t index) { return index < type_pairs ? matmul_op(index) : conv_op(index - type_pairs); }

}  // namespace graphopt::sparse_int8
