"""Finds tensors that lack a pair for the operators beside them to compute on integers, and pairs that serve none."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from graphopt.analysis.activation_ranges.choice import choose
from graphopt.graph import constant_value, is_graph_output, producer, uses
from graphopt.passes.quantize.pairing.writing import PairWriter
from graphopt.passes.quantize.repairing.pair import (
    Pair,
    behind,
    cover,
    grid_before,
    grid_over,
    is_byte,
    mended,
    pairs_of,
    roundings_of,
    stands_for_relu,
)
from graphopt.passes.quantize.restoring.pairs import drop_pair
from graphopt.rewrite.patch import Skip, node_label
from graphopt.target.grid import ASYMMETRIC_UINT8
from graphopt.target.numbers import INT8, UINT8
from graphopt.target.operators import activation_bounds
from graphopt.target.reading import is_conversion, restored
from graphopt.target.rules import Role

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from graphopt.analysis.activation_ranges import Ranges
    from graphopt.analysis.types import Types
    from graphopt.graph import Model, Node, Rewriter, Tensor
    from graphopt.rewrite.patch import Patch
    from graphopt.target.grid import Grid
    from graphopt.target.rules import OpRule, Target

FLOAT32 = 1
AVERAGES = frozenset(("AveragePool", "GlobalAveragePool"))
"""Operators whose results lie between the ends of their input."""

BYTES = (UINT8, INT8)


@dataclass(frozen=True, slots=True)
class Coverage:
    """Which operators can compute on integers, and what they lack.

    Attributes:
        model: The model.
        target: The rules.
        types: Types and shapes.
        seen: Ranges of activations, or None where there are no data.
        floating: Names of operators that are to stay float.
    """

    model: Model
    target: Target
    types: Types
    seen: Ranges | None
    floating: frozenset[str] = frozenset()

    # ----------------------------------------------------------------------------------------------- what is lacking

    def missing(self) -> Iterator[Patch | Skip]:
        """Yield a patch per tensor that needs a pair, or one pair instead of several."""
        useful = self._useful()
        for node in list(useful):
            rule = useful[node]
            for place in rule.data_positions(node):
                if constant_value(node.inputs[place]) is not None:
                    yield self._constant(node, place)
            for tensor in self._results(node, rule):
                if rule.role is Role.WEIGHTED and not rule.needs_output_grid and not self._is_awaited(tensor, useful):
                    continue
                found = self._needed(node, tensor)
                if found is not None:
                    yield found

    def _needed(self, node: Node, tensor: Tensor) -> Patch | Skip | None:
        """Return what a result of a useful operator needs to be rounded once, for all that read it."""
        readers = uses(tensor)
        if not readers or is_graph_output(tensor):
            return None
        pairs = roundings_of(tensor)
        if len(pairs) == 1 and len(readers) == 1:
            return None
        if any(is_conversion(use.node, "QuantizeLinear") for use in readers) and len(pairs) != sum(
            is_conversion(use.node, "QuantizeLinear") for use in readers
        ):
            return None  # something reads the integers themselves
        if pairs:
            if any(stands_for_relu(pair) for pair in pairs):
                return None
            spans = [pair.span for pair in pairs]
            same = len({pair.grid() for pair in pairs if is_byte(pair)}) == 1 and all(is_byte(pair) for pair in pairs)
            grid = pairs[0].grid() if same else grid_over(min(s[0] for s in spans), max(s[1] for s in spans))
            what = f"one pair for its {len(readers)} readers"
        else:
            found = self._grid(node, tensor)
            if found is None:
                return Skip(node, f"the range of '{tensor.name}' is not known: calibration data would show it")
            grid, what = found, "a pair behind it"

        def apply(rw: Rewriter) -> None:
            cover(rw, tensor, grid, self.model.opset)

        return mended("open-result" if not pairs else "several-readers", node, what, apply)

    def _constant(self, node: Node, place: int) -> Patch:
        tensor = node.inputs[place]

        def apply(rw: Rewriter) -> None:
            made = PairWriter(self.model.opset).restored_constant(rw, node, tensor, ASYMMETRIC_UINT8)
            rw.set_input(node, place, made)

        return mended("all-inputs", node, "its constant operand to uint8", apply)

    def _grid(self, node: Node, tensor: Tensor) -> Grid | None:
        """Return the grid of a result: that of the input where it bounds it, else what the data show."""
        rule = self.target.rule(node)
        assert rule is not None
        if tensor is node.outputs[0] or rule.role is Role.MOVE:
            derived = self._derived(node, rule)
            if derived is not None:
                return derived
        seen = None if self.seen is None else self.seen.get(tensor.name)
        if seen is None:
            return None
        low, high = choose(seen, "auto")
        return grid_over(low, high)

    def _derived(self, node: Node, rule: OpRule) -> Grid | None:
        if rule.fixed_range is not None:
            return grid_over(*rule.fixed_range)
        if not (rule.role is Role.MOVE or node.op in AVERAGES or node.op == "Concat"):
            return None
        grids = [grid_before(node.inputs[place]) for place in rule.data_positions(node)]
        known = [grid for grid in grids if grid is not None]
        if len(known) < len(grids):
            return None
        if len(set(known)) == 1:
            return known[0]
        return grid_over(min(grid.low for grid in known), max(grid.high for grid in known))

    # ------------------------------------------------------------------------------------------------- who may compute

    def _useful(self) -> dict[Node, OpRule]:
        """Return operators that compute on integers, or would with pairs that can be placed, in graph order."""
        able = self._able()
        useful: set[Node] = set()
        for node in reversed(list(self.model.graph.nodes)):
            rule = able.get(node)
            if rule is None:
                continue
            if rule.role is Role.WEIGHTED or any(self._is_read(tensor, useful) for tensor in self._results(node, rule)):
                useful.add(node)
        return {node: rule for node, rule in able.items() if node in useful}

    def _is_read(self, tensor: Tensor, useful: set[Node]) -> bool:
        direct = {use.node for use in uses(tensor)}
        through = {use.node for pair in roundings_of(tensor) for each in pair.restores for use in uses(each.outputs[0])}
        return bool((direct | through) & useful) or (bool(direct) and bool(roundings_of(tensor)))

    def _able(self) -> dict[Node, OpRule]:
        able = {node: rule for node in self.model.graph.nodes if (rule := self._rule(node)) is not None}
        shrinking = True
        while shrinking:
            out = [node for node, rule in able.items() if not self._can_compute(node, rule, able)]
            for node in out:
                del able[node]
            shrinking = bool(out)
        return able

    def _rule(self, node: Node) -> OpRule | None:
        rule = self.target.rule(node)
        if rule is None or rule.role is Role.ABSORBED or node_label(node) in self.floating:
            return None
        if rule.refuse(node) is not None or not all(self._is_float(tensor) for tensor in node.outputs if tensor.name):
            return None
        if rule.role is not Role.WEIGHTED:
            return rule
        weight = restored(node.inputs[rule.weight or 1])
        fits = weight is not None and weight.is_constant and not weight.block and weight.number in {"int8", "uint8"}
        return rule if fits else None

    def _is_float(self, tensor: Tensor) -> bool:
        return self.types.dtype(tensor) in {FLOAT32, None} or tensor.dtype == np.float32

    def _can_compute(self, node: Node, rule: OpRule, able: dict[Node, OpRule]) -> bool:
        constants, sums = 0, 0
        for place in rule.data_positions(node):
            tensor = node.inputs[place]
            if constant_value(tensor) is not None:
                constants += 1
                if not rule.constant_operand or not self._is_float(tensor):
                    return False
            elif not self._can_lie_on_grid(tensor, able):
                return False
            else:
                source = producer(tensor)
                sums += source in able and not able[source].needs_output_grid and able[source].role is Role.WEIGHTED
        return constants < len(rule.data_positions(node)) and not (constants and sums)  # a bias is no operand

    def _can_lie_on_grid(self, tensor: Tensor, able: dict[Node, OpRule]) -> bool:
        found = restored(tensor)
        if found is not None:
            return found.is_constant or grid_before(tensor) is not None
        if roundings_of(tensor):
            return True
        source = producer(tensor)
        if source is not None and activation_bounds(source) is not None:
            source = producer(source.inputs[0])
            if source is None or behind(source) is not tensor:
                return False
        if source is None or source not in able or is_graph_output(tensor):
            return False
        rule = able[source]
        follows = rule.role is Role.MOVE or source.op in AVERAGES or source.op == "Concat"
        return (
            follows
            or rule.fixed_range is not None
            or (self.seen is not None and self.seen.get(tensor.name) is not None)
        )

    def _results(self, node: Node, rule: OpRule) -> list[Tensor]:
        """Return the results of an operator that have to be rounded, an activation behind it included."""
        return [tensor for tensor in node.outputs if tensor.name] if rule.role is Role.MOVE else [behind(node)]

    def _is_awaited(self, tensor: Tensor, useful: Mapping[Node, OpRule]) -> bool:
        """Tell whether a tensor that need not be rounded is, or an operator that computes on integers reads it."""
        return bool(roundings_of(tensor)) or any(use.node in useful for use in uses(tensor))

    # ---------------------------------------------------------------------------------------------------- what is idle

    def idle(self) -> Iterator[Patch]:
        """Yield a patch per pair that no operator beside it computes on integers with."""
        alive = self._alive()
        for pair in pairs_of(self.model):
            if self._source(pair) in alive or any(node in alive for node in _readers(pair)):
                continue
            if any(is_graph_output(each.outputs[0]) for each in pair.restores):
                continue

            def apply(rw: Rewriter, pair: Pair = pair) -> None:
                drop_pair(rw, pair.rounding, self.model.opset, saturation="activations")

            yield mended("idle-pair", pair.rounding, "removed: all beside it is float", apply)

    def _alive(self) -> set[Node]:
        """Return what computes on integers, and what moves them there."""
        alive = {node for node in self.model.graph.nodes if self._computes(node)}
        for node in reversed(list(self.model.graph.nodes)):
            rule = self.target.rule(node)
            if rule is None or rule.role is not Role.MOVE or node_label(node) in self.floating:
                continue
            if any(
                each in alive for tensor in node.outputs for pair in roundings_of(tensor) for each in _readers(pair)
            ):
                alive.add(node)
        return alive

    def _computes(self, node: Node) -> bool:
        if node_label(node) in self.floating:
            return False
        if node.op == "Where" and len(node.inputs) == 3:
            return all(restored(each) is not None for each in node.inputs[1:]) and _is_rounded(node.outputs[0])
        rule = self.target.rule(node)
        if rule is None or rule.role not in {Role.WEIGHTED, Role.JOIN}:
            return False
        places = [*rule.data_positions(node), *([] if rule.weight is None else [rule.weight])]
        found = [restored(node.inputs[place]) for place in places]
        fits = all(each is not None and each.number in {"int8", "uint8", ""} and not each.block for each in found)
        if not fits or all(each is None or each.is_constant for each in found):
            return False
        return not rule.needs_output_grid or _is_rounded(behind(node))

    def _source(self, pair: Pair) -> Node | None:
        source = producer(pair.rounding.inputs[0])
        if source is not None and activation_bounds(source) is not None:
            before = producer(source.inputs[0])
            if before is not None and behind(before) is pair.rounding.inputs[0]:
                return before
        return source


def _readers(pair: Pair) -> list[Node]:
    return [use.node for each in pair.restores for use in uses(each.outputs[0])]


def _is_rounded(tensor: Tensor) -> bool:
    return any(is_conversion(use.node, "QuantizeLinear") for use in uses(tensor))
