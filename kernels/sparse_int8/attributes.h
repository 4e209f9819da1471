// What both operators read alike.
#pragma once
#include "base/infer.h"
#include "base/node.h"
#include "sparse_int8/contract.h"

namespace graphopt::sparse_int8 {

struct Attributes {
  PackedWeights w{};
  bool finds_grid = false;  // of x, in every run
  Grid x{1.0f, 0}, y{1.0f, 0};
  Epilogue epilogue{};

  ort::Status read(const ort::Node& node, const OrtKernelInfo* info, bool bytes_in, bool bytes_out);
};

// The element type of the output.
ort::Status infer_type(const ort::Inference& inference, int* type);

}  // namespace graphopt::sparse_int8
