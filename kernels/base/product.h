// What the operators of matrix products have alike: Y = act(X W + B + R), X [..., K], W packed, B [N], R and Y [..., N].
// Attributes K and N; inputs X, W, B, R in this order.
#pragma once
#include "base/infer.h"
#include "base/node.h"

namespace graphopt::ort {

struct Product {
  const void* x = nullptr;
  void* y = nullptr;                // nullptr if there are no rows
  const float* bias = nullptr;      // or nullptr
  const float* residual = nullptr;  // or nullptr
  size_t rows = 1;
};

// An error unless the attributes K and N say what the packed weight has.
Status require_sizes(const Node& node, const OrtKernelInfo* info, size_t k, size_t n);

// Reads the inputs of a run and makes its output.
Status read_product(const Node& node, OrtKernelContext* context, int x_type, size_t k, size_t n, Product* out);

// [..., K] -> [..., N]; symbolic dimensions keep their names.
Status infer_product(const Inference& inference, int y_type);

}  // namespace graphopt::ort
