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

// What both operators have alike for ONNX Runtime, for each pair of types of X and Y.
template <bool bytes_in, bool bytes_out>
struct Signature {
  static constexpr size_t inputs = 4, outputs = 1;
  static int input_type(size_t i) {
    if (i == 1) return packed_type(bytes_out);
    return i == 0 && bytes_in ? ort::element_uint8 : ort::element_float;
  }
  static int output_type(size_t) { return bytes_out ? ort::element_uint8 : ort::element_float; }
  static bool is_optional(size_t i) { return i >= 2; }

 protected:
  // Gives a call what lies in X and where Y will lie.
  template <class Call>
  static void place(const void* x, void* y, Call* call) {
    if constexpr (bytes_in) {
      call->bytes = static_cast<const unsigned char*>(x);
    } else {
      call->floats = static_cast<const float*>(x);
    }
    if constexpr (bytes_out) {
      call->y.bytes = static_cast<unsigned char*>(y);
    } else {
      call->y.floats = static_cast<float*>(y);
    }
  }
};

// The element type of the output.
ort::Status infer_type(const ort::Inference& inference, int* type);

}  // namespace graphopt::sparse_int8
