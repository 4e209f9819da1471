#include "base/describe.h"
#include "base/isa.h"
#include "base/product.h"
#include "sparse_int8/attributes.h"
#include "sparse_int8/op.h"
#include "sparse_int8/run.h"

namespace graphopt::sparse_int8 {
namespace {

using ort::Api;
using ort::Status;

template <bool bytes_in, bool bytes_out>
class MatMulKernel : public Signature<bytes_in, bytes_out> {
 public:
  static constexpr const char* name = "SparseInt8MatMul";

  MatMulKernel(const Api& api, const OrtKernelInfo* info) : node_(api, name, info) {}

  Status read(const OrtKernelInfo* info) {
    GRAPHOPT_TRY(given_.read(node_, info, bytes_in, bytes_out));
    return ort::require_sizes(node_, info, given_.w.k, given_.w.n);
  }

  Status compute(OrtKernelContext* context) const {
    const PackedWeights& w = given_.w;
    ort::Product product;
    GRAPHOPT_TRY(ort::read_product(node_, context, this->input_type(0), w.k, w.n, &product));
    if (product.rows == 0) return nullptr;
    MatMul call{};
    call.w = &w;
    call.grid = given_.x;
    call.m = product.rows;
    this->place(product.x, product.y, &call);
    call.y.grid = given_.y;
    call.y.epilogue = given_.epilogue;
    call.y.bias = product.bias;
    call.y.residual = product.residual;
    const Kernels& kernels = kernels_for(isa_choice().isa);
    if (given_.finds_grid) {
      const FindGrid find(call.floats, call.m * w.k, kernels);
      GRAPHOPT_TRY(node_.parallel(context, find));
      call.grid = find.grid();
    }
    return node_.parallel(context, MatMulWork(call, kernels));
  }

  static Status infer(OrtShapeInferContext* context) {
    const ort::Inference inference(context);
    int type = 0;
    GRAPHOPT_TRY(infer_type(inference, &type));
    return ort::infer_product(inference, type);
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
