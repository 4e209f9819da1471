"""Idioms of frameworks that take several nodes for what fewer do: repetition, caches, tables, shuffles, bounds."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from random_models.builder import BOOL, F32, F64, I64, Builder, Refused
from random_models.movement import HIGHEST, listed, size_of, sizes_of
from random_models.neighbourhoods import either
from random_models.operators import constant_like, epsilon_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from random_models.values import Value

_BOUNDED = ("Sigmoid", "Tanh", "Abs", "Exp", "Relu", "Softplus", "HardSigmoid", "Softsign", "Sqrt", "Cos")


def inverses(b: Builder) -> Value:
    """Operators that undo each other, or only nearly."""
    kind = b.ask.integer(0, 5)
    if kind == 0:
        x = b.pick((BOOL,))
        return b.node("Not", [b.node("Not", [x])])
    if kind == 1:
        x = b.pick((F32, I64))
        y = b.node("Neg", [b.node("Neg", [x])])
        return b.node("Abs", [b.node("Neg", [y])]) if b.ask.chance(50) else y
    if kind == 2:
        x = b.any_float()
        steps = [b.ask.pick(("Floor", "Ceil", "Round", "Sign")) for _ in range(2)]
        return b.node(steps[1], [b.node(steps[0], [x])])
    if kind == 3:
        x = b.pick((F32, F64))
        y = b.node("Neg", [b.pick((x.dtype,))])
        return b.node(b.ask.pick(("Add", "Sub", "Mul")), [x, y] if b.ask.chance(60) else [y, x])
    if kind == 4:
        x = b.pick((BOOL,))
        return b.node(b.ask.pick(("And", "Or", "Xor")), [x, x])
    x, y = b.pick((I64,)), b.pick((I64,))
    return b.node("Not", [b.node(b.ask.pick(("Greater", "Less", "GreaterOrEqual", "LessOrEqual")), [x, y])])


def bounds(b: Builder) -> Value:
    """Limits on what lies within them, or just not."""
    x = b.node(b.ask.pick(_BOUNDED), [b.any_float()])
    for _ in range(b.ask.integer(1, 2)):
        kind = b.ask.integer(0, 5)
        if kind == 0:
            x = b.node("Mul", [x, b.scalar(b.ask.pick((2.0, 0.5, -1.0)), x.dtype)])
        elif kind == 1:
            x = b.node("Add", [x, b.scalar(b.ask.pick((1.0, -0.5)), x.dtype)])
        elif kind == 2 and x.rank > 1:
            x = b.transpose(x, *b.ask.permutation(x.rank))
        elif kind == 3:
            x = b.node(b.ask.pick(("Max", "Min")), [x, b.scalar(b.ask.pick((0.0, -1.0, 1.0, -0.0, 5.0)), x.dtype)])
    last = b.ask.integer(0, 3)
    if last == 0:
        return b.node("Relu", [x])
    if last == 1:
        return b.node("LeakyRelu", [x], alpha=0.2)
    if last == 2:
        return b.node(b.ask.pick(("Max", "Min")), [x, b.scalar(b.ask.pick((0.0, 1.0, -1.0, 3.0)), x.dtype)])
    return b.clip(x, b.ask.pick((None, 0.0, -1.0, -0.0)), b.ask.pick((None, 1.0, 3.0, 6.0)))


def leaky(b: Builder) -> Value:
    """LeakyRelu and absolute value in small steps."""
    x = b.any_float()
    slope = b.constant(b.ask.pick((0.1, 0.01, 1.5, -0.2)), x.dtype)
    kind = b.ask.integer(0, 2)
    if kind == 0:
        return either(b, b.ask.pick(("Max", "Min")), x, either(b, "Mul", x, slope))
    if kind == 1:
        falling = b.node("Mul", [b.node("Relu", [b.node("Neg", [x])]), slope])
        return b.node("Sub", [b.node("Relu", [x]), falling])
    return b.node("Where", [b.node("Greater", [x, b.constant(0.0, x.dtype)]), x, b.node("Mul", [x, slope])])


def reciprocals(b: Builder) -> Value:
    """A quotient by way of a reciprocal, a choice by way of its negation."""
    x, y = b.any_float(), b.any_float(where=lambda value: all(np.all(np.abs(a) > 0.2) for a in value.arrays))
    if y.dtype != x.dtype:
        raise Refused
    if b.ask.chance(50):
        inverse = b.node("Reciprocal", [y]) if b.ask.chance(60) else b.node("Div", [b.constant(1.0, x.dtype), y])
        return either(b, "Mul", x, inverse)
    condition = b.node("Not", [b.pick((BOOL,))])
    return b.node("Where", [condition, x, y])


def repetition(b: Builder) -> Value:
    """repeat_interleave and repeat: an axis inserted, expanded or tiled, and merged."""
    x = b.pick((F32,), (2, 3, 4))
    axis, times = b.ask.integer(1, x.rank - 1), b.ask.integer(2, 3)
    wide = b.with_axes("Unsqueeze", x, [axis + b.ask.integer(0, 1)]) if x.rank < 4 else None
    if wide is None:
        raise Refused
    place = next(i for i in (axis, axis + 1) if wide.shape[i] == 1)
    repeats = [1] * wide.rank
    repeats[place] = times
    many = b.node("Tile" if b.ask.chance(50) else "Expand", [wide, b.ints(*repeats)])
    size = x.shape[axis]
    target = [0] * x.rank
    target[axis] = size * times if size is not None else -1
    return b.reshape(many, *target[: axis + 1], *(x.shape[i] or -1 for i in range(axis + 1, x.rank)))


def twins(b: Builder) -> Value:
    """The same done to two parts of one Split, with the same or different other operands."""
    x = b.pick((F32,), (2, 3, 4), lambda value: (value.shape[-1] or 0) in {4, 6, 8})
    size = int(x.shape[-1] or 0)
    axis = x.rank - 1
    parts = b.split(x, axis, [size // 2, size // 2])
    table = constant_like(b, parts[0])
    results = []
    for part in parts:
        y = either(b, "Mul", part, table if b.ask.chance(85) else constant_like(b, part))
        results.append(b.node("Tanh", [y]) if b.ask.chance(95) else y)
    if b.ask.chance(40):
        return b.node("Add", results)
    return b.node("Concat", results if b.ask.chance(60) else results[::-1], axis=axis)


def cache(b: Builder) -> Value:
    """Rows of a tensor that are overwritten by index: all of them, some, or some twice."""
    x = b.pick((F32,), (2, 3), lambda value: (value.shape[0] or 0) > 1)
    if b.opset < 11:
        raise Refused
    rows = int(x.shape[0] or 0)
    for _ in range(b.ask.integer(1, 2)):
        start = b.ask.integer(0, rows - 1)
        stop = b.ask.integer(start + 1, rows)
        index = np.arange(start, stop).reshape(-1, 1)
        if b.ask.chance(20):
            index = index[::-1].copy()
        update = b.node("Tanh", [b.slice(x, 0, start, stop)])
        x = b.node("ScatterND", [x, b.constant(index, I64), update])
    return x


def table_of_positions(b: Builder) -> Value:
    """Rows of a table, as many as another tensor has, added to it."""
    x = b.pick((F32,), (2, 3), lambda value: value.shape[-1] is not None)
    if any(array.shape[-2] > 6 for array in x.arrays):
        raise Refused
    width = int(x.shape[-1] or 0)
    table = b.weight(6, width)
    length = b.node("Gather", [sizes_of(b, x), b.constant(x.rank - 2, I64)], axis=0)
    start = b.constant(0 if b.ask.chance(85) else 1, I64)
    if b.ask.chance(60):
        index = b.node("Range", [start, length, b.constant(1, I64)])
    else:
        ends = b.with_axes("Unsqueeze", length, [0])
        if b.opset < 10:
            raise Refused
        index = b.node("Slice", [b.constant(np.arange(6), I64), b.ints(0), ends, b.ints(0)])
    return either(b, b.ask.pick(("Add", "Mul")), x, b.node("Gather", [table, index], axis=0))


def pixel_shuffle(b: Builder) -> Value:
    """DepthToSpace by Reshape, Transpose, Reshape; with another permutation it is something else."""
    x = b.pick((F32,), (4,), lambda value: (value.shape[1] or 0) % 4 == 0 and None not in value.shape[1:])
    channels, height, width = (int(size or 0) for size in x.shape[1:])
    perm = b.ask.pick(((0, 3, 4, 1, 5, 2), (0, 1, 4, 2, 5, 3), (0, 1, 4, 3, 5, 2)))
    first = [0, 2, 2, channels // 4, height, width] if perm[1] == 3 else [0, channels // 4, 2, 2, height, width]
    y = b.transpose(b.reshape(x, *first), *perm)
    return b.reshape(y, 0, channels // 4, height * 2, width * 2)


def instance_norm_by_groups(b: Builder) -> Value:
    """GroupNormalization as exporters write it: Reshape, InstanceNormalization, Reshape, scale, shift."""
    x = b.pick((F32,), (3, 4), lambda value: (value.shape[1] or 0) in {2, 4, 6})
    channels = int(x.shape[1] or 0)
    groups = b.ask.pick((1, 2))
    flat = b.reshape(x, 0, groups, -1)
    ones, zeros = b.constant(np.ones(groups), F32), b.constant(np.zeros(groups), F32)
    normal = b.node("InstanceNormalization", [flat, ones, zeros], epsilon=epsilon_of(b))
    back = b.node("Reshape", [normal, sizes_of(b, x)])
    tail = [1] * (x.rank - 2)
    scaled = either(b, "Mul", back, b.weight(channels, *tail))
    return either(b, "Add", scaled, b.weight(channels, *tail))


def reduction_and_view(b: Builder) -> Value:
    """A reduction that keeps its axes, something on each element, and a view that drops them, or puts them back."""
    x = b.any_float(2, 3, 4)
    axes = sorted(b.ask.sample(range(x.rank), b.ask.integer(1, 2)))
    keep = b.ask.integer(0, 1)
    y = b.reduce(b.ask.pick(("ReduceMean", "ReduceMax", "ReduceSum")), x, axes, keep)
    for _ in range(b.ask.integer(0, 2)):
        if b.ask.chance(60):
            y = b.node(b.ask.pick(("Relu", "Tanh", "Neg")), [y])
        else:
            y = b.node("Mul", [y, b.scalar(0.5, y.dtype)])
    if not keep:
        return b.with_axes("Unsqueeze", y, axes)
    return b.with_axes("Squeeze", y, axes) if b.ask.chance(60) else b.node("Flatten", [y])


def between_views(b: Builder) -> Value:
    """A view, a few operators that could as well work on the tensor before it, and another view."""
    x = b.pick((F32,), (2, 3))
    kind = b.ask.integer(0, 2)
    if kind == 0:
        y = b.with_axes("Unsqueeze", x, [b.ask.integer(0, x.rank)])
    elif kind == 1:
        y = b.reshape(x, *(0 for _ in range(x.rank - 1)), -1, 2)
    else:
        y = b.node("Flatten", [x], axis=b.ask.integer(0, x.rank))
    for _ in range(b.ask.integer(1, 3)):
        step = b.ask.integer(0, 6)
        if step <= 1:
            y = b.node(b.ask.pick(("Relu", "Tanh", "Sigmoid")), [y])
        elif step == 2:
            y = either(b, "Mul", y, constant_like(b, y))
        elif step == 3:
            y = b.slice(y, b.ask.integer(0, y.rank - 1), b.ask.pick((0, 1)), b.ask.pick((HIGHEST, 3)))
        elif step == 4:
            y = b.node("Softmax", [y], axis=y.rank - 1)
        elif step == 5 and y.shape[-1]:
            y = b.node("MatMul", [y, b.weight(int(y.shape[-1] or 0), 2, scale=0.5)])
        else:
            y = b.pad(y, [b.ask.integer(0, 1) for _ in range(2 * y.rank)])
    if 1 in y.shape and b.ask.chance(60):
        return b.with_axes("Squeeze", y, [y.shape.index(1)])
    return b.reshape(y, 0, -1)


def same_condition(b: Builder) -> Value:
    """Two If that ask the same, the second of which may read the first."""
    from random_models.scopes import body_of, local, may_meet, may_nest, whole

    may_nest(b)
    condition = b.pick((BOOL,), (0,))
    x = b.pick((F32,))
    for _ in range(2):
        bodies, results = {}, []
        for name in ("then_branch", "else_branch"):
            inner = Builder(b.ask, b.opset, b.feeds, b)
            y = inner.node(b.ask.pick(("Tanh", "Neg", "Sigmoid", "Tanh")), [x])
            if b.ask.chance(40):
                y = inner.node("Add", [y, constant_like(inner, y)])
            if y.rank != x.rank:
                raise Refused
            bodies[name] = body_of(inner, [], [local(inner, y)])
            results.append(y)
        may_meet(b, *results)
        x = whole(b, "If", [condition], bodies, exact=False)[0]
        if b.ask.chance(40):
            x = b.node("Relu", [x])
    return x


def heads_repeated(b: Builder) -> Value:
    """Keys of fewer heads than queries: Unsqueeze, Expand by sizes, Reshape by sizes."""
    x = b.pick((F32,), (4,))
    wide = b.with_axes("Unsqueeze", x, [2])
    first = size_of(b, x, 0)
    parts = [first, b.ints(int(x.shape[1] or 1)), b.ints(2), size_of(b, x, 2), size_of(b, x, 3)]
    many = b.node("Expand", [wide, listed(b, parts)])
    merged = [size_of(b, x, 0), b.ints(2 * int(x.shape[1] or 1)), size_of(b, x, 2), size_of(b, x, 3)]
    return b.node("Reshape", [many, listed(b, merged)])


IDIOMS: tuple[tuple[Callable[[Builder], Value], int], ...] = (
    (inverses, 4), (bounds, 5), (leaky, 2), (reciprocals, 2), (repetition, 3), (twins, 3), (cache, 3),
    (table_of_positions, 3), (pixel_shuffle, 3), (instance_norm_by_groups, 3), (reduction_and_view, 4),
    (between_views, 5), (same_condition, 3), (heads_repeated, 3),
)  # fmt: skip
"""What there is, with weights."""
