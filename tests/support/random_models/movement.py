"""Operators that move data, and the computations of sizes that exporters write around them."""

from __future__ import annotations

from math import prod
from typing import TYPE_CHECKING

import numpy as np

from random_models.builder import BOOL, F16, F32, F64, I32, I64, Builder, Refused

if TYPE_CHECKING:
    from collections.abc import Callable

    from random_models.values import Value

ANY = (F32, F64, F16, I64, I32, BOOL)
HIGHEST = 2**63 - 1


def reshape(b: Builder) -> Value:
    x = b.pick(ANY)
    sizes = list(x.shape)
    unknown = [axis for axis, size in enumerate(sizes) if size is None]
    if len(unknown) > 1:
        target = [0 if size is None or b.ask.chance(30) else size for size in sizes]
        if len(target) > 2 and b.ask.chance(60):
            at = b.ask.integer(0, len(target) - 2)
            target[at : at + 2] = [-1]
        return b.reshape(x, *(0 if size == 0 and axis >= len(sizes) else size for axis, size in enumerate(target)))
    total = prod(size for size in sizes if size is not None)
    target = factors(b, total)
    if unknown:
        place = b.ask.integer(0, len(target))
        target.insert(place, 0 if place == unknown[0] and b.ask.chance(40) else -1)
    elif target and b.ask.chance(40):
        target[b.ask.integer(0, len(target) - 1)] = -1
    if total and b.ask.chance(30):
        target = [0 if axis < len(sizes) and size == sizes[axis] else size for axis, size in enumerate(target)]
    return b.reshape(x, *target, allowzero=1 if b.ask.chance(8) else None)


def factors(b: Builder, total: int) -> list[int]:
    """Return sizes whose product is given, in any order, with ones among them."""
    found = []
    rest = total
    for prime in (2, 3, 5, 7, 2, 3):
        if rest > 1 and rest % prime == 0 and b.ask.chance(60):
            found.append(prime)
            rest //= prime
    found.append(rest)
    if b.ask.chance(25):
        found.append(1)
    found = [found[index] for index in b.ask.permutation(len(found))]
    while len(found) > 4:
        found[:2] = [found[0] * found[1]]
    return found


def flatten(b: Builder) -> Value:
    x = b.pick(ANY)
    return b.node("Flatten", [x], axis=b.ask.integer(-x.rank if b.opset >= 11 else 0, x.rank))


def squeeze(b: Builder) -> Value:
    x = b.pick(ANY, where=lambda value: 1 in value.shape)
    ones = [axis for axis, size in enumerate(x.shape) if size == 1]
    if b.ask.chance(10):
        return b.node("Squeeze", [x])
    axes = b.ask.sample(ones, b.ask.integer(1, len(ones)))
    return b.with_axes("Squeeze", x, [axis - x.rank if b.opset >= 11 and b.ask.chance(30) else axis for axis in axes])


def unsqueeze(b: Builder) -> Value:
    x = b.pick(ANY, (0, 1, 2, 3))
    count = b.ask.integer(1, 2)
    axes = b.ask.sample(range(x.rank + count), count)
    if b.opset >= 11 and b.ask.chance(30):
        axes = [axis - x.rank - count for axis in axes]
    return b.with_axes("Unsqueeze", x, axes)


def transpose(b: Builder) -> Value:
    x = b.pick(ANY, (2, 3, 4))
    return b.transpose(x, *b.ask.permutation(x.rank))


def concat(b: Builder) -> Value:
    x = b.pick(ANY, (1, 2, 3, 4))
    axis = b.ask.integer(-x.rank if b.opset >= 11 else 0, x.rank - 1)
    others = [b.pick((x.dtype,), (x.rank,)) for _ in range(b.ask.integer(0, 2))]
    if b.ask.chance(15) and x.is_static:
        sizes = [int(size or 0) for size in x.shape]
        sizes[axis] = b.ask.integer(0, 2)
        others.append(b.constant(np.zeros(sizes), x.dtype))
    return b.node("Concat", [x, *others], axis=axis)


def split(b: Builder) -> Value:
    x = b.pick(ANY, (1, 2, 3, 4), lambda value: any(size and size > 1 for size in value.shape))
    axis = b.ask.pick([axis for axis, size in enumerate(x.shape) if size and size > 1])
    size = int(x.shape[axis] or 0)
    first = b.ask.integer(0, size)
    sizes = b.ask.pick([[first, size - first], [1] * size, [size]])
    parts = b.split(x, axis - x.rank if b.opset >= 11 and b.ask.chance(30) else axis, sizes)
    if len(parts) > 1 and b.ask.chance(40):
        order = b.ask.permutation(len(parts))
        return b.node("Concat", [parts[index] for index in order], axis=axis)
    return b.ask.pick(parts)


