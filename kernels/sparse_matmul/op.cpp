#include "sparse_matmul/op.h"

#include "base/describe.h"
#include "base/isa.h"
#include "base/product.h"
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
    GRAPHOPT_TRY(node_.read_epilogue(info, &epilogue_));
    const unsigned char* data = nullptr;
    size_t size = 0;
    GRAPHOPT_TRY(node_.read_packed(info, 1, &data, &size));
    char why[256] = "";
    if (!parse(data, size, &w_, why, sizeof why))
      return node_.refuse_packed(why);
    return ort::require_sizes(node_, info, w_.k, w_.n);
  }

  Status compute(OrtKernelContext* context) const {
    ort::Product product;
    GRAPHOPT_TRY(ort::read_product(node_, context, ort::element_float, w_.k, w_.n, &product));
    if (product.rows == 0) return nullptr;
    const Call call{&w_,          static_cast<const float*>(product.x), static_cast<float*>(product.y), product.bias,
                    product.residual, product.rows,                     epilogue_};
    return node_.parallel(context, Work(call, choose(isa_choice().isa, w_, call.m)));
  }

  static Status infer(OrtShapeInferContext* context) {
    return ort::infer_product(ort::Inference(context), ort::element_float);
  }

 private:
  ort::Node node_;
  PackedMatrix w_{};
  Epilogue epilogue_{};
};

}  // namespace

const OrtCustomOp* custom_op() { return ort::operator_of<Kernel>(); }

}  // namespace graphopt::sparse_matmul
