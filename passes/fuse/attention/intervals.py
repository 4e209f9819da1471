"""Between which numbers the elements of a tensor lie, whatever is fed: by constants, element types and arithmetic."""

from __future__ import annotations

from math import inf, isfinite
from typing import TYPE_CHECKING, TypeAlias

import numpy as np

from graphopt.graph import Constant, constant_value
from graphopt.graph.dtypes import numpy_dtype
from graphopt.passes.fuse.matching import above, vector

if TYPE_CHECKING:
    from graphopt.analysis.types import Types
    from graphopt.graph import Node, Tensor

Interval: TypeAlias = tuple[float, float]

ANY: Interval = (-inf, inf)

_DEEPEST = 16
_FAR_ABOVE_LOWEST = -3e38
_BOOL = 9
_INTEGERS = (2, 3, 4, 5, 6, 7, 12, 13)
_MOVES = ("Unsqueeze", "Squeeze", "Reshape", "Transpose", "Expand", "Slice", "Identity", "Flatten", "Gather", "Cast")
_ARITHMETIC = ("Add", "Sub", "Mul", "Neg", "Where", "Concat", "Trilu", "ConstantOfShape", "Min", "Max")


def interval(tensor: Tensor, types: Types, depth: int = _DEEPEST) -> Interval:
    """Return the least and the greatest value that elements may have; `ANY` where nothing is known, NaN included.

    Args:
        tensor: The tensor.
        types: Element types.
        depth: How many nodes upwards are looked at.
    """
    value = vector(tensor)
    if value is not None:
        return _of_values(np.asarray(value, np.float64))
    dtype = types.dtype(tensor)
    if dtype == _BOOL:
        return 0.0, 1.0
    node = above(tensor, *_MOVES, *_ARITHMETIC) if depth else None
    found = ANY if node is None else _of_node(node, types, depth - 1)
    if dtype in _INTEGERS:
        limits = np.iinfo(numpy_dtype(dtype))
        whole = float(limits.min), float(limits.max)
        return found if whole[0] <= found[0] and found[1] <= whole[1] else whole
    return found


def _of_node(node: Node, types: Types, depth: int) -> Interval:
    if node.op in _MOVES:
        return interval(node.inputs[0], types, depth)
    if node.op == "ConstantOfShape":
        given = node.attrs.get("value")
        value = constant_value(given) if isinstance(given, Constant) else given
        return (0.0, 0.0) if value is None else _of_values(np.asarray(value, np.float64))
    if node.op == "Trilu":
        low, high = interval(node.inputs[0], types, depth)
        return min(low, 0.0), max(high, 0.0)
    operands = node.inputs[1:] if node.op == "Where" else node.inputs
    parts = [interval(tensor, types, depth) for tensor in operands]
    if not all(isfinite(bound) for part in parts for bound in part):
        return ANY
    return _combined(str(node.op), parts)


def _combined(op: str, parts: list[Interval]) -> Interval:
    lows, highs = [low for low, _ in parts], [high for _, high in parts]
    if op in {"Where", "Concat"}:
        return min(lows), max(highs)
    if op == "Add":
        return sum(lows), sum(highs)
    if op == "Sub":
        return lows[0] - highs[1], highs[0] - lows[1]
    if op == "Neg":
        return -highs[0], -lows[0]
    if op == "Min":
        return min(lows), min(highs)
    if op == "Max":
        return max(lows), max(highs)
    corners = [x * y for x in parts[0] for y in parts[1]]
    return min(corners), max(corners)


def _of_values(value: np.ndarray) -> Interval:
    if value.size == 0 or np.isnan(value).any():
        return ANY
    return float(value.min()), float(value.max())


def is_open_or_closed(tensor: Tensor, types: Types, depth: int = _DEEPEST) -> bool:
    """Whether every element is minus infinity or far greater than the lowest float: what masks made by Where are.

    Args:
        tensor: The tensor.
        types: Element types.
        depth: How many nodes upwards are looked at.
    """
    node = above(tensor, "Where", "Unsqueeze", "Squeeze", "Reshape", "Expand", "Identity", "Slice") if depth else None
    if node is None or node.op != "Where":
        return node is not None and is_open_or_closed(node.inputs[0], types, depth - 1)
    for choice in node.inputs[1:]:
        value = vector(choice)
        if value is None or bool(((value < _FAR_ABOVE_LOWEST) & ~np.isneginf(value)).any()) or np.isnan(value).any():
            return False
    return True
