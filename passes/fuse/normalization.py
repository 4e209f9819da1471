"""The steps of a normalization: a mean over the last axes, a centred tensor, the inverse of a root."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from graphopt.passes.fuse.matching import above, axes_of, is_fed_by, number, other, scalar, suffix_length

if TYPE_CHECKING:
    from graphopt.analysis.shape_values import ShapeValues
    from graphopt.analysis.types import Types
    from graphopt.graph import Node, Tensor


@dataclass(slots=True)
class Steps:
    """Reads a normalization upwards and remembers the nodes it passed.

    Attributes:
        types: Element types and shapes.
        values: Values of shape computations.
        nodes: The nodes read so far.
    """

    types: Types
    values: ShapeValues
    nodes: list[Node] = field(default_factory=list)

    def passed(self, node: Node | None) -> Node | None:
        """Remember a node."""
        if node is not None:
            self.nodes.append(node)
        return node

    def normalized(self, root: Node) -> tuple[Tensor, int, float] | None:
        """Return (x, n, e) where the root is (x - mean) / sqrt(variance + e) over the last n axes of x."""
        if not is_fed_by(root, ("Sub",)):
            return None
        parts = self.divided(root)
        centred = None if parts is None else above(parts[0], "Sub")
        if parts is None or centred is None:
            return None
        found = self.variance(parts[1])
        if found is None or not self._is_centred(centred, found[0], found[1]):
            return None
        self.passed(centred)
        return centred.inputs[0], found[1], found[2]

    def variance(self, tensor: Tensor) -> tuple[Tensor, int, float] | None:
        """Return (c, n, e) where a tensor is the mean of c^2 over the last n axes, plus e."""
        added = self.epsilon(tensor)
        averaged = None if added is None else self.mean(added[0])
        squared = None if averaged is None else self.square(averaged[0])
        if added is None or averaged is None or squared is None:
            return None
        return squared, averaged[1], added[1]

    def _is_centred(self, centred: Node, squared: Tensor, last: int) -> bool:
        """Whether a Sub subtracts the mean over the last axes, and what is squared is the same difference."""
        if squared is not centred.outputs[0]:
            again = above(squared, "Sub")
            if again is None or again.inputs[0] is not centred.inputs[0]:
                return False
            self.passed(again)
            if again.inputs[1] is not centred.inputs[1] and self.mean(again.inputs[1]) != (centred.inputs[0], last):
                return False
        return self.mean(centred.inputs[1]) == (centred.inputs[0], last)

    def mean(self, tensor: Tensor) -> tuple[Tensor, int] | None:
        """Return what a tensor is the mean of and over how many last axes, dimensions kept."""
        node = above(tensor, "ReduceMean")
        if node is None:
            return None
        axes, source = axes_of(node, self.values), node.inputs[0]
        rank = self.types.rank(source)
        last = None if axes is None or rank is None else suffix_length(axes, rank)
        if last is None:
            return None
        self.passed(node)
        return source, last

    def square(self, tensor: Tensor) -> Tensor | None:
        """Return what a tensor is the square of."""
        node = above(tensor, "Pow", "Mul")
        if node is None:
            return None
        base, second = node.inputs
        if base is second if node.op == "Mul" else number(second) == 2:
            self.passed(node)
            return base  # type: ignore[no-any-return]
        return None

    def divided(self, root: Node) -> tuple[Tensor, Tensor] | None:
        """Return (a, v) where the root is a / sqrt(v), in one of its forms; the steps to v are remembered."""
        if root.op == "Div":
            inside = self.root_of(root.inputs[1])
            return None if inside is None else (root.inputs[0], inside)
        for tensor in root.inputs:
            inside = self.inverse_root_of(tensor)
            if inside is not None:
                numerator = other(root, tensor)
                return None if numerator is None else (numerator, inside)
        return None

    def root_of(self, tensor: Tensor) -> Tensor | None:
        """Return v where a tensor is sqrt(v)."""
        node = above(tensor, "Sqrt", "Pow")
        if node is None or (node.op == "Pow" and number(node.inputs[1]) != 0.5):
            return None
        self.passed(node)
        return node.inputs[0]  # type: ignore[no-any-return]

    def inverse_root_of(self, tensor: Tensor) -> Tensor | None:
        """Return v where a tensor is 1 / sqrt(v)."""
        node = above(tensor, "Reciprocal", "Div", "Pow")
        if node is None:
            return None
        if node.op == "Pow":
            if number(node.inputs[1]) != -0.5:
                return None
            self.passed(node)
            return node.inputs[0]  # type: ignore[no-any-return]
        if node.op == "Div" and scalar(node.inputs[0]) != 1:
            return None
        inside = self.root_of(node.inputs[-1])
        if inside is not None:
            self.passed(node)
        return inside

    def epsilon(self, tensor: Tensor) -> tuple[Tensor, float] | None:
        """Return (v, e) where a tensor is v + e with a constant e that is a float32; e is 0 where nothing is added."""
        node = above(tensor, "Add")
        if node is None:
            return tensor, 0.0
        for index in (1, 0):
            value = scalar(node.inputs[index])
            if value is not None:
                if not value >= 0 or float(np.float32(value)) != value:
                    return None
                self.passed(node)
                return node.inputs[1 - index], value
        return None
