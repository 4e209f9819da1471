// ai.graphopt::SparseMatMul as ONNX Runtime sees it.
//
//   Y = SparseMatMul(X, W, B?)      X float [..., K], W uint8 [bytes] a packed matrix (packed.h), B float [N]
//   attributes: K int, N int, activation string "none" (default) | "relu"
//
// W must be a constant initializer; it is checked when the session is made and then used where it lies.
#pragma once
#include "base/ort_abi.h"

namespace graphopt::sparse_matmul {

// The operator, alive as long as the process.
const OrtCustomOp* custom_op();

}  // namespace graphopt::sparse_matmul
