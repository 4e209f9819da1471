#include "base/describe.h"
#include "base/isa.h"
#include "base/node.h"
#include "sparse_int8/attributes.h"
#include "sparse_int8/op.h"
#include "sparse_int8/run.h"

namespace graphopt::sparse_int8 {
namespace {

using ort::Api;
using ort::Status;

template <bool bytes_in, bool bytes_out>
class MatMulKernel {
 public:
  static constexpr const char* name = "SparseInt8MatMul";
  static constexpr size_t inputs = 4, outputs = 1;
  static int input_type(size_t i) {
    if (i == 1) return packed_type(bytes_out);
    return i == 0 && bytes_in ? ort::element_uint8 : ort::element_float;
  }
  static int output_type(size_t) { return bytes_out ? ort::element_uint8 : ort::element_float; }
  static bool is_optional(size_t i) { return i >= 2; }

  MatMulKernel(const Api& api, const OrtKernelInfo* info) : node_(api, name, info) {}

  Status read(const OrtKernelInfo* info) {
    int64_t k = 0, n = 0;
    GRAPHOPT_TRY(node_.read_int(info, "K", &k));
    GRAPHOPT_TRY(node_.read_int(info, "N", &n));
    GRAPHOPT_TRY(given_.read(node_, info, bytes_in, bytes_out));
    const PackedWeights& w = given_.w;
    if (static_cast<int64_t>(w.k) != k || static_cast<int64_t>(w.n) != n)
      return node_.refuse(ort::error_invalid_graph,
                          "the packed weight has K = %zu and N = %zu, and the node's attributes say %lld and %lld. They "
                          "must agree; compile the model again.",
                          w.k, w.n, static_cast<long long>(k), static_cast<long long>(n));
    return nullptr;
  }

  Status compute(OrtKernelContext* context) const {
    const PackedWeights& w = given_.w;
    ort::Tensor x;
    GRAPHOPT_TRY(node_.input(context, 0, input_type(0), &x));
    if (x.rank == 0 || x.dims[x.rank - 1] != static_cast<int64_t>(w.k))
      return node_.refuse(ort::error_invalid_argument,
                          "X must have rank 1 to %zu and a last dimension of K = %zu; it has rank %zu and %lld",
                          ort::max_rank, w.k, x.rank, x.rank ? static_cast<long long>(x.dims[x.rank - 1]) : -1LL);
    MatMul call{};
    call.w = &w;
    call.grid = given_.x;
    call.m = 1;
    for (size_t i = 0; i + 1 < x.rank; ++i) call.m *= static_cast<size_t>(x.dims[i]);
    if constexpr (bytes_in) {
      call.bytes = static_cast<const unsigned char*>(x.data);
    } else {
      call.floats = static_cast<const float*>(x.data);
    }
    call.y.grid = given_.y;
    call.y.epilogue = given_.epilogue;
    x.dims[x.rank - 1] = static_cast<int64_t>(w.n);
    GRAPHOPT_TRY(node_.read_bias(context, 2, w.n, &call.y.bias));
    GRAPHOPT_TRY(node_.read_residual(context, 3, x.dims, x.rank, &call.y.residual));

    void* y = nullptr;
    GRAPHOPT_TRY(node_.output(context, 0, x.dims, x.rank, &y));
    if (call.m == 0) return nullptr;
    if constexpr (bytes_out) {
      call.y.bytes = static_cast<unsigned char*>(y);
    } else {
      call.y.floats = static_cast<float*>(y);
    }
    const Kernels& kernels = kernels_for(isa_choice().isa);
    if (given_.finds_grid) {
      const FindGrid find(call.floats, call.m * w.k, kernels);
      GRAPHOPT_TRY(node_.parallel(context, find));
      call.grid = find.grid();
    }
    return node_.parallel(context, MatMulWork(call, kernels));
  }

  // [..., K] -> [..., N]; symbolic dimensions keep their names.
  static Status infer(OrtShapeInferContext* context) {
    const ort::Inference inference(context);
    ort::KnownShape shape;
    int type = 0;
    GRAPHOPT_TRY(inference.input(0, &shape));
    GRAPHOPT_TRY(infer_type(inference, &type));
    if (!shape.known) return nullptr;
    shape.dims[shape.rank - 1] = -1;
    shape.names[shape.rank - 1] = nullptr;
    GRAPHOPT_TRY(inference.read_int("N", &shape.dims[shape.rank - 1]));
    return inference.set_output(0, type, shape);
  }

 private:
  ort::Node node_;
  Attributes given_;
};

}  // namespace

const OrtCustomOp* matmul_op(size_t type_pair) {
  switch (type_pair) {
    case 0: return ort::operator_of<MatMulKernel<false, false>>();
    case 1: return ort::operator_of<MatMulKernel<false, true>>();
    case 2: return ort::operator_of<MatMulKernel<true, false>>();
    default: return ort::operator_of<MatMulKernel<true, true>>();
  }
}

}  // namespace graphopt::sparse_int8
