"""Which units of which groups go: counts per group, and scores of what is in them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from graphopt.analysis.channel_groups import Role
from graphopt.solve import structured

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from graphopt.analysis.channel_groups import ChannelGroups, Cut, Group, Layer
    from graphopt.analysis.layer_statistics import Form
    from graphopt.graph import Node

    Matrix = NDArray[np.float64]
    Places = NDArray[np.int64]

SMALL = 8
"""Groups of fewer multiples are not rounded: the share would be missed by more than a sixteenth."""

STEPS = 256
"""Units that one group loses are taken out in at most so many steps."""


def kept_units(group: Group, ratio: float, multiple: int) -> int:
    """Return how many units stay when a share of them goes, rounded to a multiple where there are many."""
    count = len(group)
    kept = count - round(ratio * count)
    if group.kind != "heads" and multiple > 1 and count >= SMALL * multiple and kept < count:
        kept = multiple * max(1, round(kept / multiple))
    return min(count, max(1, kept))


@dataclass(slots=True)
class Choice:
    """What goes, as far as it is decided.

    Attributes:
        channels: The analysis of the graph that the units belong to.
        groups: Groups that lose some.
        keep: How many units stay in each.
        select: How units are ranked.
        seed: For units drawn at random.
        removed: The units that go, by group.
        losses: What their removal cost by the measure of the ranking, relative to the output where it is read.
        spread: Mean activations, [samples, columns], by the node and input that reads them.
    """

    channels: ChannelGroups
    groups: Sequence[Group]
    keep: dict[Group, int]
    select: str
    seed: int
    removed: dict[Group, Places] = field(default_factory=dict)
    losses: dict[Group, float] = field(default_factory=dict)
    spread: dict[tuple[Node, int], Matrix] = field(default_factory=dict)

    @property
    def units(self) -> Places:
        """All units that go."""
        return np.concatenate([np.zeros(0, np.int64), *self.removed.values()])

    @property
    def measures(self) -> bool:
        """Whether the ranking looks at what layers read."""
        return self.select in {"block-obs", "correlation", "lasso"}

    def undecided(self, layer: Layer) -> list[Group]:
        """Return the groups that a weight reads and that are not decided."""
        return [group for group in self.groups if layer in group.consumers and group not in self.removed]

    def columns(self, group: Group, layer: Layer, form: Form, shape: Sequence[int]) -> list[Places]:
        """Return which unit of a group each column of each matrix of a weight reads, -1 for none."""
        places = np.full(shape, -1, np.int64)
        for cut in self._read(layer):
            positions = self.channels.positions(group, cut.labels)
            places = np.maximum(places, positions.reshape([-1 if a == cut.axis else 1 for a in range(len(shape))]))
        return [matrix[0].astype(np.int64) for matrix in form.matrices(places.astype(np.float64))]

    def support(self, layer: Layer, shape: Sequence[int]) -> NDArray[np.bool_]:
        """Return which weights may be other than zero: all but those that read what goes."""
        stays = np.ones(shape, np.bool_)
        for cut in self._read(layer):
            axis = self.channels.stays(cut.labels, self.units)
            stays &= axis.reshape([-1 if a == cut.axis else 1 for a in range(len(shape))])
        return stays

    def _read(self, layer: Layer) -> list[Cut]:
        return [cut for cut in self.channels.cuts_of(layer) if cut.role is Role.CONSUME]

    def decide(self, group: Group, readers: Sequence[structured.Reader]) -> None:
        """Choose what goes from a group by what its layers read; without any, by the weights."""
        if not self.measures or not readers:
            self.decide_by_weights(group)
            return
        self._take(group, self.ranked(group, readers, len(group) - self.keep[group]))

    def ranked(self, group: Group, readers: Sequence[structured.Reader], gone: int) -> structured.Removal:
        """Return the units in the order in which they go by what their layers read, as many as go at least."""
        count = len(group)
        if self.select == "lasso":
            return structured.lasso(readers, count, count - gone)
        ranking = structured.block_obs if self.select == "block-obs" else structured.merging
        return ranking(readers, count, steps=gone, at_once=-(-gone // STEPS) if gone else 1)

    def decide_ranked(self, group: Group, ranking: structured.Removal | None) -> None:
        """Choose what goes from a group by a ranking; by the weights where there is none."""
        if ranking is None:
            self.decide_by_weights(group)
        else:
            self._take(group, ranking)

    def decide_by_weights(self, group: Group) -> None:
        """Choose what goes from a group by its weights, by the entropy of its activations, or by lot."""
        count = len(group)
        if self.select == "random":
            first = int(group.units[0])
            self._take(group, structured.by_score(np.random.default_rng((self.seed, first)).random(count)))
            return
        if self.select == "entropy":
            known = [(layer, self.spread[layer.node, layer.index]) for layer in group.consumers if self._seen(layer)]
            scores = np.zeros(count)
            for layer, values in known:
                for cut in self._read(layer):
                    scores += structured.entropies(values, self.channels.positions(group, cut.labels), count)
            if known:
                self._take(group, structured.by_score(scores))
                return
        parts = []
        for layer in group.producers:
            value = layer.array()
            for cut in self.channels.cuts_of(layer):
                if cut.role is Role.PRODUCE:
                    rows = np.moveaxis(value, cut.axis, 0).reshape(len(cut.labels), -1).astype(np.float64)
                    parts.append((rows, self.channels.positions(group, cut.labels)))
        self._take(group, structured.by_score(structured.norms(parts, count, power=1 if self.select == "l1" else 2)))

    def _seen(self, layer: Layer) -> bool:
        values = self.spread.get((layer.node, layer.index))
        return values is not None and all(values.shape[1] == len(cut.labels) for cut in self._read(layer))

    def _take(self, group: Group, found: structured.Removal) -> None:
        gone = len(group) - self.keep[group]
        self.removed[group] = group.units[found.order[:gone]]
        self.losses[group] = float(found.losses[:gone].sum())
