#include "low_bit_matmul/op.h"

#include "base/describe.h"
#include "base/isa.h"
#include "base/product.h"
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
    int64_t bits = 0, block = 0;
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
      return node_.refuse_packed(why);
    GRAPHOPT_TRY(ort::require_sizes(node_, info, w_.k, w_.n));
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
    ort::Product product;
    GRAPHOPT_TRY(ort::read_product(node_, context, ort::element_float, w_.k, w_.n, &product));
    if (product.rows == 0) return nullptr;
    const Call call{&w_,          static_cast<const float*>(product.x), static_cast<float*>(product.y), product.bias,
                    product.residual, product.rows,                     epilogue_};
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

  static Status infer(OrtShapeInferContext* context) {
    return ort::infer_product(ort::Inference(context), ort::element_float);
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
