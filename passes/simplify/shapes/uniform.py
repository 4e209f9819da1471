"""Tensors whose elements are all the same number, whatever their shape is."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from graphopt.graph import Constant, producer
from graphopt.passes.simplify.look import small_constant
from graphopt.passes.simplify.purity import is_op, refers_to_function

if TYPE_CHECKING:
    from graphopt.analysis.shape_values import ShapeValues
    from graphopt.graph import Node, Tensor

Array = np.ndarray[Any, Any]

PICKING = ("GatherElements", "Gather", "GatherND", "Slice")
"""Operators that pick elements of their first input."""

COMPARING = ("GreaterOrEqual", "Greater", "LessOrEqual", "Less")
"""Comparisons of a count and a number, the same for every element of the count."""

_VIEWS = ("Unsqueeze", "Squeeze", "Reshape", "Flatten", "Transpose", "Expand")
_DEEPEST = 6


def uniform_value(node: Node, values: ShapeValues) -> Array | None:
    """Return the number that every element of the first output of a node is, in its element type; None where unknown.

    Args:
        node: The node: ConstantOfShape, one of `PICKING`, or one of `COMPARING`.
        values: Values of shape computations.
    """
    if refers_to_function(node):
        return None
    if is_op(node, "ConstantOfShape"):
        fill = node.attrs.get("value")
        return np.zeros((), np.float32) if not isinstance(fill, Constant) else fill.array().reshape(())
    if is_op(node, *PICKING):
        value = small_constant(node.inputs[0])
        if value is None or value.size == 0 or value.dtype.kind not in "iub":
            return None
        first = value.reshape(-1)[:1]
        return first.reshape(()) if bool((value == first).all()) else None
    return _always(node, values) if is_op(node, *COMPARING) else None


def _always(node: Node, values: ShapeValues) -> Array | None:
    """Return True where a count that starts at 0 or above is compared with a number that it never falls below."""
    count, other = node.inputs
    if node.op.startswith("Less"):
        count, other = other, count
    start = _start_of_count(count, values)
    limit = small_constant(other)
    if start is None or limit is None or limit.size != 1 or limit.dtype.kind not in "iu":
        return None
    number = int(limit.reshape(-1)[0])
    holds = start > number or (node.op.endswith("OrEqual") and start == number)
    return np.ones((), np.bool_) if holds else None


def _start_of_count(tensor: Tensor, values: ShapeValues) -> int | None:
    """Return the smallest number in a Range of whole numbers in positive steps, seen through views."""
    node = producer(tensor)
    for _ in range(_DEEPEST):
        if node is None or not is_op(node, *_VIEWS):
            break
        node = producer(node.inputs[0])
    if node is None or not is_op(node, "Range"):
        return None
    start, delta = values.constant(node.inputs[0]), values.constant(node.inputs[2])
    return start[0] if start is not None and delta is not None and delta[0] > 0 else None
