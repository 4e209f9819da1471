"""Walks over the layers of a model that loses channels: chooses what goes where it is read, and solves what is left."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from graphopt.analysis.channel_groups import Layer as Reading
from graphopt.analysis.layer_statistics import Layer, find_layers, form_of, stream
from graphopt.passes.prune.channels.budget import share_out, unit_costs
from graphopt.rewrite.layerwise import LayerwisePass, Solution
from graphopt.solve import least_squares, obs, structured
from graphopt.solve.threads import one_thread

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from numpy.typing import NDArray

    from graphopt.analysis import Facts
    from graphopt.analysis.channel_groups import Group
    from graphopt.analysis.layer_statistics import Refusal
    from graphopt.graph import Model
    from graphopt.passes.prune.channels.choice import Choice
    from graphopt.rewrite.layer_stop import Stop
    from graphopt.rewrite.layerwise import Problem
    from graphopt.rewrite.sweep import Sweep

    Matrix = NDArray[np.float64]

HELD_NUMBERS = 1 << 26
"""Numbers of the matrices that are held at a time when groups are decided before the walk: half a gigabyte."""

ROWS_PER_COLUMN = 8
"""Groups whose readers were seen on fewer rows keep their equal share: columns that outnumber the rows predict each
other by chance, and removing them would look free."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Reconstruction(LayerwisePass):
    """Solves the layers that read what goes, and those behind them, front to back.

    Units that one layer reads are chosen when the walk reaches it, from what it reads then; those that several layers
    read are chosen before, from what these read in the model as it is.

    Attributes:
        choice: What is decided; filled on the way.
        behind: Also solve again the layers behind, which read what changed.
        shared: Groups share the removal out by what it costs.
        multiple: What stays in a large group is a multiple of this.
    """

    name: ClassVar[str] = "prune-channels"

    choice: Choice
    behind: bool = True
    shared: bool = False
    multiple: int = 1

    def solve(self, problem: Problem) -> Solution | str:
        """Return the weights of a layer on the columns that stay, or on all where none of its columns goes."""
        layer = Reading(problem.layer.node, problem.layer.index)
        shape = problem.stop.dense.shape
        for group in self.choice.undecided(layer):
            aims = [
                least_squares.solve_rows(weight, np.ones_like(weight, np.bool_), given, damping=self.damping)
                for weight, given in zip(problem.dense, problem.fit, strict=True)
            ]
            self.choice.decide(group, self._readers(group, layer, problem.stop, aims, [s.inner for s in problem.fit]))
        stays = self.choice.support(layer, shape)
        if stays.all() and not self.choice.removed:
            return "nothing before it goes"
        supports = [part != 0 for part in problem.stop.form.matrices(stays)]
        groups = zip(problem.dense, supports, problem.fit, strict=True)
        solved = [least_squares.solve_rows(weight, kept, given, damping=self.damping) for weight, kept, given in groups]
        if stays.all():
            return Solution(solved, list(problem.present), "solved again for what goes before it")
        masked = [np.where(kept, weight, 0.0) for weight, kept in zip(problem.dense, supports, strict=True)]
        left, count = int(supports[0].any(axis=0).sum()), supports[0].shape[1]
        return Solution(solved, masked, f"{left} of {count} columns kept and solved again")

    def layers(self, model: Model) -> Iterator[Layer | Refusal]:
        """Yield the weights that read units, and those behind the first of them."""
        reading = {(layer.node, layer.index) for group in self.choice.groups for layer in group.consumers}
        started = False
        for found in find_layers(model, keep=self.keep, depthwise=True):
            if isinstance(found, Layer):
                reads = any((node, found.index) in reading for node in found.nodes)
                started = started or reads
                if reads or (started and self.behind):
                    yield found

    def plan(self, sweep: Sweep, stops: Sequence[Stop], facts: Facts) -> Mapping[str, Any]:
        """Decide the groups that several layers read, and those that are ranked without statistics."""
        if self.choice.select == "entropy":
            self._observe_means(sweep)
        by_layer = {(stop.layer.node, stop.layer.index): stop for stop in stops if stop.readings and not stop.wide}
        early: list[tuple[Group, list[tuple[Reading, Stop]]]] = []
        for group in self.choice.groups:
            seen = [
                (layer, by_layer[layer.node, layer.index])
                for layer in group.consumers
                if (layer.node, layer.index) in by_layer
            ]
            if not self.choice.measures:
                self.choice.decide(group, ())
            elif len(group.consumers) > 1 or not seen or self.shared:
                early.append((group, seen))
        rankings: dict[Group, structured.Removal] = {}
        scarce: set[Group] = set()
        for some in _portions(early):
            observed = sweep.observe(list(dict.fromkeys(stop for _, seen in some for _, stop in seen)))
            for group, seen in some:
                readers: list[structured.Reader] = []
                for layer, stop in seen:
                    sums = observed[stop.key].fit
                    if all(each.finite() for each in sums):
                        inner = [each.mean(centred=stop.bias is not None).inner for each in sums]
                        weights = stop.form.matrices(stop.layer.array())
                        readers += self._readers(group, layer, stop, weights, inner)
                    if any(each.count < ROWS_PER_COLUMN * each.columns for each in sums):
                        scarce.add(group)
                with one_thread():
                    if not self.shared:
                        self.choice.decide(group, readers)
                    elif readers:
                        rankings[group] = self.choice.ranked(group, readers, len(group) - 1)
        if self.shared:
            losses = {
                group: np.cumsum([0.0, *found.losses]) for group, found in rankings.items() if group not in scarce
            }
            costs = unit_costs(self.choice.channels, self.choice.groups, facts)
            self.choice.keep.update(share_out(self.choice, losses, costs, multiple=self.multiple))
            for group, _ in early:
                if len(group.consumers) > 1 or group not in rankings:
                    self.choice.decide_ranked(group, rankings.get(group))
        return {}

    def _readers(
        self, group: Group, layer: Reading, stop: Stop, weights: Sequence[Matrix], inner: Sequence[Matrix]
    ) -> list[structured.Reader]:
        columns = self.choice.columns(group, layer, stop.form, stop.dense.shape)
        parts = zip(weights, inner, columns, strict=True)
        return [structured.Reader(weight, obs.damped(given, self.damping), units) for weight, given, units in parts]

    def _observe_means(self, sweep: Sweep) -> None:
        """Collect the mean activation of every channel that layers read, sample by sample."""
        tensors = {}
        for layer in dict.fromkeys(layer for group in self.choice.groups for layer in group.consumers):
            form = form_of(layer.node, layer.index, layer.array())
            if not isinstance(form, str):
                tensors[layer.node, layer.index] = (
                    form,
                    layer.node.inputs[1 - layer.index if layer.index < 2 else 0].name,
                )
        parts: dict[tuple[Any, int], list[Matrix]] = {key: [] for key in tensors}
        for values in stream(sweep.model, list(dict.fromkeys(name for _, name in tensors.values())), sweep.batches):
            for key, (form, name) in tensors.items():
                view = form.channels(values[name]).astype(np.float64)
                parts[key].append(view.mean(axis=tuple(range(1, view.ndim - 1))) if view.ndim > 2 else view)
        for key, seen in parts.items():
            if seen and np.isfinite(joined := np.concatenate(seen)).all():
                self.choice.spread[key] = joined


def _portions(
    groups: Sequence[tuple[Group, list[tuple[Reading, Stop]]]],
) -> Iterator[list[tuple[Group, list[tuple[Reading, Stop]]]]]:
    """Divide groups into portions whose statistics fit memory together."""
    portion: list[tuple[Group, list[tuple[Reading, Stop]]]] = []
    held = 0
    for group, seen in groups:
        size = sum(2 * stop.form.groups * stop.form.columns(stop.dense.shape) ** 2 for _, stop in seen)
        if portion and held + size > HELD_NUMBERS:
            yield portion
            portion, held = [], 0
        portion.append((group, seen))
        held += size
    if portion:
        yield portion
