"""How many arithmetic operations a node does, by operator; :mod:`graphopt.analysis.cost` states the formulas."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeAlias

from graphopt.analysis.dims import exact_div, floordiv, mul, product
from graphopt.errors import KernelError
from graphopt.graph import constant_value
from graphopt.solve.pack_sparse import packed_form
from graphopt.solve.pack_sparse_conv import read_sizes

if TYPE_CHECKING:
    from collections.abc import Callable

    from graphopt.analysis.dims import Dim
    from graphopt.analysis.types import Types
    from graphopt.graph.objects import Node

Formula: TypeAlias = "Callable[[Node, Types], Dim | None]"

_FORMULAS: dict[tuple[str, str], Formula] = {}

_PACKED_FOUR_BYTES = 6
"""Bytes that SparseInt8MatMul's packed weight takes for four weights of one output: they, and their place."""

_MOVING = frozenset(
    {
        *("Identity", "Flatten", "Reshape", "Shape", "Size", "Squeeze", "Unsqueeze", "Transpose", "Concat", "Split"),
        *("Slice", "Gather", "GatherElements", "GatherND", "Scatter", "ScatterElements", "ScatterND", "Expand", "Tile"),
        *(
            "Pad",
            "Cast",
            "CastLike",
            "ConstantOfShape",
            "DepthToSpace",
            "SpaceToDepth",
            "Compress",
            "NonZero",
            "OneHot",
        ),
        *("EyeLike", "ReverseSequence", "Trilu", "Dropout", "Range", "Where", "SequenceAt", "SequenceConstruct"),
        *(
            "SequenceEmpty",
            "SequenceErase",
            "SequenceInsert",
            "SequenceLength",
            "SplitToSequence",
            "ConcatFromSequence",
        ),
        *("If", "Loop", "Scan", "Constant", "Optional", "OptionalGetElement", "OptionalHasElement", "Unique"),
    }
)

_PER_ELEMENT = {
    **dict.fromkeys(("Softmax", "LogSoftmax"), 12),
    **dict.fromkeys(
        ("LayerNormalization", "InstanceNormalization", "GroupNormalization", "RMSNormalization", "LRN"), 8
    ),
    **dict.fromkeys(("MeanVarianceNormalization", "LpNormalization"), 8),
    **dict.fromkeys(("Exp", "Log", "Tanh", "Erf", "Pow", "Sigmoid", "Softplus", "Softsign", "Gelu", "Mish"), 8),
    **dict.fromkeys(("Sin", "Cos", "Tan", "Asin", "Acos", "Atan", "Sinh", "Cosh", "Asinh", "Acosh", "Atanh"), 8),
    **dict.fromkeys(("Elu", "Selu", "Celu", "Swish"), 8),
    "BatchNormalization": 2,
    "QuantizeLinear": 4,
    "DequantizeLinear": 2,
    "DynamicQuantizeLinear": 6,
}

_REDUCING = ("GlobalAveragePool", "GlobalLpPool", "GlobalMaxPool", "ArgMax", "ArgMin", "CumSum", "CumProd", "TopK")


def operations(node: Node, types: Types) -> Dim | None:
    """Return the arithmetic operations of one run of a node.

    None where a shape they depend on is unknown, or the node is not what its operator takes: Types records why.
    """
    try:
        return _operations(node, types)
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError):
        return None


def _operations(node: Node, types: Types) -> Dim | None:
    domain = "" if node.domain in {None, "ai.onnx"} else str(node.domain)
    if not domain and node.op in _MOVING:
        return 0
    formula = _FORMULAS.get((domain, node.op))
    if formula is not None:
        return formula(node, types)
    if not domain and (node.op.startswith("Reduce") or node.op in _REDUCING):
        return types.elements(node.inputs[0])
    count = types.elements(node.outputs[0]) if node.outputs else None
    return None if count is None else mul(count, 1 if domain else _PER_ELEMENT.get(node.op, 1))


def _formula(*ops: str, domain: str = "") -> Callable[[Formula], Formula]:
    def register(function: Formula) -> Formula:
        for op in ops:
            _FORMULAS[domain, op] = function
        return function

    return register


@_formula("MatMul", "MatMulInteger", "QLinearMatMul")
def _matmul(node: Node, types: Types) -> Dim | None:
    a, count = types.shape(node.inputs[0]), types.elements(node.outputs[0])
    return None if not a or count is None else mul(2, mul(count, a[-1]))


@_formula("Gemm")
def _gemm(node: Node, types: Types) -> Dim | None:
    a, count = types.shape(node.inputs[0]), types.elements(node.outputs[0])
    if a is None or len(a) != 2 or count is None:
        return None
    inner = a[0] if node.attrs.get("transA", 0) else a[1]
    bias = count if len(node.inputs) > 2 and node.inputs[2].name else 0
    return mul(2, mul(count, inner)) + bias


@_formula("SparseMatMul", domain="ai.graphopt")
def _sparse_matmul(node: Node, types: Types) -> Dim | None:
    x, packed = types.shape(node.inputs[0]), constant_value(node.inputs[1])
    if not x or packed is None:
        return None
    try:
        return mul(2 * packed_form(packed).stored, product(x[:-1]))
    except KernelError:  # a weight that the kernel refuses too
        return None