def slice_axis(b: Builder) -> Value:
    x = b.pick(ANY, (1, 2, 3, 4))
    if b.opset >= 10 and b.ask.chance(20):
        rows = b.ask.sample(range(x.rank), b.ask.integer(1, x.rank))
        starts = [b.ask.integer(-2, 2) for _ in rows]
        ends = [b.ask.pick((HIGHEST, 3, -1, 100, 2**31 - 1)) for _ in rows]
        return b.node("Slice", [x, b.ints(*starts), b.ints(*ends), b.ints(*rows)])
    axis = b.ask.integer(0, x.rank - 1)
    if b.ask.chance(20):
        return b.slice(x, axis, b.ask.pick((-1, HIGHEST)), -HIGHEST - 1, -b.ask.integer(1, 2))
    start, end = b.ask.pick((0, 1, -2, -1, 2, -100)), b.ask.pick((HIGHEST, 2, 3, -1, 1, 100, 2**31 - 1))
    return b.slice(x, axis - x.rank if b.ask.chance(25) else axis, start, end, b.ask.pick((1, 1, 1, 2, 3)))


def gather(b: Builder) -> Value:
    x = b.pick(ANY, (1, 2, 3, 4))
    axis = b.ask.integer(0, x.rank - 1)
    least = min(array.shape[axis] for array in x.arrays)
    if least == 0:
        raise Refused
    low = -least if b.opset >= 11 else 0
    index = b.ask.generator().integers(low, least, b.ask.pick([(), (1,), (2,), (3,), (2, 2)]))
    if b.ask.chance(15) and x.shape[axis] is not None:
        index = np.arange(least)
    name = "Gather"
    if x.rank == index.ndim and b.ask.chance(10) and b.opset >= 11:
        name = "GatherElements"
    return b.node(
        name, [x, b.constant(index, b.ask.pick((I64, I32)))], axis=axis - x.rank if b.ask.chance(20) else axis
    )


def scatter(b: Builder) -> Value:
    x = b.pick((F32, I64), (1, 2, 3))
    least = min(array.shape[0] for array in x.arrays)
    if least == 0 or b.opset < 11:
        raise Refused
    row = b.node("Gather", [x, b.constant([b.ask.integer(0, least - 1)], I64)], axis=0)
    return b.node("ScatterND", [x, b.constant([[b.ask.integer(0, least - 1)]], I64), row])


def expand(b: Builder) -> Value:
    x = b.pick(ANY)
    sizes = [1 if size is None else (b.ask.pick((3, 1, 2)) if size == 1 else b.ask.pick((size, 1))) for size in x.shape]
    if b.ask.chance(20):
        sizes.insert(0, b.ask.integer(1, 2))
    if sizes and b.ask.chance(15):
        sizes.pop(0)
    return b.node("Expand", [x, b.ints(*sizes)])


def tile(b: Builder) -> Value:
    x = b.pick((F32, I64), (1, 2, 3))
    return b.node("Tile", [x, b.ints(*(b.ask.pick((1, 1, 2, 3)) for _ in range(x.rank)))])


def pad(b: Builder) -> Value:
    x = b.pick((F32, F64), (1, 2, 3, 4))
    mode = b.ask.pick(("constant", "constant", "constant", "edge", "reflect"))
    low = -1 if b.ask.chance(20) and mode == "constant" else 0
    pads = [b.ask.integer(low, 1) if b.ask.chance(50) else 0 for _ in range(2 * x.rank)]
    return b.pad(x, pads, mode, b.ask.pick((None, 0.0, 1.0, -0.0)) if mode == "constant" else None)


def blocks(b: Builder) -> Value:
    x = b.pick((F32,), (4,))
    if b.ask.chance(50):
        return b.node("SpaceToDepth", [x], blocksize=2)
    return b.node("DepthToSpace", [x], blocksize=2, mode=b.ask.pick((None, "CRD")) if b.opset >= 11 else None)


def resize(b: Builder) -> Value:
    x = b.pick((F32,), (4,))
    scales = [1.0, 1.0, b.ask.pick((1.0, 2.0, 1.5, 0.5)), b.ask.pick((1.0, 2.0, 3.0))]
    if b.opset == 9:
        return b.node("Upsample", [x, b.constant(scales, F32)], mode=b.ask.pick(("nearest", "linear")))
    if b.opset == 10:
        return b.node("Resize", [x, b.constant(scales, F32)], mode=b.ask.pick(("nearest", "linear")))
    region = b.constant([], F32) if b.opset < 13 or b.ask.chance(30) else None
    more = {
        "mode": b.ask.pick(("nearest", "linear", "cubic")),
        "coordinate_transformation_mode": b.ask.pick((None, "asymmetric", "align_corners", "pytorch_half_pixel")),
    }
    return b.node("Resize", [x, region, b.constant(scales, F32)], **more)


def topk(b: Builder) -> Value:
    x = b.any_float(1, 2, 3)
    axis = b.ask.integer(0, x.rank - 1)
    size = x.shape[axis]
    if size is None or size == 0 or b.smooth:
        raise Refused
    return b.ask.pick(b.topk(x, b.ask.integer(1, size), axis))


def triangle(b: Builder) -> Value:
    return b.node("Trilu", [b.pick((F32, I64), (2, 3))], upper=b.ask.pick((None, 0)))


