// ai.graphopt::SparseConv, ToPadded and FromPadded as ONNX Runtime sees them.
//
//   Y = SparseConv(X, W, B?, R?)   W uint8 [bytes] a packed weight (packed.h), B float [M], R float as Y: added before
//                                  the activation. Y = act(conv(X, W) + B + R)
//     kernel_shape, strides, pads, dilations, group   as ONNX Conv has them, for 1 or 2 spatial axes; pads are explicit
//     out_channels int                                M
//     layout_in, layout_out string                    "nchw" (default): float [N, C, H, W] or [N, C, W];
//                                                     "padded": float [N, C, P], contract.h
//     spatial ints                                    H, W or W of X, where layout_in is "padded"
//     activation string, low, high                    base/activation.h; default none
//   Y = ToPadded(X)                nchw to padded
//   Y = FromPadded(X)              padded to nchw; spatial ints: H, W or W
//
// W must be a constant initializer; it is checked when the session is made and then used where it lies.
#pragma once
#include "base/ort_abi.h"

namespace graphopt::sparse_conv {

// The operators, alive as long as the process.
const OrtCustomOp* custom_op();
const OrtCustomOp* to_padded_op();
const OrtCustomOp* from_padded_op();

}  // namespace graphopt::sparse_conv
