"""One operator at a time: each function picks inputs and attributes at random and adds one node, or very few."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from random_models.builder import BOOL, F16, F32, F64, I32, I64, U8, Builder, Refused
from random_models.values import FLOATS, Value

if TYPE_CHECKING:
    from collections.abc import Callable

_SMOOTH = (
    *("Relu", "Tanh", "Sigmoid", "Neg", "Abs", "Identity", "Softplus", "Softsign", "Erf", "Sin", "Cos", "Atan"),
    *("Elu", "Selu", "LeakyRelu", "HardSigmoid", "Exp", "Celu", "Gelu", "Mish", "HardSwish", "Swish", "Dropout"),
)
_ROUGH = ("Floor", "Ceil", "Round", "Sign", "Sqrt", "Log", "Reciprocal", "ThresholdedRelu", "Shrink", "IsNaN", "IsInf")
_BINARY = ("Add", "Sub", "Mul", "Max", "Min", "Div", "Pow", "Sum", "Mean", "PRelu", "Mod")
_REDUCTIONS = (
    *("ReduceMean", "ReduceSum", "ReduceMax", "ReduceMin", "ReduceProd", "ReduceL1", "ReduceL2", "ReduceSumSquare"),
    "ReduceLogSumExp",
)
_INTEGER_DTYPES = (I64, I32)


def unary(b: Builder) -> Value:
    x = b.any_float()
    op = b.ask.pick(_SMOOTH if b.smooth or b.ask.chance(75) else _ROUGH)
    slope = {"alpha": b.ask.pick((0.5, 1.0, 0.1))} if op in {"Elu", "LeakyRelu", "Celu"} and b.ask.chance(50) else {}
    if op == "Gelu" and b.ask.chance(40):
        return b.node(op, [x], approximate="tanh")
    return b.node(op, [x], **slope)


def binary(b: Builder) -> Value:
    op = b.ask.pick(_BINARY[:5] if b.smooth else _BINARY)
    x = b.any_float()
    if b.ask.chance(45):
        y = constant_like(b, x)
        pair = [x, y] if b.ask.chance(60) else [y, x]
    else:
        pair = [x, b.pick((x.dtype,))]
    if op == "Mod":
        return b.node(op, pair, fmod=1)
    return b.node(op, pair)


def constant_like(b: Builder, x: Value) -> Value:
    """Add a constant that broadcasts with a value in one way or another."""
    sizes = [1 if size is None or b.ask.chance(40) else size for size in x.shape]
    while sizes and (sizes[0] == 1 or b.ask.chance(20)) and b.ask.chance(60):
        sizes.pop(0)
    if b.ask.chance(8):
        sizes = [b.ask.pick((1, 2)), *([1] * (x.rank - len(sizes))), *sizes]
    if b.ask.chance(30):
        sizes = []
    if b.ask.chance(35):
        return b.constant(np.full(sizes, b.ask.pick((1.0, 0.0, 2.0, 0.5, -1.0, 3.0, 6.0, -0.0, 0.1))), x.dtype)
    return b.weight(*sizes, dtype=x.dtype)


def variadic(b: Builder) -> Value:
    x = b.any_float()
    others = [b.pick((x.dtype,)) for _ in range(b.ask.integer(0, 2))]
    return b.node(b.ask.pick(("Sum", "Max", "Min", "Mean")), [x, *others])


def clip(b: Builder) -> Value:
    x = b.any_float()
    limits = (None, -2.0, -1.0, -0.5, 0.0, -0.0, 0.5, 1.0, 3.0, 6.0)
    return b.clip(x, b.ask.pick(limits), b.ask.pick(limits))


def cast(b: Builder) -> Value:
    x = b.pick((F32, F64, F16, I64, I32, BOOL, U8))
    target: np.dtype[Any] = b.ask.pick((F32, F64, F16, F32, I32, I64, BOOL))
    if b.smooth and target not in FLOATS:
        raise Refused
    if b.opset >= 15 and b.ask.chance(20):
        return b.node("CastLike", [x, b.pick((F32, F64, I64, I32))])
    return b.cast(x, target)


def integer(b: Builder) -> Value:
    x = b.pick(_INTEGER_DTYPES)
    y = b.constant(b.ask.pick((1, 2, 3, 0, -1, 5)), x.dtype) if b.ask.chance(60) else b.pick((x.dtype,))
    op = b.ask.pick(("Add", "Mul", "Sub", "Max", "Min", "Div", "Mod"))
    if op in {"Div", "Mod"} and any(np.any((array == 0) | (array == -1)) for array in y.arrays):
        raise Refused  # the least integer by -1 ends the process of ONNX Runtime, as 0 does
    return b.node(op, [x, y])


def compare(b: Builder) -> Value:
    x = b.pick((F32, F64, I64, I32))
    y = constant_like(b, x) if x.is_float and b.ask.chance(50) else b.pick((x.dtype,))
    return b.node(b.ask.pick(("Greater", "Less", "Equal", "GreaterOrEqual", "LessOrEqual")), [x, y])


def logic(b: Builder) -> Value:
    x = b.pick((BOOL,))
    if b.ask.chance(40):
        return b.node("Not", [x])
    return b.node(b.ask.pick(("And", "Or", "Xor", "Equal")), [x, b.pick((BOOL,))])


def where(b: Builder) -> Value:
    condition = b.pick((BOOL,))
    x = b.pick((F32, F64, I64))
    y = constant_like(b, x) if x.is_float and b.ask.chance(40) else b.pick((x.dtype,))
    return b.node("Where", [condition, x, y] if b.ask.chance(50) else [condition, y, x])


def reduction(b: Builder) -> Value:
    x = b.any_float(1, 2, 3, 4)
    op = b.ask.pick(_REDUCTIONS)
    keepdims = b.ask.integer(0, 1)
    if b.ask.chance(10):
        return b.node(op, [x], keepdims=keepdims)
    axes = sorted(b.ask.sample(range(x.rank), b.ask.integer(1, min(2, x.rank))))
    return b.reduce(op, x, [axis - x.rank if b.ask.chance(30) else axis for axis in axes], keepdims)


def arg_extreme(b: Builder) -> Value:
    x = b.any_float(1, 2, 3)
    last = 1 if b.opset >= 12 and b.ask.chance(30) else None
    axis = b.ask.integer(-x.rank, x.rank - 1)
    op = b.ask.pick(("ArgMax", "ArgMin"))
    return b.node(op, [x], axis=axis, keepdims=b.ask.integer(0, 1), select_last_index=last)


def softmax(b: Builder) -> Value:
    x = b.any_float(1, 2, 3, 4)
    op = b.ask.pick(("Softmax", "LogSoftmax", "Softmax", "Hardmax"))
    if op == "Hardmax" and b.smooth:
        raise Refused
    return b.node(
        op, [x], axis=None if b.ask.chance(20) else b.ask.integer(-x.rank if b.opset >= 11 else 0, x.rank - 1)
    )


def normalization(b: Builder) -> Value:
    x = b.any_float(2, 3, 4, where=lambda value: isinstance(value.shape[1], int))
    channels = x.shape[1]
    assert channels is not None
    scale, bias = b.weight(channels, dtype=x.dtype), b.weight(channels, dtype=x.dtype)
    kind = b.ask.pick(("batch", "instance", "lp", "mean-variance", "group", "lrn"))
    if kind == "batch":
        mean = b.weight(channels, dtype=x.dtype)
        variance = b.constant(b.ask.generator().uniform(0.3, 2, channels), x.dtype)
        return b.node("BatchNormalization", [x, scale, bias, mean, variance], epsilon=b.ask.pick((None, 0.01)))
    epsilon = epsilon_of(b)
    if kind == "instance":
        return b.node("InstanceNormalization", [x, scale, bias], epsilon=epsilon)
    if kind in {"lp", "mean-variance"} and b.smooth:
        raise Refused
    if kind == "lp":
        return b.node("LpNormalization", [x], axis=b.ask.integer(-1, x.rank - 1), p=b.ask.integer(1, 2))
    if kind == "mean-variance":
        return b.node("MeanVarianceNormalization", [x], axes=[0, 2, 3] if x.rank == 4 else [x.rank - 1])
    if kind == "group" and b.opset >= 21:
        return b.node("GroupNormalization", [x, scale, bias], num_groups=1, epsilon=epsilon)
    return b.node("LRN", [x], size=3)


def epsilon_of(b: Builder) -> float | None:
    """Return what a normalization adds to the variance: much where the variance is not known, in loops."""
    return 0.5 if b.smooth else b.ask.pick((None, None, 0.5, 1e-3))


def layer_normalization(b: Builder) -> Value:
    x = b.any_float(2, 3, where=lambda value: isinstance(value.shape[-1], int) and value.shape[-1] > 0)
    width = x.shape[-1]
    assert width is not None
    epsilon = epsilon_of(b)
    if b.opset >= 23 and b.ask.chance(40):
        return b.node("RMSNormalization", [x, b.weight(width, dtype=x.dtype)], epsilon=epsilon)
    bias = [b.weight(width, dtype=x.dtype)] if b.ask.chance(60) else []
    return b.node("LayerNormalization", [x, b.weight(width, dtype=x.dtype), *bias], epsilon=epsilon)


def convolution(b: Builder) -> Value:
    x = b.pick((F32,), (3, 4), lambda value: isinstance(value.shape[1], int) and value.shape[1] > 0)
    channels = x.shape[1]
    assert channels is not None
    dims = x.rank - 2
    group = channels if b.ask.chance(15) else b.ask.pick([g for g in (1, 1, 2) if channels % g == 0])
    kernel = [b.ask.pick((1, 2, 3)) for _ in range(dims)]
    transposed = b.ask.chance(15)
    out = group * b.ask.pick((1, 2))
    shape = (channels, out // group, *kernel) if transposed else (out, channels // group, *kernel)
    inputs = [x, b.weight(*shape, scale=0.5), *([b.weight(out)] if b.ask.chance(60) else [])]
    more = window(b, dims)
    if transposed:
        more.pop("dilations", None)
        return b.node("ConvTranspose", inputs, group=group, **more)
    return b.node("Conv", inputs, group=group, kernel_shape=kernel if b.ask.chance(60) else None, **more)


def window(b: Builder, dims: int) -> dict[str, Any]:
    """Return attributes of a window that slides over some axes."""
    more: dict[str, Any] = {}
    if b.ask.chance(35):
        more["strides"] = [b.ask.integer(1, 2) for _ in range(dims)]
    if b.ask.chance(20):
        more["auto_pad"] = b.ask.pick(("SAME_UPPER", "SAME_LOWER", "VALID"))
        return more
    if b.ask.chance(15):
        more["dilations"] = [b.ask.integer(1, 2) for _ in range(dims)]
    if b.ask.chance(50):
        more["pads"] = [b.ask.integer(0, 1) for _ in range(2 * dims)]
    return more


def pooling(b: Builder) -> Value:
    x = b.pick((F32,), (3, 4))
    dims = x.rank - 2
    op = b.ask.pick(("MaxPool", "AveragePool", "GlobalAveragePool", "GlobalMaxPool", "LpPool"))
    if op.startswith("Global"):
        return b.node(op, [x])
    more = window(b, dims)
    if op != "MaxPool":
        more.pop("dilations", None)
    if op == "AveragePool" and b.ask.chance(50):
        more["count_include_pad"] = 1
    kernel = [b.ask.integer(1, 3) for _ in range(dims)]
    # a window that begins behind the input: onnx and ONNX Runtime do not agree whether it counts
    apart = any(more.get("pads", ())) or min(kernel) < max(more.get("strides", (1,)))
    if op != "LpPool" and b.opset >= 10 and "auto_pad" not in more and not apart and b.ask.chance(30):
        more["ceil_mode"] = 1
    if op == "MaxPool" and b.ask.chance(20):
        return b.many(op, [x], 2, kernel_shape=kernel, **more)[0]
    return b.node(op, [x], kernel_shape=kernel, **more)


def matmul(b: Builder) -> Value:
    x = b.any_float(1, 2, 3, 4)
    width = x.shape[-1]
    if b.ask.chance(25) or width is None:
        return b.node("MatMul", [x, b.pick((x.dtype,), (1, 2, 3))])
    shape = b.ask.pick(((width, 3), (width, 4), (width,), (width, width), (2, width, 2)))
    return b.node("MatMul", [x, b.weight(*shape, dtype=x.dtype, scale=0.7)])


def gemm(b: Builder) -> Value:
    x = b.any_float(2)
    left, flip = b.ask.integer(0, 1), b.ask.integer(0, 1)
    width = x.shape[0 if left else 1]
    if width is None:
        raise Refused
    inputs = [x, b.weight(*((3, width) if flip else (width, 3)), dtype=x.dtype, scale=0.7)]
    if b.opset < 11 or b.ask.chance(70):
        inputs.append(b.weight(*b.ask.pick(((3,), (1, 3), (1,), (), (1, 1))), dtype=x.dtype))
    more = {"alpha": b.ask.pick((0.5, 1.0, 2.0)), "beta": b.ask.pick((1.0, 0.5, 0.0))} if b.ask.chance(40) else {}
    return b.node("Gemm", inputs, transA=left or None, transB=flip, **more)


def einsum(b: Builder) -> Value:
    x, y = b.any_float(2, 3), b.any_float(2, 3)
    return b.node(
        "Einsum", [x, y], equation=b.ask.pick(("ij,jk->ik", "bij,jk->bik", "bij,bjk->bik", "ij,ij->i", "ij,kj->ki"))
    )


def recurrent(b: Builder) -> Value:
    x = b.pick((F32,), (3,), lambda value: isinstance(value.shape[2], int) and all(a.size for a in value.arrays))
    width = x.shape[2]  # of nothing at all, ONNX Runtime ends the process
    assert width is not None
    op, gates = b.ask.pick((("LSTM", 4), ("GRU", 3), ("RNN", 1)))
    both = b.ask.chance(30)
    directions = 2 if both else 1
    weights = [b.weight(directions, gates * 2, width, scale=0.7), b.weight(directions, gates * 2, 2, scale=0.7)]
    if b.ask.chance(60):
        weights.append(b.weight(directions, 2 * gates * 2))
    more: dict[str, Any] = {"linear_before_reset": 1} if op == "GRU" and b.ask.chance(40) else {}
    direction = "bidirectional" if both else b.ask.pick((None, "reverse"))
    return b.many(op, [x, *weights], 3 if op == "LSTM" else 2, hidden_size=2, direction=direction, **more)[0]


def quantized(b: Builder) -> Value:
    x = b.pick((F32,))
    if b.opset >= 11 and b.ask.chance(20):
        q, scale, zero = b.many("DynamicQuantizeLinear", [x], 3)
        return b.node("DequantizeLinear", [q, scale, zero])
    scale, zero = b.constant(b.ask.pick((0.1, 0.05)), F32), b.constant(b.ask.pick((128, 0, 3)), U8)
    return b.node("DequantizeLinear", [b.node("QuantizeLinear", [x, scale, zero]), scale, zero])


def cumulative(b: Builder) -> Value:
    x = b.any_float(1, 2, 3)
    axis = b.constant(b.ask.integer(-x.rank, x.rank - 1), I64)
    return b.node("CumSum", [x, axis], exclusive=b.ask.pick((None, 1)), reverse=b.ask.pick((None, 1)))


def non_zero(b: Builder) -> Value:
    return b.node("NonZero", [b.pick((BOOL, I64, I32), (1, 2))])


def one_hot(b: Builder) -> Value:
    index = b.pick((I64,), (0, 1, 2))
    return b.node("OneHot", [index, b.constant(b.ask.integer(1, 5), I64), b.constant([0.0, 1.0], F32)])


OPERATORS: tuple[tuple[Callable[[Builder], Value], int], ...] = (
    (unary, 14), (binary, 18), (variadic, 2), (clip, 5), (cast, 5), (integer, 3), (compare, 3), (logic, 2), (where, 4),
    (reduction, 6), (arg_extreme, 2), (softmax, 4), (normalization, 5), (layer_normalization, 3), (convolution, 8),
    (pooling, 5), (matmul, 7), (gemm, 4), (einsum, 1), (recurrent, 2), (quantized, 2), (cumulative, 1), (non_zero, 1),
    (one_hot, 1),
)  # fmt: skip
"""What there is, with weights."""