@_formula("LowBitMatMul", domain="ai.graphopt")
def _low_bit_matmul(node: Node, types: Types) -> Dim | None:
    x, columns = types.shape(node.inputs[0]), int(node.attrs.get("N", 0))
    return None if not x else mul(2 * columns, product(x))


@_formula("SparseInt8MatMul", domain="ai.graphopt")
def _sparse_int8_matmul(node: Node, types: Types) -> Dim | None:
    x, packed = types.shape(node.inputs[0]), types.elements(node.inputs[1])
    if not x or packed is None:
        return None
    return mul(2, mul(product(x[:-1]), mul(4, floordiv(packed, _PACKED_FOUR_BYTES))))


@_formula("SparseConv", domain="ai.graphopt")
def _sparse_conv(node: Node, types: Types) -> Dim | None:
    packed, y = constant_value(node.inputs[1]), types.shape(node.outputs[0])
    if packed is None or y is None:
        return None
    sizes = read_sizes(packed)
    return mul(2 * sizes.entries * sizes.block, mul(y[0], product(y[2:])))


@_formula("SparseInt8Conv", domain="ai.graphopt")
def _sparse_int8_conv(node: Node, types: Types) -> Dim | None:
    packed, y = types.elements(node.inputs[1]), types.shape(node.outputs[0])
    if packed is None or y is None:
        return None
    return mul(2, mul(mul(y[0], product(y[2:])), mul(4, floordiv(packed, _PACKED_FOUR_BYTES))))


@_formula("ToPadded", "FromPadded", domain="ai.graphopt")
def _reorder(node: Node, types: Types) -> Dim | None:
    return 0


@_formula("Conv", "ConvInteger")
def _conv(node: Node, types: Types) -> Dim | None:
    return _convolution(node, types, weight=1, bias=2)


@_formula("QLinearConv")
def _qlinear_conv(node: Node, types: Types) -> Dim | None:
    return _convolution(node, types, weight=3, bias=8)


def _convolution(node: Node, types: Types, *, weight: int, bias: int) -> Dim | None:
    w, count = types.shape(node.inputs[weight]), types.elements(node.outputs[0])
    if w is None or count is None:
        return None
    biased = node.op != "ConvInteger" and len(node.inputs) > bias and node.inputs[bias].name
    return mul(2, mul(count, product(w[1:]))) + (count if biased else 0)


@_formula("ConvTranspose")
def _conv_transpose(node: Node, types: Types) -> Dim | None:
    w, read, count = types.shape(node.inputs[1]), types.elements(node.inputs[0]), types.elements(node.outputs[0])
    if w is None or read is None or count is None:
        return None
    biased = len(node.inputs) > 2 and node.inputs[2].name
    return mul(2, mul(read, product(w[1:]))) + (count if biased else 0)


@_formula("AveragePool", "LpPool", "MaxPool")
def _pool(node: Node, types: Types) -> Dim | None:
    count = types.elements(node.outputs[0])
    return None if count is None else mul(count, product([int(size) for size in node.attrs.get("kernel_shape", ())]))


@_formula("GRU", "LSTM", "RNN")
def _recurrent(node: Node, types: Types) -> Dim | None:
    x, w, r = types.shape(node.inputs[0]), types.shape(node.inputs[1]), types.shape(node.inputs[2])
    if x is None or w is None or r is None:
        return None
    # W is (directions, gates * hidden, input) and R is (directions, gates * hidden, hidden).
    return mul(2, mul(product(x[:2]), mul(product(w[:2]), w[2] + r[2])))


@_formula("Einsum")
def _einsum(node: Node, types: Types) -> Dim | None:
    sizes: dict[str, Dim] = {}
    terms = str(node.attrs.get("equation", "")).replace(" ", "").partition("->")[0].split(",")
    for term, tensor in zip(terms, node.inputs, strict=False):
        shape = types.shape(tensor)
        if shape is None or len(shape) != len(term) or "." in term:
            return None
        sizes.update(zip(term, shape, strict=True))
    return mul(2, product(list(sizes.values())))


@_formula("Attention")
def _attention(node: Node, types: Types) -> Dim | None:
    q, v = types.shape(node.inputs[0]), types.shape(node.inputs[2])
    k = types.shape(node.inputs[1])
    past = types.shape(node.inputs[4]) if len(node.inputs) > 4 and node.inputs[4].name else None
    if q is None or k is None or v is None:
        return None
    total = k[-2] if past is None else k[-2] + past[2]
    if len(q) == 4:
        return mul(2, mul(product(q[:3]), mul(total, q[3] + v[3])))
    heads, kv_heads = int(node.attrs.get("q_num_heads", 0)), int(node.attrs.get("kv_num_heads", 0))
    size = exact_div(v[2], kv_heads) if kv_heads else None
    return None if size is None else mul(2, mul(product(q[:2]), mul(total, q[2] + mul(size, heads))))
