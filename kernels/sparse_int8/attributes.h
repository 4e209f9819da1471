// What both operators read alike.
#pragma once
#include "base/infer.h"
#include "base/node.h"
#include "sparse_int8/contract.h"

namespace graphopt::sparse_int8 {

// Of W. ONNX Runtime before 1.20 tells operators of one name apart by their inputs alone, so that those with another
// output need another input.
constexpr int packed_type(bool bytes_out) { return bytes_out ? ort::element_int8 : ort::element_uint8; }

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
