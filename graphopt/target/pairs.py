"""Which tensors carry a pair of conversions on a target that compiles quantized models itself.

Such a target reads QuantizeLinear and DequantizeLinear as declarations and fuses by itself. Either the inputs of those
operators are declared that are to compute on integers, or every tensor is. Time grows with nodes and edges.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from graphopt.graph import constant_value, is_graph_output, producer, uses
from graphopt.target.operators import activation_bounds, is_overridable
from graphopt.target.placement import Group, Placer
from graphopt.target.rules import Pairs, Role

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from graphopt.analysis.types import Types
    from graphopt.graph import Model, Node, Tensor
    from graphopt.target.rules import OpRule, Target


@dataclass(slots=True)
class PairPlacement:
    """Where pairs go.

    Attributes:
        nodes: Quantized operators with their rules, in graph order, data movement that carries integers included.
        edges: Positions of the inputs of each that read a restored tensor.
        groups: Group of each tensor that lies on a grid; tensors of one group share it.
        refused: Weighted operators that stay float, with the reason.
    """

    nodes: dict[Node, OpRule]
    edges: dict[Node, tuple[int, ...]]
    groups: dict[Tensor, Group]
    refused: dict[Node, str]


def place_pairs(
    model: Model,
    types: Types,
    target: Target,
    *,
    leave: Mapping[Node, str],
    only: Callable[[Node], str | None],
    sizes: Mapping[str, float],
) -> PairPlacement:
    """Choose the tensors of the main graph that carry pairs.

    Args:
        model: The model; it is not edited.
        types: Types and shapes of its tensors.
        target: The rules; its ``pairs`` are not `Pairs.KERNELS`.
        leave: Nodes that must stay float, with the reason.
        only: Returns why a weighted node must stay float, else None.
        sizes: Values per sample of the tensors whose ranges are known.
    """
    placer = _PairPlacer(model, types, target, leave, only, sizes)
    return placer.inputs() if target.pairs is Pairs.INPUTS else placer.everything()


class _PairPlacer(Placer):
    """The state of one placement of pairs."""

    def consider_all(self) -> None:
        """Choose every node that the rules allow."""
        for node in self.model.graph.nodes:
            self.consider(node)

    def refusal(self, node: Node, rule: OpRule) -> str | None:
        """Return why a node stays float, None where it need not, or "" where nobody has to be told."""
        for place in rule.data_positions(node):
            value = constant_value(node.inputs[place]) if place < len(node.inputs) else None
            if value is not None and value.dtype.kind == "f" and not np.isfinite(value).all():
                return ""
        if self._is_table(node, rule):
            return None if all(self.is_float(tensor) for tensor in node.outputs) else ""
        if self._chooses_constants(node, rule):
            known = self.sizes is None or node.outputs[0].name in self.sizes
            return None if known and self.is_float(node.outputs[0]) else ""
        return super().refusal(node, rule)

    def _is_table(self, node: Node, rule: OpRule) -> bool:
        """Tell whether a node only moves entries of a float constant, where every tensor is to be quantized."""
        if self.target.pairs is not Pairs.EVERYTHING or rule.role is not Role.MOVE or is_overridable(self.model, node):
            return False
        value = constant_value(node.inputs[rule.data_positions(node)[0]])
        return value is not None and value.dtype == np.float32

    def _chooses_constants(self, node: Node, rule: OpRule) -> bool:
        """Tell whether a Where picks from float constants, a mask, where every tensor is to be quantized."""
        if self.target.pairs is not Pairs.EVERYTHING or node.op != "Where" or is_overridable(self.model, node):
            return False
        values = [constant_value(node.inputs[place]) for place in rule.data_positions(node)]
        return all(value is not None and value.dtype == np.float32 for value in values)

    # --------------------------------------------------------------------------------------------- inputs alone

    def inputs(self) -> PairPlacement:
        """Return pairs on the inputs of what is to compute on integers."""
        self.consider_all()
        self._drop_idle_joins()
        edges: dict[Node, tuple[int, ...]] = {}
        depth = self._depths()
        for node, rule in list(self.chosen.items()):
            if rule.role in {Role.MOVE, Role.ABSORBED}:
                continue
            places = rule.data_positions(node)
            if rule.skip_only:
                places = self._skip(node, depth)
            edges[node] = tuple(place for place in places if constant_value(node.inputs[place]) is None)
            if not edges[node]:
                del edges[node], self.chosen[node]
        self._carry_back(edges)
        groups = self._shared(edges)
        nodes = {node: self.chosen[node] for node in self.model.graph.nodes if node in edges}
        return PairPlacement(nodes, edges, groups, self.refused)

    def _drop_idle_joins(self) -> None:
        """Drop operators without weights that no quantized operator stands beside."""
        changed = True
        while changed:
            joins = [node for node, rule in self.chosen.items() if rule.role is Role.JOIN]
            idle = [node for node in joins if not self._joins(node)]
            for node in idle:
                del self.chosen[node]
            changed = bool(idle)

    def _joins(self, node: Node) -> bool:
        rule = self.chosen[node]
        tensors = [node.inputs[place] for place in rule.data_positions(node)]
        if rule.skip_only:
            made = [any(self._ends_here(tensor) for tensor in tensors)]
        else:
            made = [self._comes_quantized(tensor) for tensor in tensors]
        return all(made) and any(self._goes_quantized(tensor) for tensor in node.outputs)

    def _comes_quantized(self, tensor: Tensor) -> bool:
        """Tell whether a quantized operator makes a tensor, data movement and activations aside."""
        source = producer(tensor)
        while source is not None and self._passes(source):
            source = producer(source.inputs[0]) if source.inputs else None
        return source is not None and source in self.chosen

    def _goes_quantized(self, tensor: Tensor) -> bool:
        """Tell whether a quantized operator reads a tensor, data movement and activations aside."""
        waiting, seen = [tensor], set()
        while waiting:
            for use in uses(waiting.pop()):
                if use.node in seen:
                    continue
                seen.add(use.node)
                if self._passes(use.node):
                    waiting += use.node.outputs
                elif use.node in self.chosen:
                    return True
        return False

    def _passes(self, node: Node) -> bool:
        """Tell whether a node moves data, or is an activation: integers go through it."""
        if node in self.chosen:
            return self.chosen[node].role in {Role.MOVE, Role.ABSORBED}
        return node.op in self.target.transparent

    def _depths(self) -> dict[Tensor, int]:
        """Return how many weighted operators lie before each tensor, along the longest way."""
        depth: dict[Tensor, int] = {}
        for node in self.model.graph.nodes:
            before = max((depth.get(tensor, 0) for tensor in node.inputs), default=0)
            own = node in self.chosen and self.chosen[node].role is Role.WEIGHTED
            depth.update(dict.fromkeys(node.outputs, before + own))
        return depth

    def _skip(self, node: Node, depth: Mapping[Tensor, int]) -> tuple[int, ...]:
        """Return the position of the skip branch of a residual Add; none where no convolution ends in it."""
        direct = [place for place, tensor in enumerate(node.inputs) if self._ends_here(tensor)]
        if not direct or node.inputs[0] is node.inputs[1]:
            return ()
        main = max(direct, key=lambda place: (depth.get(node.inputs[place], 0), -place))
        return (1 - main,)

    def _ends_here(self, tensor: Tensor) -> bool:
        source = producer(tensor)
        weighted = source is not None and source in self.chosen and self.chosen[source].role is Role.WEIGHTED
        return weighted and len(uses(tensor)) == 1 and not is_graph_output(tensor)

    def _carry_back(self, edges: dict[Node, tuple[int, ...]]) -> None:
        """Let pairs stand before the data movement that their tensors come from: one pair then serves all readers."""
        for node in reversed(list(self.model.graph.nodes)):
            rule = self.chosen.get(node)
            if rule is None or rule.role is not Role.MOVE:
                continue
            readers = [use for tensor in node.outputs for use in uses(tensor)]
            known = all(use.index in edges.get(use.node, ()) for use in readers)
            if rule.one_grid and not all(self._comes_quantized(tensor) for tensor in node.inputs):
                continue  # one pair behind it is less than one before each of its inputs
            if readers and known and not any(is_graph_output(tensor) for tensor in node.outputs):
                edges[node] = rule.data_positions(node)

    def _shared(self, edges: Mapping[Node, tuple[int, ...]]) -> dict[Tensor, Group]:
        groups: dict[Tensor, Group] = {}
        for node in self.model.graph.nodes:
            for place in edges.get(node, ()):
                self.group_of(groups, node.inputs[place])
            if node in edges and self.chosen[node].role is Role.MOVE:
                first = node.inputs[edges[node][0]]
                others = [node.inputs[place] for place in edges[node][1:]] + list(node.outputs)
                for tensor in others:
                    self.merge(groups, first, tensor)
        return groups

    # ----------------------------------------------------------------------------------------------- everything

    def everything(self) -> PairPlacement:
        """Return pairs on every tensor."""
        self.consider_all()
        groups: dict[Tensor, Group] = {}
        edges: dict[Node, tuple[int, ...]] = {}
        for node, rule in self.chosen.items():
            places = [place for place in rule.data_positions(node) if place < len(node.inputs)]
            edges[node] = tuple(place for place in places if self._is_activation(node.inputs[place]))
            for tensor in [*(node.inputs[place] for place in edges[node]), *node.outputs]:
                self.group_of(groups, tensor)
            self._constrain(groups, node, rule, edges[node])
        for node in self.model.graph.nodes:
            fixed = self.target.rules.get(node.op)
            if node not in self.chosen and fixed is not None and node.outputs[0] in groups:
                self._fix(groups[node.outputs[0]], fixed)
        return PairPlacement(dict(self.chosen), edges, groups, self.refused)

    def _is_activation(self, tensor: Tensor) -> bool:
        return constant_value(tensor) is None and self.is_float(tensor)

    def _constrain(self, groups: dict[Tensor, Group], node: Node, rule: OpRule, places: tuple[int, ...]) -> None:
        """Let tensors share a grid where the operator between them only moves data, or is absorbed by the grid."""
        group = self.group_of(groups, node.outputs[0])
        self._fix(group, rule)
        if node.op == "Softmax":
            self.group_of(groups, node.inputs[0]).logits = True
        if rule.role is Role.MOVE and not places:
            table = np.asarray(constant_value(node.inputs[rule.data_positions(node)[0]]), np.float32)
            group.fixed = (float(table.min(initial=0.0)), float(table.max(initial=0.0)))
        elif rule.role is Role.MOVE:
            for tensor in [*(node.inputs[place] for place in places[1:]), *node.outputs]:
                self.merge(groups, node.inputs[places[0]], tensor)
        elif rule.role is Role.ABSORBED:
            group.bounds = activation_bounds(node)
            source = producer(node.inputs[0])
            computed = source is not None and source in self.chosen and not self._passes(source)
            alone = len(uses(node.inputs[0])) == 1 and not is_graph_output(node.inputs[0])
            if computed and alone and source is not None and self.chosen[source].fixed_range is None:
                self.merge(groups, node.outputs[0], node.inputs[0])

    @staticmethod
    def _fix(group: Group, rule: OpRule) -> None:
        if rule.fixed_range is not None:
            group.fixed = rule.fixed_range
            group.exact = dict(rule.exact)
