"""A model with its conversions looked through: what a tensor stands for, and who reads that."""

from __future__ import annotations

from typing import TYPE_CHECKING

from graphopt.analysis.tensor_grid import STANDARD, is_conversion
from graphopt.graph import constant_value, producer, uses

if TYPE_CHECKING:
    from collections.abc import Iterator

    from graphopt.graph import Model, Node, Tensor, Use

LIMITS = frozenset(("Relu", "Clip"))
"""Activation functions that the ends of a grid can stand for."""


class View:
    """What the tensors of a model's main graph stand for.

    Args:
        model: A sorted model; it is not edited.
    """

    def __init__(self, model: Model) -> None:
        self.model = model
        self._constant: dict[Tensor, bool] = {}

    def source(self, tensor: Tensor) -> Tensor:
        """Return the tensor that holds the real values before they were rounded or handed on."""
        while (step := self._behind(tensor)) is not None:
            tensor = step
        return tensor

    def _behind(self, tensor: Tensor) -> Tensor | None:
        node = producer(tensor)
        if node is None or not node.inputs:
            return None
        found: Tensor = node.inputs[0]
        if node.op == "Identity" and node.domain in STANDARD:
            return found
        if is_rounding(node) and tensor is node.outputs[0]:
            return found
        maker = producer(found) if is_conversion(node, "DequantizeLinear") else None
        return found if maker is not None and is_rounding(maker) else None

    def roundings(self, tensor: Tensor) -> list[Node]:
        """Return the nodes that round a tensor of real values."""
        return [use.node for use in self._through(tensor) if is_rounding(use.node)]

    def restored(self, tensor: Tensor) -> list[Tensor]:
        """Return the tensors that hold the real values of a tensor after it was rounded."""
        return [
            use.node.outputs[0]
            for node in self.roundings(tensor)
            for use in uses(node.outputs[0])
            if is_conversion(use.node, "DequantizeLinear") and use.index == 0
        ]

    def is_always_rounded(self, tensor: Tensor) -> bool:
        """Tell whether everything that reads a tensor reads the result of one QuantizeLinear of it."""
        readers = list(self._through(tensor))
        made = {use.node for use in readers}
        return len(made) == 1 and is_conversion(next(iter(made)), "QuantizeLinear") and bool(self.restored(tensor))

    def readers(self, tensor: Tensor) -> list[Node]:
        """Return the operators that read a tensor, rounded or not."""
        found: dict[Node, None] = {}
        for use in self._through(tensor):
            if not is_rounding(use.node):
                found[use.node] = None
        for restored in self.restored(tensor):
            found |= {use.node: None for use in self._through(restored) if not is_rounding(use.node)}
        return list(found)

    def _through(self, tensor: Tensor) -> Iterator[Use]:
        """Yield the uses of a tensor, those of its copies in place of the copying."""
        waiting = [tensor]
        while waiting:
            for use in uses(waiting.pop()):
                if use.node.op == "Identity" and use.node.domain in STANDARD:
                    waiting.append(use.node.outputs[0])
                else:
                    yield use

    def is_constant(self, tensor: Tensor) -> bool:
        """Tell whether a tensor is computed from constants alone."""
        waiting = [tensor]
        while waiting:
            at = waiting[-1]
            if at in self._constant:
                waiting.pop()
                continue
            node = producer(at)
            if node is None or constant_value(at) is not None:
                self._constant[at] = constant_value(at) is not None
                continue
            open_inputs = [each for each in node.inputs if not each.is_empty() and each not in self._constant]
            if node.attrs and any(hasattr(value, "nodes") for value in node.attrs.values()):
                self._constant[at] = False
            elif open_inputs:
                waiting += open_inputs
            else:
                known = [self._constant[each] for each in node.inputs if not each.is_empty()]
                self._constant[at] = bool(known) and all(known) and not node.op.startswith("Random")
        return self._constant[tensor]


def is_rounding(node: Node) -> bool:
    """Tell whether a node rounds real values to integers."""
    return is_conversion(node, "QuantizeLinear") or (node.op == "DynamicQuantizeLinear" and node.domain in STANDARD)
