"""Halves of a last axis: tensors that are one of them, and tensors whose halves are equal."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from graphopt.graph import producer
from graphopt.passes.fuse.matching import DEFAULT_DOMAINS, above, number, refers_to_function, vector

if TYPE_CHECKING:
    from graphopt.analysis.shape_values import ShapeValues
    from graphopt.analysis.types import Types
    from graphopt.graph import Node, Tensor

_ELEMENTWISE = ("Cos", "Sin", "Cast", "Neg", "Identity")
_VIEWS = ("Unsqueeze", "Squeeze", "Reshape", "Expand")
_BINARY = ("Mul", "Add", "Sub", "Div")
_DEEPEST = 12


class Half(NamedTuple):
    """One half of the last axis of a tensor.

    Attributes:
        source: The tensor.
        index: 0 for the first half, 1 for the second.
        is_interleaved: Whether the halves are the even and the odd elements.
        nodes: The nodes that take it.
    """

    source: Tensor
    index: int  # type: ignore[assignment]
    is_interleaved: bool
    nodes: tuple[Node, ...]


def half_of(tensor: Tensor, types: Types, values: ShapeValues) -> Half | None:
    """Return which half of the last axis of what a tensor is: by Slice, Split, or a Gather behind a Reshape to pairs.

    Args:
        tensor: The tensor.
        types: Shapes.
        values: Values of shape computations.
    """
    node = producer(tensor)
    if node is None or node.domain not in DEFAULT_DOMAINS or refers_to_function(node):
        return None
    if node.op == "Slice":
        return _sliced(node, types, values)
    if node.op == "Split":
        return _split(node, tensor, types)
    if node.op in {"Gather", "Squeeze", "Reshape"}:
        return _of_pairs(node, types)
    return None


def _sliced(node: Node, types: Types, values: ShapeValues) -> Half | None:
    shape = types.shape(node.inputs[0])
    limits = [values.constant(tensor) for tensor in node.inputs[1:5]]
    if not shape or len(limits) < 3 or any(limit is None or len(limit) != 1 for limit in limits):
        return None
    start, end, axis, *steps = (limit[0] for limit in limits if limit)
    size, step = shape[-1], steps[0] if steps else 1
    if axis % len(shape) != len(shape) - 1 or not isinstance(size, int) or size % 2 or not size:
        return None
    if step == 1 and (start, min(end, size)) in ((0, size // 2), (size // 2, size)):
        return Half(node.inputs[0], int(start > 0), False, (node,))
    if step == 2 and start in (0, 1) and end >= size:
        return Half(node.inputs[0], start, True, (node,))
    return None


def _split(node: Node, tensor: Tensor, types: Types) -> Half | None:
    if len(node.outputs) != 2:
        return None
    shapes = [types.shape(each) for each in (node.inputs[0], *node.outputs)]
    rank = len(shapes[0] or ())
    if not rank or int(node.attrs.get("axis", 0)) % rank != rank - 1:
        return None
    whole, first, second = (shape[-1] if shape else None for shape in shapes)
    if not isinstance(whole, int) or not isinstance(first, int) or first != second or 2 * first != whole:
        return None
    return Half(node.inputs[0], int(node.outputs[1] is tensor), False, (node,))


def _of_pairs(node: Node, types: Types) -> Half | None:
    """Match one element of each pair: Gather, or Split with a view, of (..., n, 2) reshaped from (..., 2 n)."""
    if node.op == "Gather":
        index = number(node.inputs[1])
        rank = types.rank(node.inputs[0])
        if rank is None or types.rank(node.inputs[1]) != 0 or index not in (0, 1, -1, -2):
            return None
        if int(node.attrs.get("axis", 0)) % rank != rank - 1:
            return None
        pairs, place = node.inputs[0], int(index) % 2
        nodes: tuple[Node, ...] = (node,)
    else:
        inner = producer(node.inputs[0])
        if inner is None or inner.op != "Split" or refers_to_function(inner):
            return None
        taken = _split(inner, node.inputs[0], types)
        before, after = types.shape(node.inputs[0]), types.shape(node.outputs[0])
        if taken is None or not before or before[-1] != 1 or after != before[:-1]:
            return None
        pairs, place, nodes = taken.source, taken.index, (node, inner)
    view = above(pairs, "Reshape")
    wide = None if view is None else types.shape(view.inputs[0])
    shape = types.shape(pairs)
    if view is None or not wide or not shape or shape[-1] != 2 or not isinstance(shape[-2], int):
        return None
    return Half(pairs, place, True, nodes)


def has_equal_halves(tensor: Tensor, types: Types, values: ShapeValues, depth: int = _DEEPEST) -> bool:
    """Whether the two halves of the last axis are proved to be equal.

    Args:
        tensor: The tensor.
        types: Shapes.
        values: Values of shape computations.
        depth: How many nodes upwards are looked at.
    """
    shape = types.shape(tensor)
    if not shape or not isinstance(shape[-1], int) or shape[-1] % 2 or not shape[-1]:
        return False
    value = vector(tensor)
    if value is not None:
        first, second = np.split(value, 2, axis=-1)
        return bool((first == second).all())
    node = above(tensor, *_ELEMENTWISE, *_VIEWS, *_BINARY, "Concat", "Slice", "Gather") if depth else None
    if node is None:
        return False
    source = node.inputs[0]
    before = types.shape(source)
    if node.op == "Concat":
        same = len(node.inputs) == 2 and node.inputs[1] is source
        return same and int(node.attrs["axis"]) % len(shape) == len(shape) - 1
    if node.op in _BINARY:
        return all(_is_even(each, types, values, depth - 1) for each in node.inputs)
    if not before or before[-1] != shape[-1]:
        return False
    if node.op == "Gather" and int(node.attrs.get("axis", 0)) % len(before) == len(before) - 1:
        return False
    if node.op == "Slice":
        axes = values.constant(node.inputs[3]) if len(node.inputs) > 3 else None
        if axes is None or any(axis % len(before) == len(before) - 1 for axis in axes):
            return False
    return has_equal_halves(source, types, values, depth - 1)


def _is_even(tensor: Tensor, types: Types, values: ShapeValues, depth: int) -> bool:
    """Whether a tensor broadcasts along the last axis or has equal halves there."""
    shape = types.shape(tensor)
    return shape is not None and (shape[-1:] in ((), (1,)) or has_equal_halves(tensor, types, values, depth))
