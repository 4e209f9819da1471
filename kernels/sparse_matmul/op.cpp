#include "sparse_matmul/op.h"

#include "base/describe.h"
#include "base/isa.h"
#include "base/node.h"
#include "sparse_matmul/packed.h"
#include "sparse_matmul/run.h"

namespace graphopt::sparse_matmul {
namespace {

using ort::Api;
using ort::Status;

class Kernel {
 public:
  static constexpr const char* name = "SparseMatMul";
  static constexpr size_t inputs = 4, outputs = 1;
  static int input_type(size_t i) { return i == 1 ? ort::element_uint8 : ort::element_float; }
  static int output_type(size_t) { return ort::element_float; }
  static bool is_optional(size_t i) { return i >= 2; }

  Kernel(const Api& api, const OrtKernelInfo* info) : node_(api, name, info) {}

  Status read(const OrtKernelInfo* info) {
    int64_t k = 0, n = 0;
    GRAPHOPT_TRY(node_.read_int(info, "K", &k));
    GRAPHOPT_TRY(node_.read_int(info, "N", &n));
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
    return node_.parallel(context, Work(call, choose(isa_choice().isa, w_, call.m)));
  }

  // [..., K] -> [..., N]; symbolic dimensions keep their names.
  static Status infer(OrtShapeInferContext* context) {
    const ort::Inference inference(context);
    ort::KnownShape shape;
    GRAPHOPT_TRY(inference.input(0, &shape));
    if (!shape.known) return nullptr;
    shape.dims[shape.rank - 1] = -1;
    shape.names[shape.rank - 1] = nullptr;
    GRAPHOPT_TRY(inference.read_int("N", &shape.dims[shape.rank - 1]));
    return inference.set_output(0, ort::element_float, shape);
  }

 private:
  ort::Node node_;
  PackedMatrix w_{};
  Epilogue epilogue_{};
};

}  // namespace

const OrtCustomOp* custom_op() { return ort::operator_of<Kernel>(); }

}  // namespace graphopt::sparse_matmul
