"""ChannelGroups: which channels, heads and neurons of a model can be removed, and what must change with them."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Self

import numpy as np

from graphopt.analysis.base import Analysis
from graphopt.analysis.channel_groups import elementwise, layers, movement, normalization, reshaping
from graphopt.analysis.channel_groups.flow import Flow
from graphopt.analysis.channel_groups.sites import Layer, Role
from graphopt.analysis.channel_groups.units import HEADS, RESIDUAL
from graphopt.analysis.types import Types
from graphopt.graph import captures, subgraphs

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from graphopt.analysis.channel_groups.flow import Axes, Rule
    from graphopt.analysis.channel_groups.sites import Count, Cut, EvenSplit, Lookup
    from graphopt.analysis.channel_groups.units import Labels
    from graphopt.analysis.manager import Facts
    from graphopt.graph import Model, Node, Tensor


@dataclass(frozen=True, slots=True, eq=False)
class Group:
    """Channels that are alternatives: each can be removed without the others, and removing one changes the same places.

    Attributes:
        units: What can be removed, in order: the label that stands for everything that goes together.
        kind: ``heads``, ``neurons`` (made by matrix products) or ``channels``.
        tied: Additions tie them across layers, as in the residual stream.
        producers: The weights that make them, in the order of the graph.
        consumers: The weights that sum over them, in the order of the graph.
        reason: Why none of them can be removed, or nothing.
    """

    units: Labels
    kind: str
    tied: bool
    producers: tuple[Layer, ...]
    consumers: tuple[Layer, ...]
    reason: str

    @property
    def name(self) -> str:
        """The first layer that makes them."""
        first = self.producers[0] if self.producers else None
        return "" if first is None else str(first.node.name or first.node.outputs[0].name)

    def __len__(self) -> int:
        return len(self.units)


class ChannelGroups(Analysis):
    """The channels of a model in groups of alternatives, and every place that changes when some are removed.

    Every index of an axis with channels has a label; labels that must go together are tied (a union-find over
    (tensor, axis, index)). Removing a unit takes every index whose label it stands for out of every constant, and
    counts the sizes anew. The result computes what the model computes with zeros in the columns of the weights that
    read the removed channels. Only the main graph is followed; what bodies read stays.

    Attributes:
        groups: Those that can lose units, and those that cannot, with the reason; in the order of their producers.
        cuts: Axes of constants.
        counts: Numbers that count channels.
        lookups: Constant indices of channels.
        even_splits: Splits into equal parts of channels.
        tensors: The labels of every computed tensor by axis, of the axes that have any.

    Source: Fang et al. 2023, arXiv:2301.12900 (dependency groups), on single indices instead of whole layers.
    """

    depends = frozenset({"structure", "types", "weights"})

    def __init__(self, flow: Flow) -> None:
        self.cuts: tuple[Cut, ...] = tuple(flow.cuts)
        self.counts: tuple[Count, ...] = tuple(flow.counts)
        self.lookups: tuple[Lookup, ...] = tuple(flow.lookups)
        self.even_splits: tuple[EvenSplit, ...] = tuple(flow.even_splits)
        self.tensors: Mapping[Tensor, Axes] = flow.tensors()
        self._roots, reasons, reason, marks = flow.units.settled()
        self.groups: tuple[Group, ...] = tuple(self._grouped(flow, reasons, reason, marks))

    @classmethod
    def compute(cls, model: Model, facts: Facts) -> Self:
        """Follow the channels of the main graph."""
        flow = Flow(model.graph, facts.get(Types), model.graph.opset)
        table = _rules()
        flow.run(table)
        for node in model.graph.nodes:
            for _, body in subgraphs(node):
                for tensor in captures(body):
                    flow.freeze(tensor, f"'{tensor.name}' is read in a body")
        return cls(flow)

    def units(self, labels: Labels) -> Labels:
        """Return which unit each label belongs to."""
        return np.asarray(self._roots[labels], np.int64)

    def stays(self, labels: Labels, removed: Labels) -> NDArray[np.bool_]:
        """Tell of each label whether it stays when some units are removed."""
        return np.isin(self._roots[labels], removed, invert=True)

    def positions(self, group: Group, labels: Labels) -> NDArray[np.int64]:
        """Return for each label the number of its unit in a group, -1 where it belongs to another."""
        order = np.argsort(group.units)
        units = self._roots[labels]
        place = np.minimum(np.searchsorted(group.units, units, sorter=order), len(group.units) - 1)
        found = order[place]
        return np.where(group.units[found] == units, found, -1)

    def cuts_of(self, layer: Layer) -> list[Cut]:
        """Return the cuts of one weight at one node."""
        return [cut for cut in self.cuts if cut.node is layer.node and cut.index == layer.index]

    def same_as(self, other: Self) -> bool:
        """Tell whether both name the same groups."""
        return [_description(group) for group in self.groups] == [_description(group) for group in other.groups]

    def _grouped(
        self, flow: Flow, reasons: Sequence[str], reason: NDArray[np.int64], marks: NDArray[np.uint8]
    ) -> list[Group]:
        """Divide the units by the places that change with them, and by why they stay."""
        count = len(self._roots)
        signature = np.zeros(count, np.uint64)
        signature[:] = reason.astype(np.uint64)
        noise = np.random.default_rng(0)  # a fixed hash per place: units of one group meet the same places as often
        places = [cut.labels for cut in self.cuts] + [count.labels for count in self.counts]
        places += [lookup.labels for lookup in self.lookups]
        places += [part for each in self.even_splits for part in each.parts]
        for labels in places:
            np.add.at(signature, self._roots[labels], noise.integers(1, 1 << 63, dtype=np.uint64))
        touched = {role: np.zeros(count, np.bool_) for role in Role}
        for cut in self.cuts:
            touched[cut.role][self._roots[cut.labels]] = True
        order = {node: place for place, node in enumerate(flow.graph.nodes)}
        roots = np.flatnonzero(touched[Role.PRODUCE] & (self._roots == np.arange(count)))
        groups: dict[int, list[int]] = {}
        for root in roots.tolist():
            groups.setdefault(int(signature[root]), []).append(root)
        firsts = np.array([members[0] for members in groups.values()], np.int64)
        layers_of = self._layers(firsts, order)
        made = []
        for members in groups.values():
            units = np.array(members, np.int64)
            producers, consumers = layers_of[members[0], Role.PRODUCE], layers_of[members[0], Role.CONSUME]
            why = reasons[reason[units[0]]]
            if not why and not consumers:
                why = "no layer reads it"
            kind = "neurons" if all(each.node.op in {"Gemm", "MatMul"} for each in producers) else "channels"
            kind = "heads" if marks[units[0]] & HEADS else kind
            made.append(Group(units, kind, bool(marks[units[0]] & RESIDUAL), producers, consumers, why))
        return sorted(made, key=lambda group: (order[group.producers[0].node], int(group.units[0])))

    def _layers(self, firsts: Labels, order: Mapping[Node, int]) -> dict[tuple[int, Role], tuple[Layer, ...]]:
        """Return the weights that make and that read a unit, for some units."""
        found: dict[tuple[int, Role], list[Layer]] = {(int(unit), role): [] for unit in firsts for role in Role}
        for cut in self.cuts:
            units = np.unique(self._roots[cut.labels])
            for unit in units[np.isin(units, firsts)].tolist():
                found[unit, cut.role].append(Layer(cut.node, cut.index))
        return {
            key: tuple(sorted(dict.fromkeys(some), key=lambda layer: (order[layer.node], layer.index)))
            for key, some in found.items()
        }


def _description(group: Group) -> tuple[object, ...]:
    layers_of = [tuple((each.node.name, each.index) for each in some) for some in (group.producers, group.consumers)]
    return len(group), group.kind, group.tied, group.reason, *layers_of


@cache
def _rules() -> dict[str, Rule]:
    found: dict[str, Rule] = {}
    for module in (elementwise, layers, movement, normalization, reshaping):
        found.update(module.rules())
    return found
