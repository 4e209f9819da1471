"""Index tensors as sums of counts: which number stands at each place, stated by one stride per axis."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeAlias

from graphopt.analysis.dims import Expr, add, mul, product
from graphopt.graph import producer
from graphopt.passes.simplify.purity import is_op, refers_to_function

if TYPE_CHECKING:
    from graphopt.analysis.dims import Dim
    from graphopt.analysis.shape_values import ShapeValues
    from graphopt.analysis.types import Types
    from graphopt.graph import Node, Tensor

Strides: TypeAlias = "tuple[Dim, ...]"
"""The element at place (i, j, ...) is i * strides[0] + j * strides[1] + ...; 0 for axes of size 1."""

_VIEWS = ("Unsqueeze", "Squeeze", "Reshape", "Flatten")
_DEEPEST = 12


def strides_of(tensor: Tensor, types: Types, values: ShapeValues, depth: int = _DEEPEST) -> Strides | None:
    """Return the strides of a tensor of whole numbers that counts from 0, None where it does something else.

    Args:
        tensor: The tensor: Range, views of it, products with sizes and sums of such.
        types: Types of the tensors.
        values: Values of shape computations.
        depth: How many nodes to look at, one above the other.
    """
    node = producer(tensor)
    shape = types.shape(tensor)
    if node is None or shape is None or depth == 0 or refers_to_function(node):
        return None
    if is_op(node, "Range"):
        start, delta = values.constant(node.inputs[0]), values.constant(node.inputs[2])
        if start != (0,) or delta is None:
            return None
        return (0,) if shape == (1,) else (delta[0],)
    if is_op(node, *_VIEWS):
        source = strides_of(node.inputs[0], types, values, depth - 1)
        before = types.shape(node.inputs[0])
        return None if source is None or before is None else _viewed(source, before, shape)
    if is_op(node, "Mul"):
        return _scaled(node, shape, types, values, depth)
    if is_op(node, "Add"):
        found = [_operand(each, shape, types, values, depth) for each in node.inputs]
        known = [each for each in found if each is not None]
        return tuple(add(*pair) for pair in zip(*known, strict=True)) if len(known) == len(found) else None
    return None


def row_major(shape: tuple[Dim, ...]) -> Strides:
    """Return the strides of a tensor of this shape that counts all its elements in order."""
    return tuple(0 if size == 1 else product(shape[axis + 1 :]) for axis, size in enumerate(shape))


def _viewed(strides: Strides, before: tuple[Dim, ...], after: tuple[Dim, ...]) -> Strides | None:
    """Return the strides after a view that only adds or removes axes of size 1."""
    kept = [stride for stride, size in zip(strides, before, strict=True) if size != 1]
    if [size for size in before if size != 1] != [size for size in after if size != 1]:
        return None
    rest = iter(kept)
    return tuple(0 if size == 1 else next(rest) for size in after)


def _scaled(node: Node, shape: tuple[Dim, ...], types: Types, values: ShapeValues, depth: int) -> Strides | None:
    for index in (0, 1):
        factor = values.value(node.inputs[1 - index])
        if factor is None or len(factor) != 1 or not isinstance(factor[0], int | Expr):
            continue
        strides = _operand(node.inputs[index], shape, types, values, depth)
        if strides is not None:
            return tuple(mul(stride, factor[0]) for stride in strides)
    return None


def _operand(tensor: Tensor, shape: tuple[Dim, ...], types: Types, values: ShapeValues, depth: int) -> Strides | None:
    """Return the strides of an operand in the shape it is broadcast to; None where an open size may be repeated."""
    strides, before = strides_of(tensor, types, values, depth - 1), types.shape(tensor)
    if strides is None or before is None or len(before) > len(shape):
        return None
    added = len(shape) - len(before)
    if any(size not in (1, whole) for size, whole in zip(before, shape[added:], strict=True)):
        return None
    return (*[0] * added, *strides)
