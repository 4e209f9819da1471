#include "low_bit_matmul/op.h"

#include "base/describe.h"
#include "base/isa.h"
#include "base/node.h"
#include "low_bit_matmul/packed.h"
#include "low_bit_matmul/run.h"

namespace graphopt::low_bit_matmul {
namespace {

using ort::Api;
using ort::Status;

constexpr const char* activations_names[] = {"int8", "float"};

class Kernel {
 public:
  static constexpr const char* name = "LowBitMatMul";
  static constexpr size_t inputs = 4, outputs = 1;
  static int input_type(size_t i) { return i == 1 ? ort::element_uint8 : ort::element_float; }
  static int output_type(size_t) { return ort::element_float; }
  static bool is_optional(size_t i) { return i >= 2; }

  Kernel(const Api& api, const OrtKernelInfo* info) : node_(api, name, info) {}

  Status read(const OrtKernelInfo* info) {
    int64_t k = 0, n = 0, bits = 0, block = 0;
    GRAPHOPT_TRY(node_.read_int(info, "K", &k));
    GRAPHOPT_TRY(node_.read_int(info, "N", &n));
    GRAPHOPT_TRY(node_.read_int(info, "bits", &bits));
    GRAPHOPT_TRY(node_.read_int(info, "block_size", &block));
    int activations = 0;
    GRAPHOPT_TRY(node_.read_choice(info, "activations", activations_names, 2, 0, &activations));
    rounds_ = activations == 0;
    GRAPHOPT_TRY(node_.read_epilogue(info, &epilogue_));
    const unsigned char* data = nullptr;
    size_t size = 0;
    GRAPHOPT_TRY(node_.read_packed(info, 1, &data, &size));
    char why[256] = "";
    if (!parse(data, size, &w_, why, sizeof why))
      return node_.refuse(ort::error_invalid_graph,
                          "the packed weight is not valid: %s. The file is damaged or was written for another version of "
                          "the kernels; compile the model again.",
                          why);
    if (static_cast<int64_t>(w_.k) != k || static_cast<int64_t>(w_.n) != n)
      return node_.refuse(ort::error_invalid_graph,
                          "the packed weight has K = %zu and N = %zu, and the node's attributes say %lld and %lld. They "
                          "must agree; compile the model again.",
                          w_.k, w_.n, static_cast<long long>(k), static_cast<long long>(n));
    if (static_cast<int64_t>(w_.bits) != bits || static_cast<int64_t>(w_.block) != block)
      return node_.refuse(ort::error_invalid_graph,
                          "the packed weight has %u bits in blocks of %zu, and the node's attributes say %lld and %lld. "
                          "They must agree; compile the model again.",
                          w_.bits, w_.block, static_cast<long long>(bits), static_cast<long long>(block));
    if (rounds_ && w_.levels == Levels::floats)
      return node_.refuse(ort::error_invalid_graph,
                          "the packed weight has a book of floats, which activations of int8 cannot meet. Set "
                          "activations to float, or compile the model again.");
    return nullptr;
  }

  Status compute(OrtKernelContext* context) const {
    ort::Tensor x;
    GRAPHOPT_TRY(node_.input(context, 0, ort::element_float, &x));
    if (x.rank == 0 || x.dims[x.rank - 1] != static_cast<int64_t>(w_.k))
      return node_.refuse(ort::error_invalid_argument,
                          "X must have rank 1 to %zu and a last dimension of K = %zu; it has rank %zu and %lld",
                          ort::max_rank, w_.k, x.rank, x.rank ? static_cast<long long>(x.dims[x.rank - 1]) : -1LL);
    Call call{};
    call.w = &w_;
    call.epilogue = epilogue_;
    call.x = static_cast<const float*>(x.data);
    call.m = 1;
    for (size_t i = 0; i + 1 < x.rank; ++i) call.m *= static_cast<size_t>(x.dims[i]);
    x.dims[x.rank - 1] = static_cast<int64_t>(w_.n);
    GRAPHOPT_TRY(node_.read_bias(context, 2, w_.n, &call.bias));
    GRAPHOPT_TRY(node_.read_residual(context, 3, x.dims, x.rank, &call.residual));

    void* y = nullptr;
    GRAPHOPT_TRY(node_.output(context, 0, x.dims, x.rank, &y));
    if (call.m == 0) return nullptr;
    call.y = static_cast<float*>(y);
    const Kernels& kernels = kernels_for(isa_choice().isa);
    if (!rounds_) return node_.parallel(context, Product(call, kernels));
    for (size_t m0 = 0; m0 < call.m; m0 += slab_rows) {
      const Rounded rounded = rounded_rows(call, kernels, m0);
      if (rounded.tiles == nullptr) return node_.refuse(ort::error_fail, "out of memory");
      GRAPHOPT_TRY(node_.parallel(context, Rounding(call, kernels, rounded)));
      GRAPHOPT_TRY(node_.parallel(context, Product(call, kernels, rounded)));
    }
    return nullptr;
  }

  // [..., K] -> [..., N]; symbolic dimensions keep their names.
  static Status infer(OrtShapeInferContext* context) {
    const ort::Inference inference(context);
    ort::KnownShape shape;
    GRAPHOPT_TRY(inference.input(0, &shape));
    if (!shape.known || shape.rank == 0) return nullptr;
    shape.dims[shape.rank - 1] = -1;
    shape.names[shape.rank - 1] = nullptr;
    GRAPHOPT_TRY(inference.read_int("N", &shape.dims[shape.rank - 1]));
    return inference.set_output(0, ort::element_float, shape);
  }

 private:
  ort::Node node_;
  PackedMatrix w_{};
  Epilogue epilogue_{};
  bool rounds_ = true;
};

}  // namespace

const OrtCustomOp* custom_op() { return ort::operator_of<Kernel>(); }

}  // namespace graphopt::low_bit_matmul
