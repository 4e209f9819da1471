"""Activations that a graph spells out in elementwise operators: x * Sigmoid(x), and Gelu by Erf or by Tanh.

There are many spellings: the factor 1/2 stands at the front, in the middle or at the end, a cube is Pow or two
products, a division is a product. So the operators behind x that read nothing but x, each other and constants are
gathered, and what they compute is compared with the activations in float64 on points over the whole range. In models of
bytes a value may be rounded on the way: QuantizeLinear and DequantizeLinear on one grid then count as nothing.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from graphopt.graph import constant_value, is_graph_output, producer, uses
from graphopt.passes.lower.grids import grid_of_restored, grid_of_rounding, only_rounds
from graphopt.target.reading import is_conversion, restored

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from numpy.typing import NDArray

    from graphopt.graph import Node, Tensor

_STANDARD = (None, "", "ai.onnx")
_MOST_NODES = 12
_MOST_NODES_ROUNDED = 24
_TOLERANCE = 2e-6  # constants are rounded to float32, 6e-8 each

_ERF = np.vectorize(math.erf, otypes=[np.float64])
_OPERATORS: Mapping[str, Callable[..., NDArray[np.float64]]] = {
    "Add": np.add,
    "Sub": np.subtract,
    "Mul": np.multiply,
    "Div": np.divide,
    "Neg": np.negative,
    "Pow": np.power,
    "Erf": _ERF,
    "Tanh": np.tanh,
    "Sigmoid": lambda x: 0.5 * (1 + np.tanh(0.5 * x)),
    "Identity": np.positive,
}


def _points() -> NDArray[np.float64]:
    far = np.array([15, 20, 40, 100, 1000])
    return np.concatenate([np.linspace(-12, 12, 241), far, -far])


_POINTS = _points()
_CURVES: Mapping[str, NDArray[np.float64]] = {
    "silu": _POINTS * 0.5 * (1 + np.tanh(0.5 * _POINTS)),
    "gelu": _POINTS * 0.5 * (1 + _ERF(_POINTS / math.sqrt(2))),
    "gelu_tanh": _POINTS * 0.5 * (1 + np.tanh(math.sqrt(2 / math.pi) * (_POINTS + 0.044715 * _POINTS**3))),
}


def match_curve(x: Tensor, *, rounded: bool = False) -> tuple[tuple[Node, ...], str] | None:
    """Return the nodes that alone read x and compute an activation of it, in order, and its name.

    Args:
        x: float32, of any shape.
        rounded: Whether values may be rounded to bytes on the way.

    Returns:
        The name is silu, gelu or gelu_tanh.
    """
    if is_graph_output(x):
        return None
    values: dict[Tensor, NDArray[np.float64]] = {x: _POINTS}
    nodes: list[Node] = []
    while len(nodes) < (_MOST_NODES_ROUNDED if rounded else _MOST_NODES):
        added = _next(values, nodes, rounded=rounded)
        if added is None:
            return None
        node, value = added
        nodes.append(node)
        values[node.outputs[0]] = value
        inner = [tensor for tensor in values if tensor is not node.outputs[0]]
        closed = all(use.node in nodes for tensor in inner for use in uses(tensor))
        if not closed or any(is_graph_output(tensor) for tensor in inner):
            continue
        for name, wanted in _CURVES.items():
            if np.all(np.abs(value - wanted) <= _TOLERANCE * (1 + np.abs(_POINTS))):
                return tuple(nodes), name
    return None


def _next(
    values: Mapping[Tensor, NDArray[np.float64]], nodes: list[Node], *, rounded: bool
) -> tuple[Node, NDArray[np.float64]] | None:
    """One more node that reads nothing but known values and constants, and its value."""
    graph = None
    for tensor in values:
        for use in uses(tensor):
            node = use.node
            graph = graph or node.graph
            if node in nodes or node.graph is not graph:
                continue
            value = _converted(node, values) if rounded and is_conversion(node) else _computed(node, values)
            if value is not None:
                return node, value
    return None


def _computed(node: Node, values: Mapping[Tensor, NDArray[np.float64]]) -> NDArray[np.float64] | None:
    """What a node makes of known values and constants, or None."""
    if node.op not in _OPERATORS or node.domain not in _STANDARD:
        return None
    operands = [values[t] if t in values else _number(t) for t in node.inputs]
    known = [operand for operand in operands if operand is not None]
    if len(known) < len(operands):
        return None
    with np.errstate(all="ignore"):
        return _OPERATORS[node.op](*known)


def _converted(node: Node, values: Mapping[Tensor, NDArray[np.float64]]) -> NDArray[np.float64] | None:
    """The values that a node rounds to bytes without cutting them, or restores from such bytes; None for others."""
    value = values.get(node.inputs[0])
    if value is None:
        return None
    if node.op == "QuantizeLinear":
        grid = grid_of_rounding(node)
        return value if grid is not None and only_rounds(grid, least=value.min(), most=value.max()) else None
    found, before = restored(node.outputs[0]), producer(node.inputs[0])
    alike = found is not None and before is not None and grid_of_restored(found) == grid_of_rounding(before)
    return value if alike else None


def _number(tensor: Tensor) -> NDArray[np.float64] | None:
    """The one number of a constant that changes no shape."""
    value = constant_value(tensor)
    if value is None or value.size != 1 or value.ndim > 1 or value.dtype.kind not in "fiu":
        return None
    return np.asarray(value, np.float64).reshape(())
