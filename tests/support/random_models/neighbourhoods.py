"""What exporters write and simplifiers rewrite, whole: each with chances to deviate in the way that makes it a trap."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from random_models.builder import F16, F32, F64, I64, Builder, Refused
from random_models.heads import attention
from random_models.movement import HIGHEST, listed, size_of, sizes_of
from random_models.operators import constant_like, window

if TYPE_CHECKING:
    from collections.abc import Callable

    from random_models.values import Value

FLOATS = (F32, F64, F16)


def either(b: Builder, op: str, x: Value, y: Value) -> Value:
    """Add a commutative operator with its inputs in either order."""
    return b.node(op, [x, y] if b.ask.chance(65) else [y, x])


def affine(b: Builder, x: Value, channels: int) -> Value:
    """Add a scale or shift per channel of axis 1, or one that only looks so."""
    tail = [1] * (x.rank - 2)
    shape: list[int] = b.ask.pick(([channels, *tail], [1, channels, *tail], [1], [], [channels], [1, *tail]))
    op = b.ask.pick(("Mul", "Add", "Sub", "Div"))
    if op == "Div":
        y = b.constant(b.ask.generator().uniform(0.5, 2, shape), x.dtype)
    else:
        y = b.weight(*shape, dtype=x.dtype)
    return either(b, op, x, y) if op in {"Mul", "Add"} or b.ask.chance(20) else b.node(op, [x, y])


def batch_norm(b: Builder, x: Value, channels: int) -> Value:
    """Add a BatchNormalization."""
    scale, bias, mean = (b.weight(channels, dtype=x.dtype) for _ in range(3))
    variance = b.constant(b.ask.generator().uniform(0.3, 2, channels), x.dtype)
    return b.node("BatchNormalization", [x, scale, bias, mean, variance])


def conv_and_affine(b: Builder) -> Value:
    """Pad, scale, Conv or ConvTranspose, scale, BatchNormalization, activation."""
    x = b.pick((F32,), (3, 4), lambda value: isinstance(value.shape[1], int) and 0 < (value.shape[1] or 0) < 9)
    channels, dims = int(x.shape[1] or 0), x.rank - 2
    if b.ask.chance(20):
        x = affine(b, x, channels) if b.ask.chance(60) else batch_norm(b, x, channels)
    if b.ask.chance(30):
        pads = [0, 0, *(b.ask.integer(0, 1) for _ in range(dims))] * 2
        x = b.pad(x, pads, b.ask.pick(("constant", "constant", "constant", "edge")), b.ask.pick((None, 0.0, -0.0, 1.0)))
    group = b.ask.pick([g for g in (1, 1, 1, channels) if channels % g == 0])
    out = group * b.ask.pick((1, 2, 3))
    kernel = [b.ask.integer(1, 3) for _ in range(dims)]
    op = "ConvTranspose" if b.ask.chance(20) else "Conv"
    shape = (channels, out // group, *kernel) if op == "ConvTranspose" else (out, channels // group, *kernel)
    more = window(b, dims)
    weights = [b.weight(*shape, scale=0.4), *([b.weight(out)] if b.ask.chance(50) else [])]
    y = b.node(op, [x, *weights], group=group, **more)
    for _ in range(b.ask.integer(0, 2)):
        y = batch_norm(b, y, out) if b.ask.chance(60) else affine(b, y, out)
    if b.ask.chance(30):
        y = b.node(b.ask.pick(("Relu", "Sigmoid", "LeakyRelu")), [y])
    if b.ask.chance(20) and not more and op == "Conv":
        y = b.node("Conv", [y, b.weight(2, out, *([1] * dims), scale=0.5), b.weight(2)])
    if b.ask.chance(15):
        batch_norm(b, b.node(op, [x, *weights], group=group, **more), out)
    return y


def padded_pool(b: Builder) -> Value:
    """Pad before a pooling."""
    x = b.pick((F32,), (3, 4))
    dims = x.rank - 2
    if b.ask.chance(40):
        x = b.node("Relu", [x])
    pads = [0, 0, *(b.ask.integer(0, 1) for _ in range(dims))] * 2
    x = b.pad(x, pads, value=b.ask.pick((None, 0.0, None, -100.0)))
    op = b.ask.pick(("MaxPool", "AveragePool"))
    more: dict[str, Any] = {"count_include_pad": 1} if op == "AveragePool" and b.ask.chance(50) else {}
    if b.ask.chance(30):
        more["pads"] = [b.ask.integer(0, 1) for _ in range(2 * dims)]
    return b.node(op, [x], kernel_shape=[b.ask.integer(2, 3)] * dims, **more)


def linear(b: Builder) -> Value:
    """MatMul, bias, scale, BatchNormalization; the bias may broadcast in ways that no Gemm does."""
    x = b.any_float(2, 3, where=lambda value: isinstance(value.shape[-1], int) and 0 < (value.shape[-1] or 0) < 40)
    width = int(x.shape[-1] or 0)
    out = b.ask.pick((3, 4, 1))
    y = b.node("MatMul", [x, b.weight(width, out, dtype=x.dtype, scale=0.6)])
    if b.ask.chance(80):
        shape: tuple[int, ...] = b.ask.pick(((out,), (1, out), (4,), (), (2, 1, out), (1,)))
        y = either(b, "Add", y, b.weight(*shape, dtype=x.dtype))
    if b.ask.chance(30):
        y = b.node(b.ask.pick(("Mul", "Div")), [y, b.scalar(b.ask.pick((2.0, 3.0, 0.125, 8.0)), x.dtype)])
    if b.ask.chance(20) and isinstance(y.shape[1], int):
        y = batch_norm(b, y, y.shape[1])
    if b.ask.chance(30):
        y = b.node("MatMul", [y, b.weight(int(y.shape[-1] or 0), 3, dtype=x.dtype, scale=0.6)])
    return y


def layer_norm(b: Builder) -> Value:
    """LayerNormalization or RMSNormalization in small steps."""
    x = b.any_float(2, 3, where=lambda value: (value.shape[-1] or 0) > 2)
    width = int(x.shape[-1] or 0)
    axes = [b.ask.pick((-1, x.rank - 1))] if b.ask.chance(88) else [b.ask.integer(0, x.rank - 1)]
    keep = 0 if b.ask.chance(5) else 1
    centred = x
    if b.ask.chance(75):
        mean = b.reduce("ReduceMean", x, axes, keep)
        centred = b.node("Sub", [x, mean])
    if b.ask.chance(60):
        square = b.node("Pow", [centred, b.constant(4.0 if b.ask.chance(8) else 2.0, x.dtype)])
    else:
        other = b.node("Sub", [x, b.reduce("ReduceMean", x, axes, 1)]) if b.ask.chance(15) else centred
        square = b.node("Mul", [centred, other])
    variance = b.reduce("ReduceSum" if b.ask.chance(6) else "ReduceMean", square, axes, 1)
    epsilon = b.constant(b.ask.pick((1e-5, 1e-3)) if b.ask.chance(90) else [1e-5] * width, x.dtype)
    root = b.node("Sqrt", [either(b, "Add", variance, epsilon)])
    inverse = None if b.ask.chance(70) else b.node("Reciprocal", [root])
    y = b.node("Div", [centred, root]) if inverse is None else either(b, "Mul", centred, inverse)
    shapes: tuple[tuple[int, ...], ...] = ((width,), (width,), (width,), (1, width), (), (2, 1, width), (1,))
    if b.ask.chance(80):
        y = either(b, "Mul", y, b.weight(*b.ask.pick(shapes), dtype=x.dtype))
    if b.ask.chance(70):
        y = either(b, "Add", y, b.weight(*b.ask.pick(shapes), dtype=x.dtype))
    return y


def activation(b: Builder) -> Value:
    """Gelu (both forms), SiLU, HardSwish, Softplus and Mish in small steps, with other constants at times."""
    x = b.any_float()
    kind = b.ask.integer(0, 6)

    def number(right: float) -> Value:
        return b.constant(right if b.ask.chance(93) else right * 1.25, x.dtype)

    if kind == 0:
        scaled = b.node("Div", [x, number(2**0.5)]) if b.ask.chance(70) else either(b, "Mul", x, number(0.5**0.5))
        inner = either(b, "Add", b.node("Erf", [scaled]), number(1.0))
        if b.ask.chance(50):
            return either(b, "Mul", either(b, "Mul", x, inner), number(0.5))
        return either(b, "Mul", either(b, "Mul", x, number(0.5)), inner)
    if kind == 1:
        cube = b.node("Pow", [x, number(3.0)]) if b.ask.chance(60) else b.node("Mul", [b.node("Mul", [x, x]), x])
        total = either(b, "Add", x, either(b, "Mul", cube, number(0.044715)))
        inner = either(b, "Add", b.node("Tanh", [either(b, "Mul", total, number((2 / np.pi) ** 0.5))]), number(1.0))
        return either(b, "Mul", either(b, "Mul", x, number(0.5)), inner)
    if kind == 2:
        gate = x if b.ask.chance(85) else b.pick((x.dtype,))
        if b.ask.chance(30):
            gate = either(b, "Mul", gate, number(1.702))
        return either(b, "Mul", x, b.node("Sigmoid", [gate]))
    if kind == 3:
        inner = b.clip(either(b, "Add", x, number(3.0)), 0.0, b.ask.pick((6.0, 6.0, 5.0)))
        return b.node("Div", [either(b, "Mul", x, inner), number(6.0)])
    if kind == 4:
        more = {"alpha": 1 / 6, "beta": 0.5} if b.ask.chance(60) else {}
        return either(b, "Mul", x, b.node("HardSigmoid", [x], **more))
    if kind == 5:
        return either(b, "Mul", x, b.node("Tanh", [b.node("Softplus", [x])]))
    return b.node("Log", [either(b, "Add", b.node("Exp", [x]), number(1.0))])


def rotary(b: Builder) -> Value:
    """Halves that change places, with a sign, times cosines and sines."""
    x = b.pick((F32,), (3, 4), lambda value: (value.shape[-1] or 0) % 2 == 0 and (value.shape[-1] or 0) > 0)
    width = int(x.shape[-1] or 0)
    left = b.slice(x, x.rank - 1, 0, width // 2)
    right = b.slice(x, x.rank - 1, width // 2, b.ask.pick((HIGHEST, width)))
    turned = b.node("Concat", [b.node("Neg", [right]), left], axis=x.rank - 1)
    angles = b.ask.generator().uniform(0, 3, (1, width // 2)).repeat(2, axis=0).reshape(1, width)
    cosine, sine = b.constant(np.cos(angles), F32), b.constant(np.sin(angles), F32)
    return b.node("Add", [either(b, "Mul", x, cosine), either(b, "Mul", turned, sine)])


def transposed_region(b: Builder) -> Value:
    """Elementwise operators, reductions and joins between a permutation and its inverse, or nearly its inverse."""
    x = b.pick((F32, F64), (2, 3, 4))
    perm = b.ask.permutation(x.rank)
    y = b.transpose(x, *perm)
    for _ in range(b.ask.integer(1, 4)):
        kind = b.ask.integer(0, 7)
        if kind <= 1:
            y = b.node(b.ask.pick(("Relu", "Tanh", "Sigmoid", "Abs")), [y])
        elif kind <= 3:
            y = either(b, b.ask.pick(("Add", "Mul")), y, constant_like(b, y))
        elif kind == 4 and y.rank == x.rank:
            y = b.node("Add", [y, b.transpose(x, *perm)])
        elif kind == 5:
            y = b.node("Softmax", [y], axis=b.ask.integer(0, y.rank - 1))
        elif kind == 6:
            y = b.node("Concat", [y, y], axis=b.ask.integer(0, y.rank - 1))
        elif y.rank > 1:
            y = b.reduce("ReduceMean", y, [b.ask.integer(0, y.rank - 1)], b.ask.integer(0, 1))
    if y.rank == x.rank and b.ask.chance(75):
        return b.transpose(y, *np.argsort(perm).tolist())
    return b.transpose(y, *b.ask.permutation(y.rank)) if y.rank > 1 else y


def image_layout(b: Builder) -> Value:
    """An image with its channels last around operators that want them first."""
    x = b.pick((F32,), (4,), lambda value: isinstance(value.shape[3], int) and 0 < (value.shape[3] or 0) < 9)
    channels = int(x.shape[3] or 0)
    for _ in range(b.ask.integer(1, 2)):
        first = b.transpose(x, 0, 3, 1, 2)
        y = b.node("Conv", [first, b.weight(channels, channels, 1, 1, scale=0.5)])
        x = b.transpose(y, 0, 2, 3, 1)
        x = b.node("Relu", [either(b, "Add", x, b.weight(channels))])
    return x


def chain(b: Builder) -> Value:
    """The same kind of operator several times: limits, casts, constants, views, slices, pads, joins."""
    kind = b.ask.integer(0, 8)
    x = b.any_float(1, 2, 3) if kind in {4, 5, 6, 7} else b.any_float()
    for _ in range(b.ask.integer(2, 4)):
        if kind == 0:
            limits = (None, -2.0, -1.0, 0.0, 0.5, 1.0, 6.0)
            x = b.node("Relu", [x]) if b.ask.chance(25) else b.clip(x, b.ask.pick(limits), b.ask.pick(limits))
        elif kind == 1:
            x = b.cast(x, b.ask.pick((F64, F32, F16)))
        elif kind == 2:
            x = either(
                b, b.ask.pick(("Mul", "Add", "Mul")), x, b.scalar(b.ask.pick((2.0, 0.5, 3.0, -1.0, 0.1)), x.dtype)
            )
        elif kind == 3:
            x = b.node(b.ask.pick(("Sub", "Div", "Add", "Mul")), [x, b.scalar(b.ask.pick((4.0, 3.0, 0.25)), x.dtype)])
        elif kind == 4:
            x = b.slice(
                x,
                b.ask.integer(0, x.rank - 1),
                b.ask.pick((0, 1, -2)),
                b.ask.pick((HIGHEST, -1, 3)),
                b.ask.pick((1, 1, 2)),
            )
        elif kind == 5:
            x = b.pad(x, [b.ask.integer(0, 1) for _ in range(2 * x.rank)], value=b.ask.pick((None, None, 1.0)))
        elif kind == 6:
            axis = b.ask.integer(0, x.rank)
            x = b.with_axes("Unsqueeze", x, [axis]) if x.rank < 4 else b.node("Flatten", [x])
            if b.ask.chance(40):
                x = b.with_axes("Squeeze", x, [axis])
        elif kind == 7:
            x = b.transpose(x, *b.ask.permutation(x.rank)) if x.rank > 1 else b.with_axes("Unsqueeze", x, [0])
        else:
            x = b.node("Identity", [x]) if b.ask.chance(50) else b.node("Dropout", [x])
    return x


def split_and_join(b: Builder) -> Value:
    """Parts that are taken apart and put together, by Split, Slice or Gather."""
    x = b.pick((F32,), (2, 3), lambda value: (value.shape[-1] or 0) > 1)
    axis, size = x.rank - 1, int(x.shape[-1] or 0)
    cut = b.ask.integer(1, size - 1)
    if b.ask.chance(40):
        parts = b.split(x, axis, [cut, size - cut])
    else:
        parts = [b.slice(x, axis, 0, cut), b.slice(x, axis, cut, b.ask.pick((HIGHEST, size)))]
    if b.ask.chance(30):
        parts[0] = b.node("Relu", [parts[0]])
    return b.node("Concat", parts if b.ask.chance(70) else parts[::-1], axis=axis)


def expand_like_exporter(b: Builder) -> Value:
    """An expand of PyTorch: -1 in the target keeps a size, found out by Equal and Where."""
    x = b.pick((F32, I64), (1, 2, 3))
    target = listed(b, [b.ints(-1) if b.ask.chance(60) else size_of(b, x, axis) for axis in range(x.rank)])
    shape = b.node("ConstantOfShape", [b.ints(x.rank)], value=_one())
    mask = b.node("Equal", [target, b.node("Mul", [shape, b.constant(-1, I64)])])
    return b.node("Expand", [x, b.node("Where", [mask, shape, target])])


def _one() -> Any:
    import onnx

    return onnx.helper.make_tensor("v", onnx.TensorProto.INT64, [1], [1])


def twice(b: Builder) -> Value:
    """The same node twice, or nearly; both results are used."""
    x = b.any_float()
    y = constant_like(b, x)
    op = b.ask.pick(("Add", "Mul", "Sub"))
    first = b.node(op, [x, y])
    second = b.node(op, [x, y] if b.ask.chance(70) else [y, x])
    return b.node("Max", [first, second])


def constants_only(b: Builder) -> Value:
    """Arithmetic on constants: normalized weights, tables of angles, casts of stored halves."""
    kind = b.ask.integer(0, 3)
    if kind == 0:
        w = b.constant(b.ask.generator().uniform(0.3, 1, (3, 4)), F32)
        w = b.node("Div", [w, b.reduce("ReduceL2", w, [0])])
    elif kind == 1:
        w = b.cast(b.constant(b.ask.generator().uniform(-1, 1, (4,)), F16), F32)
    elif kind == 2:
        steps = b.node("Range", [b.constant(0.0, F32), b.constant(4.0, F32), b.constant(1.0, F32)])
        w = b.node("Sin", [b.node("Mul", [steps, b.constant(0.3, F32)])])
    else:
        w = b.node("Transpose", [b.weight(3, 4)])
    x = b.pick((F32,), where=lambda value: not value.constant)
    return b.node(b.ask.pick(("Add", "Mul")), [x, w])


def mask_of_sizes(b: Builder) -> Value:
    """A causal mask from a Range, compared with itself transposed, added to a tensor."""
    x = b.pick((F32,), (2, 3))
    length = b.node("Gather", [sizes_of(b, x), b.constant(x.rank - 1, I64)], axis=0)
    row = b.node("Range", [b.constant(0, I64), length, b.constant(1, I64)])
    column = b.with_axes("Unsqueeze", row, [1])
    hidden = b.node("Greater", [b.with_axes("Unsqueeze", row, [0]), column])
    mask = b.node("Where", [hidden, b.constant(-10.0, F32), b.constant(0.0, F32)])
    if b.ask.chance(50):
        return b.node("Add", [x, mask])
    return b.node("Add", [b.node("MatMul", [b.transpose(x, *range(x.rank - 2), x.rank - 1, x.rank - 2), x]), mask])


def softmax_in_steps(b: Builder) -> Value:
    """Softmax in small steps, with or without its maximum."""
    x = b.any_float(2, 3)
    axis = x.rank - 1
    if b.ask.chance(60):
        x = b.node("Sub", [x, b.reduce("ReduceMax", x, [axis])])
    e = b.node("Exp", [x])
    return b.node("Div", [e, b.reduce("ReduceSum", e, [axis], 1)])


def merged_products(b: Builder) -> Value:
    """Two or three products of one input, which could be one."""
    x = b.pick((F32,), (2, 3), lambda value: (value.shape[-1] or 0) in range(2, 9))
    width = int(x.shape[-1] or 0)
    parts = []
    for _ in range(b.ask.integer(2, 3)):
        out = b.ask.pick((3, 3, 4))
        part = b.node("MatMul", [x, b.weight(width, out, scale=0.6)])
        parts.append(either(b, "Add", part, b.weight(out)) if b.ask.chance(70) else part)
    if len({part.shape[-1] for part in parts}) == 1:
        return b.node("Sum", parts)
    if any(part.rank != x.rank for part in parts):
        raise Refused
    return b.node("Concat", parts, axis=x.rank - 1)


NEIGHBOURHOODS: tuple[tuple[Callable[[Builder], Value], int], ...] = (
    (conv_and_affine, 9), (padded_pool, 3), (linear, 8), (layer_norm, 8), (activation, 7), (attention, 8), (rotary, 3),
    (transposed_region, 8), (image_layout, 3), (chain, 10), (split_and_join, 4), (expand_like_exporter, 4), (twice, 3),
    (constants_only, 4), (mask_of_sizes, 3), (softmax_in_steps, 2), (merged_products, 4),
)  # fmt: skip
"""What there is, with weights."""