def constant_of_shape(b: Builder) -> Value:
    import onnx

    value = onnx.helper.make_tensor("v", onnx.TensorProto.FLOAT, [1], [b.ask.pick((1.0, 0.0, 0.5))])
    source = sizes_of(b, b.pick(ANY, (1, 2, 3))) if b.ask.chance(60) else b.ints(*b.ask.pick(((2, 3), (1,), (4,), ())))
    return b.node("ConstantOfShape", [source], value=value)


# --------------------------------------------------------------------------------------------------------------- sizes


def sizes_of(b: Builder, x: Value) -> Value:
    """Add a Shape, with a range where the opset has it."""
    return b.node("Shape", [x])


def size_of(b: Builder, x: Value, axis: int) -> Value:
    """Add what gives the size of one axis, as a scalar or a vector of one."""
    if b.opset >= 15 and b.ask.chance(25):
        return b.node("Shape", [x], start=axis, end=axis + 1)
    shape = sizes_of(b, x)
    if b.ask.chance(25):
        return b.slice(shape, 0, axis, axis + 1)
    if b.ask.chance(60):
        return b.node("Gather", [shape, b.constant(axis if b.ask.chance(80) else axis - x.rank, I64)], axis=0)
    return b.node("Gather", [shape, b.ints(axis)], axis=0)


def listed(b: Builder, parts: list[Value]) -> Value:
    """Add a Concat of sizes, each a vector of one."""
    vectors = [part if part.rank == 1 else b.with_axes("Unsqueeze", part, [0]) for part in parts]
    return b.node("Concat", vectors, axis=0)


def reshape_by_sizes(b: Builder) -> Value:
    """A Reshape to sizes taken from the input itself: heads split off or merged, an axis flattened."""
    x = b.pick((F32, F64, I64), (2, 3, 4))
    parts: list[Value] = []
    skipped = False
    axis = 0
    while axis < x.rank:
        size = x.shape[axis]
        choice = b.ask.integer(0, 3)
        if choice == 0 and axis + 1 < x.rank:
            left, right = size_of(b, x, axis), size_of(b, x, axis + 1)
            if left.rank == right.rank:
                parts.append(b.node("Mul", [left, right]))
                axis += 2
                continue
        if choice == 1 and not skipped:
            parts.append(b.ints(-1))
            skipped = True
        elif choice == 2 and size is not None and size % 2 == 0 and size > 0:
            parts += [b.ints(2), b.ints(size // 2)]
        elif choice == 3 and size is not None:
            parts.append(b.ints(size))
        else:
            parts.append(size_of(b, x, axis))
        axis += 1
    return b.node("Reshape", [x, listed(b, parts)])


def expand_by_sizes(b: Builder) -> Value:
    """An Expand, ConstantOfShape or Range of the size of another tensor."""
    x = b.pick((F32, I64), (1, 2, 3))
    kind = b.ask.integer(0, 3)
    if kind == 0:
        length = b.node("Gather", [sizes_of(b, x), b.constant(b.ask.integer(0, x.rank - 1), I64)], axis=0)
        return b.node("Range", [b.constant(0, I64), length, b.constant(1, I64)])
    if kind == 1:
        other = b.pick((F32, I64), where=lambda value: value.rank <= x.rank)
        return b.node("Expand", [other, sizes_of(b, x)])
    if kind == 2:
        y = b.pick((x.dtype,))
        target = b.node("Max", [sizes_of(b, x), b.ints(*([1] * x.rank))])
        return b.node("Expand", [y, target])
    return b.node("Add", [b.node("ConstantOfShape", [sizes_of(b, x)]), b.pick((F32,))])


def slice_by_sizes(b: Builder) -> Value:
    """A Slice up to the size of another tensor, or up to half of the own."""
    x = b.pick((F32,), (1, 2, 3))
    axis = b.ask.integer(0, x.rank - 1)
    source = x if b.ask.chance(50) else b.pick((F32, I64), (1, 2, 3), lambda value: value.rank > axis)
    length = size_of(b, source, axis)
    if b.ask.chance(50):
        length = b.node("Div", [length, b.constant(2, I64)])
    if length.rank == 0:
        length = b.with_axes("Unsqueeze", length, [0])
    if b.opset < 10:
        raise Refused
    if b.ask.chance(50):
        return b.node("Slice", [x, b.ints(0), length, b.ints(axis)])
    return b.node("Slice", [x, length, b.ints(HIGHEST), b.ints(axis)])


MOVEMENT: tuple[tuple[Callable[[Builder], Value], int], ...] = (
    (reshape, 8), (flatten, 3), (squeeze, 4), (unsqueeze, 5), (transpose, 8), (concat, 7), (split, 5), (slice_axis, 7),
    (gather, 6), (scatter, 1), (expand, 4), (tile, 2), (pad, 4), (blocks, 1), (resize, 2), (topk, 2), (triangle, 1),
    (constant_of_shape, 2), (reshape_by_sizes, 7), (expand_by_sizes, 4), (slice_by_sizes, 4),
)  # fmt: skip
"""What there is, with weights."""
