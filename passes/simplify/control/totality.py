"""Which nodes cannot fail at run time, so that they may run where they otherwise might not."""

from __future__ import annotations

from typing import TYPE_CHECKING

from graphopt.graph import dtypes
from graphopt.passes.simplify.purity import is_constant, why_impure

if TYPE_CHECKING:
    from graphopt.analysis.types import Types
    from graphopt.graph import Node

# fmt: off
_ALWAYS = frozenset({
    "Abs", "Acos", "Acosh", "Asin", "Asinh", "Atan", "Atanh", "BitwiseNot", "Ceil", "Celu", "Cos", "Cosh", "Elu", "Erf",
    "Exp", "Floor", "Gelu", "HardSigmoid", "HardSwish", "Identity", "IsInf", "IsNaN", "LeakyRelu", "Log", "Mish", "Neg",
    "Not", "Reciprocal", "Relu", "Round", "Selu", "Shape", "Sigmoid", "Sign", "Sin", "Sinh", "Size", "Softplus",
    "Softsign", "Sqrt", "Swish", "Tan", "Tanh", "ThresholdedRelu",
})
_WITH_SHAPES = frozenset({
    "Add", "And", "AveragePool", "BitwiseAnd", "BitwiseOr", "BitwiseXor", "Concat", "Conv", "ConvTranspose", "Equal",
    "Flatten", "Gemm", "GlobalAveragePool", "GlobalMaxPool", "Greater", "GreaterOrEqual", "InstanceNormalization",
    "LayerNormalization", "Less", "LessOrEqual", "LogSoftmax", "MatMul", "Max", "MaxPool", "Mean", "Min", "Mul", "Or",
    "PRelu", "Softmax", "Sub", "Sum", "Transpose", "Where", "Xor",
})
_WITH_CONSTANTS = frozenset({
    "Clip", "Expand", "Pad", "ReduceL1", "ReduceL2", "ReduceLogSum", "ReduceLogSumExp", "ReduceMax", "ReduceMean",
    "ReduceMin", "ReduceProd", "ReduceSum", "ReduceSumSquare", "Reshape", "Slice", "Split", "Squeeze", "Tile",
    "Unsqueeze",
})
# fmt: on
_OF_FLOATS = frozenset({"Div", "Pow"})
_NUMBERS = (*range(1, 8), 9, 10, 11, 12, 13, 16)  # element types of ONNX: no strings, no complex numbers


def cannot_fail(node: Node, types: Types, failed: frozenset[Node]) -> bool:
    """Whether a node gives a result for all values of its inputs.

    Args:
        node: The node.
        types: Types of the tensors.
        failed: Nodes whose inputs contradict what the operator takes.
    """
    if why_impure(node) or node in failed:
        return False
    if node.op in _ALWAYS:
        return True
    if node.op == "Cast":
        return types.dtype(node.inputs[0]) in _NUMBERS and types.dtype(node.outputs[0]) in _NUMBERS
    if not all(types.static_shape(t) is not None for t in (*node.inputs, *node.outputs) if t.name):
        return False
    if node.op in _OF_FLOATS:
        return types.dtype(node.inputs[0]) in {1, 10, 11, 16} and types.dtype(node.inputs[1]) in {1, 10, 11, 16}
    if any(types.dtype(tensor) in {0, dtypes.STRING} for tensor in node.inputs if tensor.name):
        return False
    if node.op in _WITH_CONSTANTS:
        return all(not tensor.name or is_constant(tensor) for tensor in node.inputs[1:])
    return node.op in _WITH_SHAPES
