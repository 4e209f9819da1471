"""The pass ``permute-channels``."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import chain
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from graphopt.analysis.channel_groups import ChannelGroups, Role
from graphopt.analysis.dense_reference import DenseReference
from graphopt.analysis.layer_statistics import Batches, CollectedStatistics, Refusal, end_layers, find_layers
from graphopt.analysis.row_scale import RowScale
from graphopt.passes.prune.permutation.exchange import exchanges, orders, refusal, reordered, write
from graphopt.passes.prune.permutation.panels import panel_of
from graphopt.passes.prune.permutation.saliency import saliency
from graphopt.passes.prune.structure import Structure
from graphopt.rewrite import Contract, LayerRecord, Pass, Patch, Skip, node_label
from graphopt.rewrite.layer_stop import find_stops
from graphopt.rewrite.sweep import Sweep
from graphopt.solve.patterns import Pattern
from graphopt.solve.permutation import best_order
from graphopt.solve.threads import one_thread

if TYPE_CHECKING:
    from collections.abc import Generator, Mapping, Sequence

    from numpy.typing import NDArray

    from graphopt.analysis import Facts
    from graphopt.analysis.layer_statistics import Sums
    from graphopt.graph import Model, Node, Rewriter
    from graphopt.passes.prune.permutation.exchange import Exchange, Order
    from graphopt.rewrite.layer_stop import Stop
    from graphopt.solve.permutation import Panel

    Scores = NDArray[np.float64]

LEAST_GAIN = 1e-3
"""An order must keep this much more of the scores, relative to what the present one keeps."""

MOST_ZEROS = 0.01
"""Weights with a larger share of zeros were pruned: their zeros lie as some pattern wants them."""


@dataclass(slots=True)
class _Scored:
    """The layers whose weights a pattern of zeros will lie in, and what their weights are worth."""

    structures: list[Structure] = field(default_factory=list)
    scores: list[Scores] = field(default_factory=list)
    pruned: list[bool] = field(default_factory=list)
    numbers: dict[tuple[Node, int], int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class PermuteChannels(Pass):
    """Let channels change places in all weights at once, so that those lie together which a pattern of zeros suits.

    Attributes:
        pattern: The one that weights will be pruned to: ``N:M``, ``4x1``, ``8x1``, ``16x1``, ``1x4`` or ``4x4``.
        sparsity: Share of zeros that blocks will be pruned to, 0..1; N:M has its own.
        protect_ends: Leave out of account the first and the last layers, which pruning protects.
        starts: Orders that are improved: the present one, a greedy one, then random ones; the best is taken.
        samples: Calibration samples that are run at most.
        rows: Rows of input that a layer is scored on, at most.
        damping: Of the matrices that weights are scored by, relative to the mean square of the inputs.
        keep: Names of nodes whose channels stay where they are.

    Matches: Groups of channels, heads and neurons of the main graph that meet the same places everywhere, as in
        prune-channels, residual streams too.
    Produces: The same nodes; rows of the weights, biases and normalizations that make the channels and columns of those
        that read them in another order. For Rx1 blocks the rows that make channels decide, for N:M and 1xC the columns
        that read them, for 4x4 both, each layer counting alike. With data a weight is worth the share of its layer that
        exact OBS removes before it, without its square. No cost at run time; U^2 F additions per round of swaps for U
        channels and F weights of each.
    Requires: A model that was not pruned yet. Channels that no output of the model and no unknown operator fixes.
    Preserves: Inputs and outputs, names, types, shapes, structure; values up to rounding. A second run changes nothing.
    Source: Pool and Yu 2021, Channel permutations for N:M sparsity, NeurIPS 34.
    """

    name: ClassVar[str] = "permute-channels"
    contract: ClassVar[Contract] = Contract.ROUNDING

    pattern: str = "4x1"
    sparsity: float = 0.5
    protect_ends: bool = True
    starts: int = 4
    samples: int = 1024
    rows: int = 32768
    damping: float = 0.01
    keep: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        pattern = Pattern.parse(self.pattern)
        if max(pattern.rows, pattern.columns, pattern.of) == 1:
            raise ValueError("pattern is 'unstructured', which gains nothing from another order")
        if not 0 <= self.sparsity <= 1:
            raise ValueError(f"sparsity is {self.sparsity}, but it is a share between 0 and 1 (0.7 for 70 %)")
        for option in ("starts", "samples", "rows"):
            if getattr(self, option) < 1:
                raise ValueError(f"{option} is {getattr(self, option)}, but it must be 1 or more")
        if not 0 < self.damping < 1e6:
            raise ValueError(f"damping is {self.damping}, but it must be above 0")

    def run(self, model: Model, facts: Facts) -> Generator[Patch | Skip, frozenset[Node], None]:
        """Yield one patch per group of channels that gets another order."""
        reason = _too_late(facts)
        if reason:
            yield Skip(model.graph.name or "model", reason)
            return
        channels = facts.get(ChannelGroups)
        free = []
        for group in channels.groups:
            if group.reason:
                yield Skip(group.producers[0].node, f"its {len(group)} {group.kind} keep their order: {group.reason}")
            else:
                free.append(group)
        scored: _Scored | None = None
        for exchange in exchanges(channels, free):
            node, what = exchange.groups[0].producers[0].node, f"{len(exchange.units)} {exchange.groups[0].kind}"
            scored = self._scored(model, facts) if scored is None else scored
            panels = self._panels(channels, exchange, scored)
            reason = self._refusal(channels, exchange, panels, scored)
            if reason:
                yield Skip(node, f"its {what} keep their order: {reason}")
                continue
            with one_thread():
                order, before, after = best_order([*chain(*panels.values())], starts=self.starts, seed=facts.seed)
            if after <= before * (1 + LEAST_GAIN):
                yield Skip(node, f"its {what} keep their order: no other was found to keep more")
                continue
            yield self._patch(channels, exchange, order, f"{what} in another order: {after / before - 1:.1%} more kept")
            facts.record(_scales(facts.get(RowScale), channels, exchange, order))
            _follow(scored, channels, exchange, order)

    def _refusal(
        self, channels: ChannelGroups, exchange: Exchange, panels: Mapping[int, Sequence[Panel]], scored: _Scored
    ) -> str:
        """Return why units stay where they are."""
        if len(exchange.units) < 2:
            return "there is only one that meets the same places"
        kept = next((node for node in exchange.nodes if node_label(node) in self.keep), None)
        if kept is not None:
            return f"'{node_label(kept)}' is to be kept"
        if not panels:
            return f"no layer gets zeros where pattern {self.pattern} would see them"
        if any(scored.pruned[number] for number in panels):
            return "weights that make or read them were pruned"
        return refusal(channels, exchange)

    def _scored(self, model: Model, facts: Facts) -> _Scored:
        """Return the scores of all layers that will get zeros."""
        found = [each for each in find_layers(model, keep=self.keep) if not isinstance(each, Refusal)]
        stops = [
            stop
            for stop in find_stops(model, model, found, observed=facts.feeds is not None, strict=False)
            if not isinstance(stop, Refusal)
        ]
        ends = end_layers(model.graph, {node for stop in stops for node in stop.layer.nodes})
        pattern = Pattern.parse(self.pattern)
        taken = [
            stop
            for stop in stops
            if not (self.protect_ends and ends.intersection(stop.layer.nodes))
            and not Structure(stop.form, stop.dense.shape, pattern).refusal()
        ]
        scored = _Scored()
        with one_thread():
            if facts.feeds is not None:
                batches = Batches.of(facts.feeds, self.samples)
                count = len(batches)
                sweep = Sweep(model, model, batches, -(-self.rows // max(1, count)), facts.seed, last=count - 1)
                observed = [stop for stop in taken if stop.reading is not None]
                for stop, seen in sweep.observed(observed):
                    self._score(scored, stop, seen, pattern)
            for stop in taken:
                if (stop.layer.node, stop.layer.index) not in scored.numbers:
                    self._score(scored, stop, None, pattern)
        return scored

    def _score(self, scored: _Scored, stop: Stop, sums: Sums | None, pattern: Pattern) -> None:
        for node in stop.layer.nodes:
            index = next(place for place, tensor in enumerate(node.inputs) if tensor is stop.layer.weight)
            scored.numbers[node, index] = len(scored.scores)
        scored.structures.append(Structure(stop.form, stop.dense.shape, pattern))
        scored.scores.append(saliency(stop, sums, self.damping))
        weight = stop.layer.array()
        scored.pruned.append(bool(np.count_nonzero(weight) < (1 - MOST_ZEROS) * weight.size))

    def _panels(self, channels: ChannelGroups, exchange: Exchange, scored: _Scored) -> dict[int, list[Panel]]:
        """Return what the weights show of an exchange, by number of the layer."""
        found: dict[tuple[int, int], Panel] = {}
        for cut in channels.cuts:
            number = scored.numbers.get((cut.node, cut.index))
            places = None if number is None else exchange.places(channels, cut.labels)
            if number is None or places is None or cut.role is Role.CARRY or (number, cut.axis) in found:
                continue
            panel = panel_of(scored.structures[number], scored.scores[number], cut, places, self.sparsity)
            if panel is not None:
                found[number, cut.axis] = panel
        panels: dict[int, list[Panel]] = {}
        for (number, _), panel in found.items():
            panels.setdefault(number, []).append(panel)
        return panels

    def _patch(self, channels: ChannelGroups, exchange: Exchange, order: Order, what: str) -> Patch:
        found = orders(channels, exchange, order)

        def apply(rewriter: Rewriter) -> None:
            write(rewriter, found)

        makers = dict.fromkeys(layer.node for group in exchange.groups for layer in group.producers)
        records = tuple(LayerRecord(node_label(node), node.op, what) for node in makers)
        return Patch(f"{exchange.groups[0].name}: {what}", exchange.nodes, apply, records)


def _too_late(facts: Facts) -> str:
    """Return why no channels may change places any more, or nothing."""
    if facts.get(DenseReference).model is not None:
        return "weights were pruned before, and what they are aimed at has the order of then"
    if facts.get(CollectedStatistics).found is not None:
        return "statistics were collected before, and would not hold for another order"
    return ""


def _scales(scales: RowScale, channels: ChannelGroups, exchange: Exchange, order: Order) -> RowScale:
    """Return the scales of folded weights in the new order."""
    for (node, index), axes in orders(channels, exchange, order).items():
        name = node.inputs[index].name
        axis = scales.axis(name)
        if axis is not None and axis in axes:
            scales = scales.reordered(name, axes[axis])
    return scales


def _follow(scored: _Scored, channels: ChannelGroups, exchange: Exchange, order: Order) -> None:
    """Bring scores into the order that the weights have now."""
    done = set()
    for place, axes in orders(channels, exchange, order).items():
        number = scored.numbers.get(place)
        if number is not None and number not in done:
            done.add(number)
            scored.scores[number] = reordered(scored.scores[number], axes)
