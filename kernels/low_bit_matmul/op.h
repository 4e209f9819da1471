// ai.graphopt::LowBitMatMul as ONNX Runtime sees it.
//
//   Y = LowBitMatMul(X, W, B?, R?)   X float [..., K], W uint8 [bytes] a packed matrix (packed.h), B float [N],
//                                    R float, the shape of Y, added before the activation
//   attributes: K int, N int, bits int, block_size int, activations string "int8" (default) | "float";
//               activation string none (default) | relu | relu6 | clip | silu | gelu | gelu_tanh; low, high floats
//
// W must be a constant initializer; it is checked when the session is made and then used where it lies.
#pragma once
#include "base/ort_abi.h"

namespace graphopt::low_bit_matmul {

// The operator, alive as long as the process.
const OrtCustomOp* custom_op();

}  // namespace graphopt::low_bit_matmul
