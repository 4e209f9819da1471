"""The steps by which random networks grow: layers and blocks for values of each rank."""

from __future__ import annotations

from typing import Any

import numpy as np
from onnx import TensorProto, helper, numpy_helper

from random_networks import DOMAIN, Net, Shape, Step, Value


def conv(net: Net, x: Value) -> Value:
    """A convolution over all axes behind the channels: grouped, depthwise, strided, dilated, padded."""
    channels, sizes = x.shape[0], x.shape[1:]
    groups = net.pick([g for g in (1, 1, 1, 2, 4, channels) if channels % g == 0])
    rows = groups * net.pick((1, 2, 3, 4, 8))
    kernel = [net.pick([k for k in (1, 2, 3) if k <= size]) for size in sizes]
    dilations = [net.pick((1, 1, 2)) if (k - 1) * 2 < size else 1 for k, size in zip(kernel, sizes, strict=True)]
    strides = [net.pick((1, 1, 1, 2)) for _ in sizes]
    begins, ends = ([net.pick((0, 1)) for _ in sizes] for _ in range(2))
    shape = tuple(
        (s + b + e - d * (k - 1) - 1) // t + 1
        for s, b, e, d, k, t in zip(sizes, begins, ends, dilations, kernel, strides, strict=True)
    )
    weight = net.weight((rows, channels // groups, *kernel), channels // groups * int(np.prod(kernel)))
    inputs = [x.name, weight, *([net.vector((rows,))] if net.chance(0.6) else [])]
    attrs: dict[str, Any] = {"group": groups, "strides": strides, "dilations": dilations}
    if net.chance(0.2):
        shape = tuple(-(-s // t) for s, t in zip(sizes, strides, strict=True))
        attrs |= {"auto_pad": "SAME_UPPER", "dilations": [1] * len(sizes)}
    else:
        attrs |= {"pads": [*begins, *ends]}
    return net.node("Conv", inputs, (rows, *shape), **attrs)


def conv_transpose(net: Net, x: Value) -> Value:
    """A transposed convolution, grouped or not."""
    channels, sizes = x.shape[0], x.shape[1:]
    groups = net.pick([g for g in (1, 1, 2) if channels % g == 0])
    rows, stride = groups * net.pick((1, 2, 4)), net.pick((1, 2))
    kernel = [net.pick((1, 2, 3)) for _ in sizes]
    shape = tuple((s - 1) * stride + k for s, k in zip(sizes, kernel, strict=True))
    weight = net.weight((channels, rows // groups, *kernel), channels // groups * int(np.prod(kernel)))
    inputs = [x.name, weight, *([net.vector((rows,))] if net.chance(0.6) else [])]
    return net.node("ConvTranspose", inputs, (rows, *shape), group=groups, strides=[stride] * len(sizes))


def batch_norm(net: Net, x: Value) -> Value:
    c = (x.shape[0],)
    inputs = [net.vector(c, positive=True), net.vector(c), net.vector(c), net.vector(c, positive=True)]
    return net.node("BatchNormalization", [x.name, *inputs], x.shape)


def activation(net: Net, x: Value) -> Value:
    """Something elementwise, or that normalises."""
    op = net.pick(("Relu", "Relu", "LeakyRelu", "Sigmoid", "Tanh", "Clip", "PRelu", "HardSigmoid", "Elu", "Identity"))
    if op == "Clip" and net.opset >= 11:
        ends = [net.constant(np.array(end, net.dtype)) for end in (0, 6)]
        return net.node("Clip", [x.name, *ends], x.shape)
    if op == "Clip":
        op = "Relu"
    if op == "PRelu":
        return net.node("PRelu", [x.name, net.vector((x.shape[0], *[1] * (len(x.shape) - 1)))], x.shape)
    return net.node(op, [x.name], x.shape)


def affine(net: Net, x: Value) -> Value:
    """A factor or an addend per channel, per place or of one number."""
    shape = net.pick(((), (x.shape[-1],), (x.shape[0], *[1] * (len(x.shape) - 1)), (1,)))
    inputs = [x.name, net.vector(shape, positive=net.chance(0.5))]
    return net.node(net.pick(("Add", "Mul", "Sub", "Div")), inputs if net.chance(0.8) else inputs[::-1], x.shape)


def residual(net: Net, x: Value) -> Value:
    """What comes back in the same shape is added, multiplied or concatenated."""
    y = _same(net, _same(net, x))
    if net.chance(0.75):
        return net.node(net.pick(("Add", "Add", "Mul")), [y.name, x.name], x.shape)
    return net.node("Concat", [y.name, x.name], (2 * x.shape[0], *x.shape[1:]), axis=1)


def _same(net: Net, x: Value) -> Value:
    if len(x.shape) <= 2:
        width = x.shape[-1]
        bias = [net.vector((width,))] if net.chance(0.6) else []
        y = net.node("MatMul", [x.name, net.weight((width, width), width)], x.shape)
        y = net.node("Add", [y.name, *bias], x.shape) if bias else y
    else:
        c, rest = x.shape[0], len(x.shape) - 1
        inputs = [x.name, net.weight((c, c, *[3] * rest), c * 3**rest)]
        y = net.node("Conv", [*inputs, net.vector((c,))], x.shape, pads=[1] * (2 * rest))
    return activation(net, y)


def split(net: Net, x: Value) -> Value:
    """Two halves of the channels, one through a layer, together again."""
    c = x.shape[0]
    if c < 2:
        return activation(net, x)
    sizes = [c // 2, c - c // 2]
    names = [net.fresh("t") for _ in sizes]
    if net.opset >= 13:
        net.nodes.append(helper.make_node("Split", [x.name, net.ints(sizes)], names, axis=1))
    else:
        net.nodes.append(helper.make_node("Split", [x.name], names, axis=1, split=sizes))
    one, other = (Value(name, (size, *x.shape[1:])) for name, size in zip(names, sizes, strict=True))
    one = _same(net, one)
    parts = [one.name, other.name]
    return net.node("Concat", parts if net.chance(0.5) else parts[::-1], x.shape, axis=1)


def gate(net: Net, x: Value) -> Value:
    """Squeeze and excitation."""
    c, rest = x.shape[0], len(x.shape) - 1
    y = net.node("GlobalAveragePool", [x.name], (c, *[1] * rest))
    y = net.node("Conv", [y.name, net.weight((2, c, *[1] * rest), c), net.vector((2,))], (2, *[1] * rest))
    y = net.node("Relu", [y.name], y.shape)
    y = net.node("Conv", [y.name, net.weight((c, 2, *[1] * rest), 2), net.vector((c,))], (c, *[1] * rest))
    y = net.node("Sigmoid", [y.name], y.shape)
    return net.node("Mul", [x.name, y.name], x.shape)


def pool(net: Net, x: Value) -> Value:
    if min(x.shape[1:]) < 2:
        return activation(net, x)
    shape = (x.shape[0], *((size - 2) // 2 + 1 for size in x.shape[1:]))
    sides = len(x.shape) - 1
    return net.node(
        net.pick(("MaxPool", "AveragePool")), [x.name], shape, kernel_shape=[2] * sides, strides=[2] * sides
    )


def flatten(net: Net, x: Value) -> Value:
    """To rank 2: all values, or the mean of each channel."""
    if net.chance(0.4) and len(x.shape) > 1:
        x = net.node("GlobalAveragePool", [x.name], (x.shape[0], *[1] * (len(x.shape) - 1)))
    size = int(np.prod(x.shape))
    if size > 1500:
        return activation(net, x)
    return net.reshape(x, (size,)) if net.chance(0.5) else net.node("Flatten", [x.name], (size,))


def to_sequence(net: Net, x: Value) -> Value:
    """From an image to rank 3: places by channels, or channels by places."""
    places = int(np.prod(x.shape[1:]))
    y = net.reshape(x, (x.shape[0], places))
    return net.transpose(y, (0, 2, 1)) if net.chance(0.6) else y


def gemm(net: Net, x: Value) -> Value:
    """A Gemm with all its attributes."""
    columns, rows = x.shape[0], net.pick((1, 3, 8, 10, 16))
    attrs: dict[str, Any] = {}
    name = x.name
    if net.chance(0.15):
        attrs["transA"] = 1
        name = net.node("Transpose", [x.name], x.shape, perm=[1, 0]).name
        net.values.pop()
    turned = net.chance(0.5)
    if turned:
        attrs["transB"] = 1
    weight = net.weight((rows, columns) if turned else (columns, rows), columns)
    if net.chance(0.3):
        attrs |= {"alpha": net.pick((0.5, 1.0, -2.0)), "beta": net.pick((0.0, 0.5, 1.0))}
    bias = [net.vector(net.pick(((rows,), (1, rows), (1,), ())))] if net.chance(0.7) or net.opset < 11 else []
    return net.node("Gemm", [name, weight, *bias], (rows,), **attrs)


def matmul(net: Net, x: Value) -> Value:
    """A product with a constant on either side, plain or stacked, with or without a bias behind it."""
    columns, rows = x.shape[-1], net.pick((2, 4, 8, 16))
    kind = (
        net.source.choices(("right", "left", "stacked", "vector"), (75, 10, 12, 3))[0] if len(x.shape) > 1 else "right"
    )
    if kind == "left":
        shape = (rows, x.shape[-2])
        return net.node("MatMul", [net.weight(shape, x.shape[-2]), x.name], (*x.shape[:-2], rows, columns))
    if kind == "stacked":
        stack: Shape = (x.shape[0],) if len(x.shape) == 3 else (1,)
        weight = net.weight((*stack, columns, rows), columns)
        return net.node("MatMul", [x.name, weight], (*x.shape[:-1], rows))
    y = net.node("MatMul", [x.name, net.weight((columns, rows), columns)], (*x.shape[:-1], rows))
    return net.node("Add", [y.name, net.vector((rows,))], y.shape) if net.chance(0.6) else y


def layer_norm(net: Net, x: Value) -> Value:
    c = (x.shape[-1],)
    if net.opset >= 17:
        return net.node("LayerNormalization", [x.name, net.vector(c, positive=True), net.vector(c)], x.shape, axis=-1)
    return net.node("Softmax", [x.name], x.shape, axis=len(x.shape)) if net.chance(0.2) else affine(net, x)


def attention(net: Net, x: Value) -> Value:
    """Heads of queries, keys and values; ``x`` is [places, width]."""
    length, width = x.shape
    if width % 2:
        return activation(net, x)
    parts = []
    for order in ((0, 2, 1, 3), (0, 2, 3, 1), (0, 2, 1, 3)):
        y = net.node("MatMul", [x.name, net.weight((width, width), width)], x.shape)
        y = net.node("Add", [y.name, net.vector((width,))], x.shape)
        parts.append(net.transpose(net.reshape(y, (length, 2, width // 2)), order))
    q, k, v = parts
    scores = net.node("MatMul", [q.name, k.name], (2, length, length))
    scores = net.node("Softmax", [scores.name], scores.shape, axis=3 if net.opset < 13 else -1)
    y = net.transpose(net.node("MatMul", [scores.name, v.name], (2, length, width // 2)), (0, 2, 1, 3))
    y = net.reshape(y, (length, width))
    y = net.node("MatMul", [y.name, net.weight((width, width), width)], x.shape)
    return net.node("Add", [y.name, x.name], x.shape) if net.chance(0.8) else y


def recurrent(net: Net, x: Value) -> Value:
    """An LSTM, GRU or RNN over the places."""
    if net.dtype == np.float16:  # ONNX Runtime 1.31 ends the process when it optimizes these
        return activation(net, x)
    op, width, hidden = net.pick(("LSTM", "GRU", "RNN")), x.shape[1], net.pick((3, 8))
    gates = {"LSTM": 4, "GRU": 3, "RNN": 1}[op] * hidden
    turned = net.node("Transpose", [x.name], x.shape, perm=[1, 0, 2])
    net.values.pop()
    weights = [net.weight((1, gates, width), width), net.weight((1, gates, hidden), hidden)]
    bias = [net.vector((1, 2 * gates))] if net.chance(0.6) else []
    attrs: dict[str, Any] = {"linear_before_reset": 1} if op == "GRU" and net.chance(0.5) else {}
    y = net.node(op, [turned.name, *weights, *bias], x.shape, hidden_size=hidden, **attrs)
    net.values.pop()
    axes = [net.ints([1])] if net.opset >= 13 else []
    squeezed: dict[str, Any] = {} if axes else {"axes": [1]}
    y = net.node("Squeeze", [y.name, *axes], x.shape, **squeezed)
    net.values.pop()
    return net.node("Transpose", [y.name], (x.shape[0], hidden), perm=[1, 0, 2])


def branch(net: Net, x: Value) -> Value:
    """An If whose branches hold layers."""
    width = x.shape[-1]
    weights = [net.weight((width, width), width) for _ in range(2)]
    element = helper.np_dtype_to_tensor_dtype(net.dtype)
    graphs = []
    for weight in weights:
        out = net.fresh("t")
        info = helper.make_tensor_value_info(out, element, None)
        inner = helper.make_node("MatMul", [x.name, weight], [out], name=net.fresh("n"))
        graphs.append(helper.make_graph([inner], net.fresh("g"), [], [info]))
    total = net.node("ReduceSum" if net.opset < 13 else "ReduceMean", [x.name], (), keepdims=0)
    net.values.pop()
    zero = net.constant(np.array(0, net.dtype))
    condition = net.node("Greater", [total.name, zero], ())
    net.values.pop()
    return net.node("If", [condition.name], x.shape, then_branch=graphs[0], else_branch=graphs[1])


def loop(net: Net, x: Value) -> Value:
    """A Loop whose body multiplies its state by a weight of its own."""
    width = x.shape[-1]
    element = helper.np_dtype_to_tensor_dtype(net.dtype)
    weight = (net.draw.standard_normal((width, width)) / np.sqrt(width)).astype(net.dtype)
    i, go, state, on, out, w = (net.fresh("b") for _ in range(6))
    body = helper.make_graph(
        [helper.make_node("Identity", [go], [on]), helper.make_node("MatMul", [state, w], [out], name=net.fresh("n"))],
        net.fresh("g"),
        [
            helper.make_tensor_value_info(i, TensorProto.INT64, []),
            helper.make_tensor_value_info(go, TensorProto.BOOL, []),
            helper.make_tensor_value_info(state, element, None),
        ],
        [helper.make_tensor_value_info(on, TensorProto.BOOL, []), helper.make_tensor_value_info(out, element, None)],
        [numpy_helper.from_array(weight, w)],
    )
    count = net.constant(np.array(2, np.int64))
    return net.node("Loop", [count, net.constant(np.array(True)), x.name], x.shape, body=body)


def function(net: Net, x: Value) -> Value:
    """A call of a function that multiplies by a weight it is given, and by one of its own."""
    width = x.shape[-1]
    own = numpy_helper.from_array((net.draw.standard_normal((width, width)) / np.sqrt(width)).astype(net.dtype))
    name = net.fresh("F")
    nodes = [
        helper.make_node("MatMul", ["a", "w"], ["b"]),
        helper.make_node("Constant", [], ["v"], value=own),
        helper.make_node("MatMul", ["b", "v"], ["c"]),
    ]
    imports = [helper.make_opsetid("", net.opset)]
    net.functions.append(helper.make_function(DOMAIN, name, ["a", "w"], ["c"], nodes, imports))
    return net.node(name, [x.name, net.weight((width, width), width)], x.shape, domain=DOMAIN)


def quantized(net: Net, x: Value) -> Value:
    """A layer whose weight is stored as integers already."""
    if net.dtype != np.float32:
        return activation(net, x)
    width = x.shape[-1]
    values = net.constant(net.draw.integers(-127, 128, (width, width)).astype(np.int8))
    inputs = [values, net.constant(np.float32(0.01)), net.constant(np.int8(0))]
    name = net.node("DequantizeLinear", inputs, ()).name
    net.values.pop()
    net.odd.append("quantized weight")
    return net.node("MatMul", [x.name, name], x.shape)


def computed(net: Net, x: Value) -> Value:
    """A layer whose weight is computed from constants."""
    width = x.shape[-1]
    name = net.node("Mul", [net.weight((width, width), width), net.vector((width,), positive=True)], ()).name
    net.values.pop()
    return net.node("MatMul", [x.name, name], x.shape)


_ODD: list[tuple[Step, int]] = [(branch, 2), (loop, 2), (function, 2), (quantized, 2), (computed, 2)]
_IMAGES: list[tuple[Step, int]] = [(conv, 30), (conv_transpose, 6), (batch_norm, 10), (activation, 12), (affine, 5)]
_IMAGES += [(residual, 10), (split, 4), (gate, 4), (pool, 5), (flatten, 8), *_ODD]
_ROWS: list[tuple[Step, int]] = [(matmul, 24), (layer_norm, 10), (activation, 8), (affine, 5), (attention, 12)]
_ROWS += [(recurrent, 8), (conv, 12), (conv_transpose, 2), (residual, 8), (split, 3), (flatten, 8), *_ODD]

STEPS: dict[int, list[tuple[Step, int]]] = {
    1: [(gemm, 30), (matmul, 15), (activation, 10), (affine, 5), (residual, 8), (split, 4), (layer_norm, 4), *_ODD],
    2: _ROWS,
    3: [*_IMAGES, (to_sequence, 8), (matmul, 3)],
    4: [*_IMAGES, (to_sequence, 4)],
}
"""Steps with their shares, by the axes of a value behind its batch axis."""
