"""Which nodes may be computed once and for all: an allow-list, because being called deterministic is not enough.

The schema of an operator says whether it is deterministic, but not that its value may be frozen: a quantization pair
marks what runs in low precision, a custom operator may read a clock. Only the operators named here are ever evaluated.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import onnx_graphsurgeon as gs

from graphopt.graph import Constant, RawAttribute, is_graph_input, producer

if TYPE_CHECKING:
    from graphopt.graph import Node, Tensor

# fmt: off
PURE: frozenset[str] = frozenset({
    "Abs", "Acos", "Acosh", "Add", "AffineGrid", "And", "ArgMax", "ArgMin", "Asin", "Asinh", "Atan", "Atanh",
    "AveragePool", "BitCast", "BitShift", "BitwiseAnd", "BitwiseNot", "BitwiseOr", "BitwiseXor", "BlackmanWindow",
    "Cast", "CastLike", "Ceil", "Celu", "CenterCropPad", "Clip", "Col2Im", "Compress", "Concat", "ConstantOfShape",
    "Conv", "ConvInteger", "ConvTranspose", "Cos", "Cosh", "CumProd", "CumSum", "DFT", "DepthToSpace", "Det", "Div",
    "Einsum", "Elu", "Equal", "Erf", "Exp", "Expand", "EyeLike", "Flatten", "Floor", "GRU", "Gather", "GatherElements",
    "GatherND", "Gelu", "Gemm", "GlobalAveragePool", "GlobalLpPool", "GlobalMaxPool", "Greater", "GreaterOrEqual",
    "GridSample", "GroupNormalization", "HammingWindow", "HannWindow", "HardSigmoid", "HardSwish", "Hardmax",
    "Identity", "InstanceNormalization", "IsInf", "IsNaN", "LRN", "LSTM", "LayerNormalization", "LeakyRelu", "Less",
    "LessOrEqual", "Log", "LogSoftmax", "LpNormalization", "LpPool", "MatMul", "MatMulInteger", "Max", "MaxPool",
    "Mean", "MeanVarianceNormalization", "MelWeightMatrix", "Min", "Mish", "Mod", "Mul", "Neg", "NonMaxSuppression",
    "NonZero", "Not", "OneHot", "Or", "PRelu", "Pad", "Pow", "RMSNormalization", "RNN", "Range", "Reciprocal",
    "ReduceL1", "ReduceL2", "ReduceLogSum", "ReduceLogSumExp", "ReduceMax", "ReduceMean", "ReduceMin", "ReduceProd",
    "ReduceSum", "ReduceSumSquare", "Relu", "Reshape", "Resize", "ReverseSequence", "RotaryEmbedding", "Round", "STFT",
    "Scatter", "ScatterElements", "ScatterND", "Selu", "Shape", "Shrink", "Sigmoid", "Sign", "Sin", "Sinh", "Size",
    "Slice", "Softmax", "Softplus", "Softsign", "SpaceToDepth", "Split", "Sqrt", "Squeeze", "Sub", "Sum", "Swish",
    "Tan", "Tanh", "ThresholdedRelu", "Tile", "TopK", "Transpose", "Trilu", "Unique", "Unsqueeze", "Upsample", "Where",
    "Xor",
})
# fmt: on
"""Operators of the ONNX domain whose outputs are a function of their inputs and attributes alone."""

_WHY_NOT: dict[str, str] = {
    **dict.fromkeys(
        ("RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike", "Multinomial", "Bernoulli"),
        "it draws new numbers in every run",
    ),
    **dict.fromkeys(
        ("QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear"),
        "quantization pairs stay, they say what runs in low precision",
    ),
    **dict.fromkeys(("If", "Loop", "Scan", "SequenceMap"), "it is control flow"),
    "Dropout": "it is eliminate-identity that removes Dropout, where it is proved to be in inference mode",
    "BatchNormalization": "it is fuse-batch-norm that removes BatchNormalization, where it is in inference mode",
}

DEFAULT_DOMAINS = (None, "", "ai.onnx")

_WITHOUT_VALUE = (gs.Node.AttributeRef, RawAttribute)


def why_impure(node: Node) -> str:
    """Return why the value of a node may not be computed in advance; empty where it may."""
    if node.domain not in DEFAULT_DOMAINS:
        return f"operators of the domain {node.domain} are never evaluated"
    if node.op not in PURE:
        return _WHY_NOT.get(node.op, f"{node.op} is not on the list of operators that are evaluated")
    if refers_to_function(node):
        return "an attribute is given by the call of the function"
    return ""


def refers_to_function(node: Node) -> bool:
    """Whether an attribute is set by the caller of the function around the node, or is of a kind without a value."""
    for value in node.attrs.values():  # noqa: SIM110 - asked at nearly every visit, and a generator costs more
        if isinstance(value, _WITHOUT_VALUE):
            return True
    return False


def is_constant(tensor: Tensor) -> bool:
    """Whether the value of a tensor is in the model and nobody can replace it; nothing is loaded."""
    if isinstance(tensor, Constant):
        home = tensor.home
        return not (is_graph_input(tensor) if home is None else home.is_overridable(tensor))
    node = producer(tensor)
    return node is not None and is_constant_node(node)


def is_constant_node(node: Node) -> bool:
    """Whether a node is a Constant whose value is written in it."""
    if node.op != "Constant" or node.domain not in DEFAULT_DOMAINS:
        return False
    for value in node.attrs.values():  # noqa: SIM110 - a generator costs more than its work
        if isinstance(value, gs.Node.AttributeRef):
            return False
    return True


def is_op(node: Node | None, *names: str) -> bool:
    """Whether a node is one of these operators of the ONNX domain."""
    return node is not None and node.op in names and node.domain in DEFAULT_DOMAINS
