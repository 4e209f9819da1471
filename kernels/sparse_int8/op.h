// ai.graphopt::SparseInt8MatMul as ONNX Runtime sees it.
//
//   Y = SparseInt8MatMul(X, W, B?, R?)  X float or uint8 [..., K]; W uint8 [bytes], packed weights (packed.h); B float
//                                       [N]; R float like Y; Y float or uint8 [..., N]
//   attributes: K int, N int; activation, low, high as all operators have them;
//     x_scale float, x_zero_point int   the grid of X. Without x_scale a float X is rounded on a grid found in every run.
//     output string "float" (default) | "uint8"; y_scale float, y_zero_point int: the grid of a uint8 Y
//
// W must be a constant initializer; it is checked when the session is made and then used where it lies.
#pragma once
#include "base/ort_abi.h"

namespace graphopt::sparse_int8 {

// All operators, alive as long as the process. Those of one name differ in the types of X and Y.
constexpr size_t operators = 4;
const OrtCustomOp* custom_op(size_t index);

}  // namespace graphopt::sparse_int8
