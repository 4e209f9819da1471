"""What values a tensor can have, as far as its producers tell at a glance. NaN may always be among them."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeAlias

import numpy as np

from graphopt.graph import producer
from graphopt.passes.simplify.algebra.clamps import CLAMPS, Clamp
from graphopt.passes.simplify.purity import DEFAULT_DOMAINS, refers_to_function

if TYPE_CHECKING:
    from graphopt.graph import Node, Tensor
    from graphopt.passes.simplify.look import Look

Bounds: TypeAlias = tuple[float, float]
"""Smallest and largest value."""

DEEPEST = 4
"""How many nodes are looked through."""

_ANY: Bounds = (-np.inf, np.inf)
_MARGIN = 1 + 2.0**-10
_APPROXIMATED: dict[str, Bounds] = {
    # The upper bound of an approximated function may be missed by some units in the last place; 0 is not.
    "Sigmoid": (0, _MARGIN),
    "Softmax": (0, _MARGIN),
    "Tanh": (-_MARGIN, _MARGIN),
    "Erf": (-_MARGIN, _MARGIN),
    "Softsign": (-_MARGIN, _MARGIN),
    "Sin": (-_MARGIN, _MARGIN),
    "Cos": (-_MARGIN, _MARGIN),
}
_EXACT: dict[str, Bounds] = {
    "HardSigmoid": (0, 1),
    "Sign": (-1, 1),
    **dict.fromkeys(("Abs", "Exp", "Sqrt", "Softplus", "ReduceL1", "ReduceL2", "ReduceSumSquare"), (0, np.inf)),
}
_SELECTS = frozenset(
    (
        *("Reshape", "Flatten", "Squeeze", "Unsqueeze", "Transpose", "Slice", "Gather", "Identity", "Split"),
        *("Expand", "Tile"),
    )
)
_KEEPS_SIGN = frozenset(("GlobalAveragePool", "ReduceMean", "ReduceSum"))
_JOINS = frozenset(("Add", "Mul", "Concat"))
_MOST_JOINED = 8

BOUNDED = frozenset((*_APPROXIMATED, *_EXACT, *CLAMPS, *_SELECTS, *_KEEPS_SIGN, *_JOINS))
"""Operators whose results may have bounds."""


def bounds_of(tensor: Tensor, look: Look, depth: int = DEEPEST) -> Bounds:
    """Return bounds that all numbers of a floating-point tensor keep; infinite where nothing is known.

    Args:
        tensor: The tensor.
        look: A look at any node of the model.
        depth: How many nodes to look through.
    """
    node = producer(tensor)
    if node is None or depth == 0 or node.domain not in DEFAULT_DOMAINS or refers_to_function(node):
        return _ANY
    op = str(node.op)
    known = _APPROXIMATED.get(op) or _EXACT.get(op)
    if known is not None:
        return known
    if op in CLAMPS:
        clamp = Clamp.of(look.at(node))
        return _ANY if clamp is None else (float(clamp.low), float(clamp.high))
    if op in _SELECTS:
        return bounds_of(node.inputs[0], look, depth - 1)
    if op in _KEEPS_SIGN:
        return (0, np.inf) if bounds_of(node.inputs[0], look, depth - 1)[0] >= 0 else _ANY
    return _joined(node, look, depth) if op in _JOINS else _ANY


def _joined(node: Node, look: Look, depth: int) -> Bounds:
    inputs = list(node.inputs)
    if len(inputs) > _MOST_JOINED:
        return _ANY
    if node.op == "Mul" and inputs[0] is inputs[1]:
        return 0, np.inf
    each = []
    for tensor in inputs:
        found = bounds_of(tensor, look, depth - 1)
        if found[0] < 0 and node.op != "Concat":
            return _ANY
        each.append(found)
    if node.op == "Concat":
        return min(low for low, _ in each), max(high for _, high in each)
    return 0, np.inf
