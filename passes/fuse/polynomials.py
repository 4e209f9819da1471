"""Reads small expressions of one tensor as polynomials, whatever the order of their operations."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeAlias

from graphopt.passes.fuse.matching import above, number, scalar

if TYPE_CHECKING:
    from graphopt.graph import Node, Tensor

Coefficients: TypeAlias = tuple[float, ...]
"""Of the powers 0, 1, 2, ...; the last one is not 0 unless it is the only one."""

_HIGHEST = 6
_DEEPEST = 8


@dataclass(slots=True)
class Polynomial:
    """Reads tensors as polynomials of a variable.

    Attributes:
        variable: The tensor that the polynomials are in.
        nodes: The nodes read so far.
    """

    variable: Tensor
    nodes: list[Node] = field(default_factory=list)

    def read(self, tensor: Tensor, depth: int = _DEEPEST) -> Coefficients | None:
        """Return the coefficients of a tensor; None where it is no polynomial of the variable and constants.

        Args:
            tensor: The tensor.
            depth: How many more nodes upwards may be read.
        """
        if tensor is self.variable:
            return (0.0, 1.0)
        value = scalar(tensor)
        if value is not None:
            return (value,)
        node = above(tensor, "Mul", "Add", "Sub", "Div", "Pow", "Neg") if depth else None
        if node is None:
            return None
        result = self._node(node, depth - 1)
        if result is not None:
            self.nodes.append(node)
        return result

    def _node(self, node: Node, depth: int) -> Coefficients | None:
        first = self.read(node.inputs[0], depth)
        if first is None:
            return None
        if node.op == "Neg":
            return tuple(-each for each in first)
        if node.op == "Pow":
            return _power(first, node.inputs[1])
        second = first if node.inputs[1] is node.inputs[0] else self.read(node.inputs[1], depth)
        if second is None:
            return None
        if node.op == "Mul":
            return product(first, second)
        if node.op == "Div":
            return None if len(second) > 1 or second[0] == 0 else tuple(each / second[0] for each in first)
        sign = 1.0 if node.op == "Add" else -1.0
        return total(first, tuple(sign * each for each in second))


def product(first: Coefficients, second: Coefficients) -> Coefficients | None:
    """Return the product of two polynomials, None where its degree is too high.

    Args:
        first: Coefficients.
        second: Coefficients.
    """
    if len(first) + len(second) - 2 > _HIGHEST:
        return None
    result = [0.0] * (len(first) + len(second) - 1)
    for i, a in enumerate(first):
        for j, b in enumerate(second):
            result[i + j] += a * b
    return tuple(result)


def total(first: Coefficients, second: Coefficients) -> Coefficients:
    """Return the sum of two polynomials.

    Args:
        first: Coefficients.
        second: Coefficients.
    """
    length = max(len(first), len(second))
    padded = [(*each, *[0.0] * (length - len(each))) for each in (first, second)]
    return tuple(a + b for a, b in zip(*padded, strict=True))


def _power(base: Coefficients, exponent: Tensor) -> Coefficients | None:
    value = number(exponent)
    if value is None or value not in (2.0, 3.0):
        return None
    result: Coefficients | None = base
    for _ in range(int(value) - 1):
        result = None if result is None else product(result, base)
    return result
