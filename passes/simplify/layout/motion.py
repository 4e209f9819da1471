"""Moves Transposes through regions of a graph, each region as one patch that saves something or not at all."""

from __future__ import annotations

from typing import TYPE_CHECKING

from graphopt.graph import is_graph_output
from graphopt.passes.simplify.layout.change import LayoutChange, view_patch
from graphopt.passes.simplify.layout.choice import better_layouts
from graphopt.passes.simplify.layout.permutations import is_identity
from graphopt.passes.simplify.layout.region import Region, Turns
from graphopt.rewrite.driver import EVERY, Batch
from graphopt.rewrite.patch import Patch, node_label

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from graphopt.analysis.shape_values import ShapeValues
    from graphopt.analysis.types import Types
    from graphopt.graph import Node
    from graphopt.passes.simplify.layout.relayout import Rule
    from graphopt.rewrite.pass_ import Steps


class TransposeMotion:
    """The search for better layouts, which remembers what it looked at.

    A region is looked at again when one of its nodes has changed.

    Args:
        types: Types of the tensors.
        values: Values of shape computations.
        rules: How nodes compute in other layouts, by operator.
    """

    def __init__(self, types: Types, values: ShapeValues, rules: Mapping[str, Rule]) -> None:
        self.types = types
        self.values = values
        self.rules = rules
        self._turns = Turns(types)
        self._seen: dict[Node, tuple[object, ...]] = {}
        self._regions: dict[Node, list[tuple[Node, ...]]] = {}

    def batch(self) -> Batch:
        """Return the rewrite for the driver."""
        return Batch((EVERY,), self._wants, self._run)

    def _wants(self, node: Node) -> bool:
        seen = self._seen.get(node)
        if seen is not None:
            return seen != _state(node)
        perm = self._turns.perm(node)
        return perm is not None and not is_identity(perm)

    def _run(self, nodes: Sequence[Node]) -> Steps:
        waiting: dict[Node, None] = {}
        for node in nodes:
            for seeds in self._regions.pop(node, ()):
                waiting.update(dict.fromkeys(seeds))
            self._seen.pop(node, None)
            waiting[node] = None
        while waiting:
            seed = next(iter(waiting))
            del waiting[seed]
            if seed.graph is None:
                continue
            perm = self._turns.perm(seed)
            if perm is None or is_identity(perm):
                continue
            region = Region(seed, perm, self.types, self.values, self.rules)
            changes = better_layouts(region, self.values) if region.values else None
            patch = view_patch(seed, perm, self.types) if changes is None else _patch(region, seed, changes)
            if patch is None:
                self._remember(region, seed, waiting)
                continue
            around = tuple(region.turns)
            touched = yield patch
            waiting.update(dict.fromkeys(around))
            for node in touched:
                for seeds in self._regions.pop(node, ()):
                    waiting.update(dict.fromkeys(seeds))
                self._seen.pop(node, None)
                waiting[node] = None

    def _remember(self, region: Region, seed: Node, waiting: dict[Node, None]) -> None:
        seeds = tuple(region.turns if region.whole else region.near)
        for turn in seeds:
            perm = self._turns.perm(turn)
            if perm is None or view_patch(turn, perm, self.types) is None:
                waiting.pop(turn, None)
        for node in region.nodes:
            self._seen[node] = _state(node)
            self._regions.setdefault(node, []).append(seeds)
        self._seen[seed] = _state(seed)


def _state(node: Node) -> tuple[object, ...]:
    """Return what a change of a node or its surroundings would change."""
    return (
        node.op,
        tuple(node.inputs),
        tuple(len(tensor.outputs) for tensor in node.outputs),
        any(is_graph_output(tensor) for tensor in node.outputs),
    )


def _patch(region: Region, seed: Node, changes: Mapping[Node, int]) -> Patch:
    count = sum(1 for _ in region.turns)
    change = LayoutChange(region, changes)
    what = f"move {count} Transposes" if count != 1 else "move a Transpose"
    through = f" through {len(changes)} nodes" if changes else ""
    return Patch(f"{what} with '{node_label(seed)}'{through}", (seed, *changes), change.apply)
