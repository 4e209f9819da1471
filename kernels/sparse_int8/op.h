// ai.graphopt::SparseInt8MatMul and ai.graphopt::SparseInt8Conv as ONNX Runtime sees them.
//
//   Y = SparseInt8MatMul(X, W, B?, R?)  X float or uint8 [..., K]; W [bytes], packed weights (packed.h), uint8 where Y is
//                                       float and int8 where it is uint8; B float [N]; R float like Y; Y float or
//                                       uint8 [..., N]
//   Y = SparseInt8Conv(X, W, B?, R?)    X float or uint8 [batch, channels, height, width]; Y [batch, N, ...]
//   attributes: N int; K int (SparseInt8MatMul); kernel_shape, strides, pads, dilations, group as Conv has them
//     (SparseInt8Conv); activation, low, high as all operators have them;
//     x_scale float, x_zero_point int   the grid of X. Without x_scale a float X is rounded on a grid found in every run.
//     output string "float" (default) | "uint8"; y_scale float, y_zero_point int: the grid of a uint8 Y
//
// W must be a constant initializer; it is checked when the session is made and then used where it lies. The rows of the
// weight of a convolution are (channel of the group, row, column of the kernel), or (row, column, channel) with the
// attribute channels_last int 1; the outputs of a group begin at a multiple of the panel.
#pragma once
#include "base/ort_abi.h"

namespace graphopt::sparse_int8 {

// Operators of one name differ in the types of X and Y. All live as long as the process.
constexpr size_t type_pairs = 4;
const OrtCustomOp* matmul_op(size_t type_pair);
const OrtCustomOp* conv_op(size_t type_pair);

constexpr size_t operators = 2 * type_pairs;
const OrtCustomOp* custom_op(size_t index);

}  // namespace graphopt::sparse_int8
