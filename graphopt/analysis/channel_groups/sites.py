"""The places of a graph that change when channels go: slices of constants, and numbers that count channels."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, Any

from graphopt.graph import constant_value

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from graphopt.analysis.channel_groups.units import Labels
    from graphopt.graph import Node, Tensor


class Role(Enum):
    """What a constant does with the channels along one of its axes."""

    PRODUCE = "produce"
    """It makes them: rows of a weight, columns of an embedding table."""
    CONSUME = "consume"
    """It sums over them: columns of a weight. Zeros there make a channel count for nothing."""
    CARRY = "carry"
    """It handles each channel on its own: biases, normalizations, slopes, depthwise weights."""


@dataclass(frozen=True, slots=True, eq=False)
class Cut:
    """An axis of a constant along which removed channels are cut out.

    Attributes:
        node: A node that reads the constant.
        index: At which input.
        axis: The axis, 0 or larger.
        labels: Its labels, one per index of the axis.
        role: What the constant does with them.
    """

    node: Node
    index: int
    axis: int
    labels: Labels
    role: Role


@dataclass(frozen=True, slots=True, eq=False)
class Count:
    """A number that counts channels: an element of a constant input, or an attribute.

    Attributes:
        node: The node.
        place: Index of the input, or name of the attribute.
        position: Which element, counted flat; None for an attribute that is one number.
        labels: What it counts: it becomes how many of these stay, divided by `per`.
        per: Channels per unit of the number; -1 for a bound counted from the end.
    """

    node: Node
    place: int | str
    position: int | None
    labels: Labels
    per: int = 1


@dataclass(frozen=True, slots=True, eq=False)
class Lookup:
    """Constant indices that pick channels: those that pick removed ones go, the others are counted anew.

    Attributes:
        node: The Gather.
        source: Labels of the axis that is picked from.
        labels: Labels of the result, one per index.
    """

    node: Node
    source: Labels
    labels: Labels


@dataclass(frozen=True, slots=True, eq=False)
class EvenSplit:
    """A Split into equal parts that gets explicit sizes where its parts no longer are equal.

    Attributes:
        node: The Split.
        parts: Labels of its outputs.
    """

    node: Node
    parts: tuple[Labels, ...]


@dataclass(frozen=True, slots=True)
class Layer:
    """One weight at one node.

    Attributes:
        node: The node.
        index: Which of its inputs the weight is.
    """

    node: Node
    index: int

    @property
    def weight(self) -> Tensor:
        """The weight."""
        weight: Tensor = self.node.inputs[self.index]
        return weight

    def array(self) -> NDArray[Any]:
        """Return the values of the weight, read-only."""
        value = constant_value(self.weight)
        assert value is not None
        return value
