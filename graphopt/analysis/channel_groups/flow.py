"""Follows channels through a graph: which labels lie along which axis of which tensor.

An axis without labels holds no channels that could be removed: batch, positions, sizes of a kernel, or what an unknown
operator gives. What cannot be followed freezes the channels that reach it, with the reason.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeAlias

import numpy as np

from graphopt.analysis.channel_groups.sites import Count, Cut, EvenSplit, Lookup, Role
from graphopt.analysis.channel_groups.units import Units
from graphopt.graph import Constant, constant_value, owner, producer, uses

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from graphopt.analysis.channel_groups.units import Labels
    from graphopt.analysis.types import Types
    from graphopt.graph import Graph, Node, Tensor

Axes: TypeAlias = "dict[int, Labels]"
"""Labels by axis, of the axes that have any."""

Rule: TypeAlias = "Callable[[Flow, Node], None]"
"""Gives the outputs of a node their labels."""

_STANDARD = {None, "", "ai.onnx"}


class Flow:
    """The labels of a graph, given out node by node.

    Args:
        graph: The main graph of a model.
        types: Shapes of its tensors.
        opset: Version of the standard operators.
    """

    def __init__(self, graph: Graph, types: Types, opset: int) -> None:
        self.graph = graph
        self.types = types
        self.opset = opset
        self.units = Units()
        self.cuts: list[Cut] = []
        self.counts: list[Count] = []
        self.lookups: list[Lookup] = []
        self.even_splits: list[EvenSplit] = []
        self.sizes: dict[Tensor, list[Labels | None]] = {}
        """For one-dimensional tensors of sizes: the labels of the axis that each element is the size of."""
        self._axes: dict[Tensor, Axes] = {}
        self._weights: dict[tuple[Tensor, int], Labels] = {}
        self._counted: dict[tuple[Node, int | str, int | None], Count] = {}

    def run(self, rules: Mapping[str, Rule]) -> None:
        """Give labels to every tensor.

        Args:
            rules: One per operator of the standard domain; all others freeze what they read.
        """
        for node in self.graph.nodes:
            rule = rules.get(node.op) if node.domain in _STANDARD else None
            if rule is None:
                self.stop(node)
            else:
                rule(self, node)
        for tensor in self.graph.outputs:
            self.freeze(tensor, f"'{tensor.name}' is an output of the model")
        self._freeze_other_readers()

    # ------------------------------------------------------------------------------------------------------- tensors

    def of(self, tensor: Tensor) -> Axes:
        """Return the labels of a tensor."""
        return self._axes.get(tensor, {})

    def tensors(self) -> Mapping[Tensor, Axes]:
        """Return the labels of all tensors that have any."""
        return self._axes

    def give(self, tensor: Tensor, axes: Axes) -> None:
        """Set the labels of a tensor; an axis of one channel has none, for it cannot be removed."""
        kept = {}
        for axis, labels in axes.items():
            if len(labels) > 1:
                kept[axis] = labels
            else:
                self.units.freeze(labels, f"'{tensor.name}' is one channel of it")
        if kept:
            self._axes[tensor] = kept

    def rank(self, tensor: Tensor) -> int | None:
        """Return the number of axes."""
        return self.types.rank(tensor)

    def size(self, tensor: Tensor, axis: int) -> int | None:
        """Return the size of an axis where it is a number."""
        shape = self.types.shape(tensor)
        size = None if shape is None else shape[axis]
        return size if isinstance(size, int) else None

    # -------------------------------------------------------------------------------------------------------- labels

    def freeze(self, tensor: Tensor, reason: str) -> None:
        """Let all channels of a tensor stay."""
        for labels in self.of(tensor).values():
            self.units.freeze(labels, reason)
        for sizes in self.sizes.get(tensor, ()):
            if sizes is not None:
                self.units.freeze(sizes, reason)

    def stop(self, node: Node, reason: str = "") -> None:
        """Let everything stay that a node reads, tensors that its bodies read included; its outputs have no labels."""
        text = reason or f"{label(node)} is not followed"
        for tensor in node.inputs:
            self.freeze(tensor, text)

    def same(self, a: Labels, b: Labels) -> bool:
        """Tell whether two arrays hold labels that are tied index by index."""
        return a is b or (len(a) == len(b) and bool(np.array_equal(self.units.roots(a), self.units.roots(b))))

    def same_count(self, a: Labels, b: Labels) -> bool:
        """Tell whether equally many of both stay, whatever is removed."""
        return a is b or bool(np.array_equal(np.sort(self.units.roots(a)), np.sort(self.units.roots(b))))

    # ------------------------------------------------------------------------------------------------------ constants

    def is_constant(self, tensor: Tensor) -> bool:
        """Tell whether a tensor is the same in every run, without reading it."""
        if isinstance(tensor, Constant):
            return tensor.home is not None and not tensor.home.is_overridable(tensor)
        made = producer(tensor)
        return made is not None and made.op == "Constant" and made.domain in _STANDARD

    def integers(self, node: Node, index: int, attribute: str = "") -> list[int] | None:
        """Return integers that older versions of an operator have as an attribute and newer ones as an input.

        Returns:
            None where they are absent or computed; see `given`.
        """
        if attribute and attribute in node.attrs:
            return [int(value) for value in np.ravel(node.attrs[attribute])]
        if not given(node, index) or not self.is_constant(node.inputs[index]):
            return None
        value = constant_value(node.inputs[index])
        return None if value is None else [int(each) for each in value.ravel()]

    def bind(self, weight: Tensor, axis: int, labels: Labels) -> Labels:
        """Tie labels to an axis of a weight, which may have several readers."""
        known = self._weights.setdefault((weight, axis), labels)
        return labels if known is labels else self.units.tie(labels, known)

    def rows(self, weight: Tensor, axis: int, count: int) -> Labels:
        """Return the labels of the channels that a weight makes: new ones, or those it has from another reader."""
        known = self._weights.get((weight, axis))
        if known is None:
            known = self._weights[weight, axis] = self.units.fresh(count)
        return known

    def hold(self, weight: Tensor, axis: int, reason: str) -> None:
        """Keep an axis of a weight whole: what it meets here are not channels that could be removed."""
        known = self._weights.get((weight, axis))
        if known is None:
            count = self.size(weight, axis)
            if count is None:
                return
            known = self._weights[weight, axis] = self.units.fresh(count)
        self.units.freeze(known, reason)

    # ---------------------------------------------------------------------------------------------------------- sites

    def cut(self, node: Node, index: int, axis: int, labels: Labels, role: Role) -> None:
        """Note that a constant is cut along an axis."""
        self.cuts.append(Cut(node, index, axis, labels, role))

    def carry(self, node: Node, index: int, axis: int, labels: Labels) -> bool:
        """Note that an input handles each channel on its own; freeze the channels where it is no constant.

        Returns:
            Whether it is one.
        """
        tensor = node.inputs[index]
        if self.is_constant(tensor) and self.size(tensor, axis) == len(labels):
            self.cut(node, index, axis, labels, Role.CARRY)
            return True
        self.units.freeze(labels, f"{label(node)} joins it with '{tensor.name}', whose channels are not known")
        return False

    def count(self, node: Node, place: int | str, position: int | None, labels: Labels, *, per: int = 1) -> None:
        """Note that a number counts channels; a number that counts two things keeps both."""
        key = (node, place, position)
        known = self._counted.get(key)
        if known is None:
            self._counted[key] = made = Count(node, place, position, labels, per)
            self.counts.append(made)
        elif known.per != per or not self.same_count(known.labels, labels):
            reason = f"one number of {label(node)} counts two kinds of channels"
            self.units.freeze(labels, reason)
            self.units.freeze(known.labels, reason)

    def settle_size(self, node: Node, index: int, position: int, labels: Labels | None, value: int | None) -> bool:
        """Let one element of a computed or constant shape count the channels of an axis.

        Args:
            node: The node that reads the shape.
            index: At which input.
            position: Which element.
            labels: The channels along the axis that it is the size of, or None.
            value: What the axis measures now, None where it is not known.

        Returns:
            Whether the size follows what is removed; where it does not, the labels are frozen.
        """
        found = self._element(node, index, position)
        if isinstance(found, np.ndarray):
            if labels is not None and self.same_count(found, labels):
                return True
            reason = f"{label(node)} takes its size for that of another axis"
            self.units.freeze(found, reason)
        elif found is None:
            reason = f"a size that {label(node)} reads is computed"
        else:
            reader, place, element, number = found
            if labels is None or number in {-1, 0} or (value is not None and number != value):
                return True
            self.count(reader, place, element, labels)
            return True
        if labels is not None:
            self.units.freeze(labels, reason)
        return labels is None

    def _element(self, node: Node, index: int, position: int) -> tuple[Node, int, int, int] | Labels | None:
        """Return where an element of a shape stands (node, input, element, value), or the labels it is the size of."""
        while True:
            tensor = node.inputs[index]
            if self.is_constant(tensor):
                value = constant_value(tensor)
                if value is None or position >= value.size:
                    return None
                return node, index, position, int(value.ravel()[position])
            known = self.sizes.get(tensor)
            if known is not None and position < len(known) and known[position] is not None:
                return known[position]
            made = producer(tensor)
            if made is None or made.graph is not self.graph or made.domain not in _STANDARD:
                return None
            if made.op == "Concat":
                lengths = [self.size(each, 0) if self.rank(each) == 1 else None for each in made.inputs]
                index = 0
                while index < len(lengths) and (lengths[index] or 0) <= position:
                    if lengths[index] is None:
                        return None
                    position -= lengths[index] or 0
                    index += 1
                if index == len(lengths) or lengths[index] is None:
                    return None
            elif made.op in {"Unsqueeze", "Squeeze", "Identity", "Cast", "Reshape"}:
                index = 0
            else:
                return None
            node = made

    def _freeze_other_readers(self) -> None:
        """Keep weights whole that are also read where no channels are followed."""
        known = {(cut.node, cut.index) for cut in self.cuts}
        for (weight, _), labels in self._weights.items():
            other = next((use for use in uses(weight) if (use.node, use.index) not in known), None)
            if other is not None:
                self.units.freeze(labels, f"its weight '{weight.name}' is also read by {label(other.node)}")
            elif any(role == "output" for role, _ in weight.roles) or owner(weight) is not self.graph:
                self.units.freeze(labels, f"its weight '{weight.name}' is also an output or belongs to another graph")


def label(node: Node) -> str:
    """Return how a node is called in reasons."""
    name = node.name or next((tensor.name for tensor in node.outputs if tensor.name), "")
    return f"{node.op} '{name}'"


def given(node: Node, index: int) -> bool:
    """Tell whether an optional input is there."""
    return len(node.inputs) > index and bool(node.inputs[index].name)
