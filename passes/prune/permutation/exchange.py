"""Which channels may change places in the whole graph, and the edit that lets them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from graphopt.graph import Constant, constant_value, is_graph_output, producer, uses

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from numpy.typing import NDArray

    from graphopt.analysis.channel_groups import ChannelGroups, Group
    from graphopt.analysis.channel_groups.units import Labels
    from graphopt.graph import Node, Rewriter, Tensor

Order: TypeAlias = "NDArray[np.intp]"
Place: TypeAlias = "tuple[Node, int]"


@dataclass(frozen=True, slots=True, eq=False)
class Exchange:
    """Units that may change places: they meet the same places of the graph equally often.

    Groups of units that may only be counted apart, such as the channels that a Pad adds before and behind, are one.

    Attributes:
        units: In the order in which they stand in the first weight that makes them.
        groups: The groups that they are of.
    """

    units: Labels
    groups: tuple[Group, ...]

    @property
    def nodes(self) -> tuple[Node, ...]:
        """The layers that make or read the units."""
        layers = [layer for group in self.groups for layer in (*group.producers, *group.consumers)]
        return tuple(dict.fromkeys(layer.node for layer in layers))

    def places(self, channels: ChannelGroups, labels: Labels) -> Order | None:
        """Return at which indices of an axis each unit stands, ascending, [U, times]; None where they do not."""
        order = np.argsort(self.units)
        found = channels.units(labels)
        at = np.minimum(np.searchsorted(self.units, found, sorter=order), len(order) - 1)
        slot = np.where(self.units[order[at]] == found, order[at], -1)
        here = np.flatnonzero(slot >= 0)
        if not len(here):
            return None
        return here[np.argsort(slot[here], kind="stable")].reshape(len(self.units), -1)


def exchanges(channels: ChannelGroups, groups: Sequence[Group]) -> list[Exchange]:
    """Return the units of some groups, divided by the places that they meet, in the order of the groups.

    Args:
        channels: The analysis that the groups are of.
        groups: Those that may change; none has a reason to stay.
    """
    draw = np.random.default_rng(0)  # a fixed hash per place: equal sums are equal counts
    size = 1 + max((int(channels.units(labels).max()) for labels in _labels(channels)), default=0)
    signature = np.zeros(size, np.uint64)
    for labels in _labels(channels):
        np.add.at(signature, channels.units(labels), draw.integers(1, 1 << 63, dtype=np.uint64))
    found: dict[int, tuple[list[int], list[Group]]] = {}
    for group in groups:
        for unit in group.units.tolist():
            units, whose = found.setdefault(int(signature[unit]), ([], []))
            units.append(unit)
            if group not in whose:
                whose.append(group)
    made = []
    for units, whose in found.values():
        first = whose[0].producers[0]
        labels = next(cut.labels for cut in channels.cuts_of(first) if np.isin(units, channels.units(cut.labels)).all())
        standing = dict.fromkeys(channels.units(labels).tolist())
        members = set(units)
        made.append(Exchange(np.array([unit for unit in standing if unit in members], np.int64), tuple(whose)))
    return made


def _labels(channels: ChannelGroups) -> Iterator[Labels]:
    """Yield the labels of every axis of every tensor and constant: units that all meet equally may change places."""
    for axes in channels.tensors.values():
        yield from axes.values()
    for cut in channels.cuts:
        yield cut.labels
    for lookup in channels.lookups:
        yield lookup.source
        yield lookup.labels


def refusal(channels: ChannelGroups, exchange: Exchange) -> str:
    """Return why the units may not change places although they meet the same ones, or nothing."""
    for lookup in channels.lookups:
        places = exchange.places(channels, lookup.source)
        if places is not None and places.shape[1] > 1:
            return f"Gather '{lookup.node.name or lookup.node.outputs[0].name}' picks parts of them"
    return ""


def orders(channels: ChannelGroups, exchange: Exchange, order: Order) -> dict[Place, dict[int, Order]]:
    """Return by node, input and axis the order in which constants are read anew.

    Args:
        channels: The analysis of the present graph.
        exchange: The units.
        order: Slot k gets the unit of slot order[k].
    """
    found: dict[Place, dict[int, Order]] = {}
    for cut in channels.cuts:
        places = exchange.places(channels, cut.labels)
        if places is not None:
            indices = np.arange(len(cut.labels))
            indices[places] = places[order]
            found.setdefault((cut.node, cut.index), {})[cut.axis] = indices
    return found


def reordered(value: NDArray[Any], axes: Mapping[int, Order]) -> NDArray[Any]:
    """Return an array with the indices of some axes in another order."""
    for axis, order in axes.items():
        value = np.take(value, order, axis=axis)
    return np.ascontiguousarray(value)


def write(rewriter: Rewriter, found: Mapping[Place, Mapping[int, Order]]) -> None:
    """Reorder constants; one that several places read in different orders becomes one constant each."""
    by_tensor: dict[Tensor, dict[object, list[Place]]] = {}
    for (node, index), axes in found.items():
        key = tuple((axis, axes[axis].tobytes()) for axis in sorted(axes))
        by_tensor.setdefault(node.inputs[index], {}).setdefault(key, []).append((node, index))
    for tensor, variants in by_tensor.items():
        old = constant_value(tensor)
        assert old is not None
        readers = {place for some in variants.values() for place in some}
        alone = len(variants) == 1 and {(use.node, use.index) for use in uses(tensor)} == readers
        for some in variants.values():
            value = reordered(old, found[some[0]])
            if alone and isinstance(tensor, Constant) and not is_graph_output(tensor):
                rewriter.set_weight(tensor, value)
                continue
            made = rewriter.constant(value, name=tensor.name, near=some[0][0])
            for node, index in some:
                rewriter.set_input(node, index, made)
        maker = producer(tensor)
        if maker is not None and not uses(tensor) and not is_graph_output(tensor):
            rewriter.erase(maker)
