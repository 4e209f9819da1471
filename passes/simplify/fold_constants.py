"""Replace what can be computed in advance by its value."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from graphopt.analysis.shape_values import ShapeValues
from graphopt.analysis.types import Types
from graphopt.graph import Constant, Model, Node, constant_value, dtypes, is_graph_output, producer
from graphopt.passes.simplify.folding.evaluation import evaluate
from graphopt.passes.simplify.folding.placement import Placement, needs_node
from graphopt.passes.simplify.folding.plan import Candidate, Plan, is_sink, value_from_shapes
from graphopt.passes.simplify.purity import is_constant_node
from graphopt.rewrite.driver import EVERY, Batch, RulePass
from graphopt.rewrite.patch import Patch, Skip
from graphopt.verify.contract import Contract

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator, Sequence

    from graphopt.analysis.manager import Facts
    from graphopt.graph import Graph, Rewriter, Tensor

Array = np.ndarray[Any, Any]

GROWTH = "graphopt.folding_growth_bytes"
"""Metadata of a model that folding has enlarged as far as it may, so that a second run enlarges it no further."""

_CHUNK_BYTES = 256 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class FoldConstants(RulePass):
    """Compute in advance what depends on constants or on known shapes alone.

    Matches:   Nodes of the ONNX domain on an allow-list of pure operators, in every scope, whose inputs are all
               constant; and nodes whose integer value follows from known shapes (Shape, Size and what is computed from
               them). An initializer that is a graph input too can be overridden and is not constant.
    Produces:  The value as an initializer of the same name, element type and shape, or as a Constant node where an
               initializer cannot stand (graph outputs, functions, IR version 3). Constant nodes become initializers.
               All values come from ONNX Runtime with its optimizations off, many nodes in one session; onnx.reference
               computes what it has no kernel for.
    Requires:  The size of a result is known before it is computed. It is at most ``limit_bytes``, or the stored bytes
               it frees (a step on the way to another value at most 16 times the limit); all growth together is at most
               ``limit_bytes``, which the model remembers in its metadata once it is used up.
               Random and stateful operators, control flow, custom domains, strings, QuantizeLinear
               and DequantizeLinear are never evaluated.
    Preserves: Every output bitwise; names, types and shapes of all tensors that remain.
    Source:    The growth rule weighs results against the inputs that folding frees; see also Muchnick, Advanced
               Compiler Design and Implementation, 1997, section 12.1.

    Options:
        limit_bytes: Largest result that may be bigger than what it replaces, and most that the model may grow.
    """

    name: ClassVar[str] = "fold-constants"
    contract: ClassVar[Contract] = Contract.EXACT
    requires: ClassVar[tuple[type[Any], ...]] = (Types, ShapeValues)

    limit_bytes: int = 1 << 16

    def rules(self, model: Model, facts: Facts) -> Sequence[Batch]:
        """Return the batch that gathers what can be computed and computes it in one go."""
        folding = _Folding(model, facts.get(Types), facts.get(ShapeValues), self.limit_bytes)
        return [Batch((EVERY,), folding.wants, folding.fold, domain=EVERY, first=True)]


class _Folding:
    """Folding in one run of the pass."""

    def __init__(self, model: Model, types: Types, values: ShapeValues, limit: int) -> None:
        self.model = model
        self.types = types
        self.values = values
        self.limit = limit
        self.placement = Placement(model)
        self.grown = float(_used_up(model))

    def wants(self, node: Node) -> bool:
        """Whether a node is a Constant node to lift, or all of its inputs are constant, or shapes tell its value."""
        if node.op == "Constant" and is_constant_node(node):
            return self._is_liftable(node)
        if is_sink(node):
            return False
        for tensor in node.inputs:
            if not isinstance(tensor, Constant) and tensor.name:
                made = producer(tensor)
                if made is None or made.op != "Constant" or not is_constant_node(made):
                    break
        else:
            return True
        if len(node.outputs) != 1:
            return False
        return value_from_shapes(node.outputs[0], self.types, self.values) is not None

    def fold(self, nodes: Sequence[Node]) -> Generator[Patch | Skip, frozenset[Node], None]:
        """Yield one patch for every folded node whose value is used by a node that stays.

        Args:
            nodes: What `wants` chose, in topological order.
        """
        yield from self._lift([node for node in nodes if is_constant_node(node)])
        plan = Plan(self.model, self.types, self.values, self.limit, self.grown)
        plan.decide(node for node in nodes if node.graph is not None)
        changed: dict[Node, None] = {}
        for patch in _Patches(plan, self.placement).all():
            changed.update(dict.fromkeys((yield patch)))
        self.grown = plan.grown
        self.types.refine(changed)
        for node, reason in plan.skips.items():
            if node.graph is not None:
                yield Skip(node, reason)
        if plan.exhausted and _used_up(self.model) < self.grown:
            yield self._remember()

    def _is_liftable(self, node: Node) -> bool:
        graph = node.graph
        assert graph is not None
        if needs_node(graph, self.model) or "sparse_value" in node.attrs or is_graph_output(node.outputs[0]):
            return False
        value = constant_value(node.outputs[0])
        return value is not None and value.dtype != dtypes.OBJECT

    def _lift(self, nodes: list[Node]) -> Iterator[Patch]:
        """Yield a patch for each graph that makes initializers of its Constant nodes."""
        by_graph: dict[Graph | None, list[Node]] = {}
        for node in nodes:
            by_graph.setdefault(node.graph, []).append(node)
        for graph, found in by_graph.items():

            def apply(rewriter: Rewriter, found: list[Node] = found) -> None:
                for node in found:
                    value = constant_value(node.outputs[0])
                    assert value is not None
                    self.placement.put(rewriter, node, node.outputs[0], value)
                rewriter.erase(found)

            assert graph is not None
            yield Patch(
                f"make initializers of {len(found)} Constant nodes of graph '{graph.name}'", tuple(found), apply
            )

    def _remember(self) -> Patch:
        grown = int(self.grown)

        def apply(_: Rewriter) -> None:
            self.model.metadata[GROWTH] = str(grown)

        return Patch(f"note that folding has enlarged the model by {grown} bytes", (), apply)


def _used_up(model: Model) -> int:
    """Return by how many bytes earlier runs enlarged the model, where they used up what they may."""
    stated = model.metadata.get(GROWTH, "")
    return int(stated) if stated.isdecimal() else 0


@dataclass(slots=True)
class _Patches:
    """The patches of a plan."""

    plan: Plan
    placement: Placement

    def all(self) -> Iterator[Patch]:
        """Yield a patch for each folded node with a needed value, in topological order."""
        remaining = {
            tensor: sum(1 for reader in tensor.outputs if reader in self.plan.folded)
            for node in self.plan.folded
            for tensor in (*node.inputs, *node.outputs)
            if tensor.name and tensor.inputs
        }
        for group in self._groups():
            values = self._computed(group)
            for candidate in group:
                node = candidate.node
                wanted = self.plan.needed(node)
                if all(tensor in values for tensor in wanted):
                    read = any(remaining[tensor] for tensor in node.outputs if tensor.name)
                    dead = [] if read else self._dead_with(node, remaining)  # else it goes with its last reader
                    yield self._patch(node, {tensor: values[tensor] for tensor in wanted}, dead)

    def _groups(self) -> Iterator[list[Candidate]]:
        """Yield the nodes with needed values, divided by opset and into portions that fit memory."""
        by_opset: dict[int, list[Candidate]] = {}
        for candidate in self.plan.folded.values():
            if self.plan.is_frontier(candidate.node):
                by_opset.setdefault(_opset(candidate.node), []).append(candidate)
        for candidates in by_opset.values():
            group: list[Candidate] = []
            size = 0
            for candidate in candidates:
                if group and size + candidate.size > _CHUNK_BYTES:
                    yield group
                    group, size = [], 0
                group.append(candidate)
                size += candidate.size
            yield group

    def _computed(self, group: list[Candidate]) -> dict[Tensor, Array]:
        """Return the needed values of the nodes; those that cannot be computed are skipped with the reason."""
        values = {c.node.outputs[0]: c.given for c in group if c.given is not None}
        wanted = [tensor for c in group if c.given is None for tensor in self.plan.needed(c.node)]
        if not wanted:
            return values
        needed, given = self._behind(wanted)
        elements = {tensor: self.plan.types.dtype(tensor) for node in needed for tensor in node.outputs if tensor.name}
        result = evaluate(
            needed, wanted, elements, given, opset=_opset(group[0].node), ir_version=self.plan.model.ir_version
        )
        self.plan.skips |= result.failures
        return values | result.values

    def _behind(self, wanted: list[Tensor]) -> tuple[list[Node], dict[Tensor, Array]]:
        """Return the nodes that compute the tensors, in topological order, and the values known from shapes."""
        given: dict[Tensor, Array] = {}
        found: dict[Node, int] = {}
        stack = list(wanted)
        while stack:
            node = producer(stack.pop())
            if node is None or node in found or node not in self.plan.folded:
                continue
            candidate = self.plan.folded[node]
            if candidate.given is not None:
                given[node.outputs[0]] = candidate.given
                continue
            found[node] = candidate.index
            stack.extend(tensor for tensor in node.inputs if tensor.name)
        return sorted(found, key=found.__getitem__), given

    def _dead_with(self, node: Node, remaining: dict[Tensor, int]) -> list[Node]:
        """Return the node and the folded and Constant nodes before it that nobody reads once it is gone."""
        dead, stack = [], [node]
        while stack:
            gone = stack.pop()
            dead.append(gone)
            for tensor in gone.inputs:
                before = producer(tensor) if tensor in remaining else None  # a patch may have made it
                if before is None or not (before in self.plan.folded or is_constant_node(before)):
                    continue
                remaining[tensor] -= 1
                if not any(remaining[t] for t in before.outputs if t.name) and not self.plan.needed(before):
                    stack.append(before)
        return dead

    def _patch(self, node: Node, values: dict[Tensor, Array], dead: list[Node]) -> Patch:
        def apply(rewriter: Rewriter) -> None:
            for tensor, value in values.items():
                self.placement.put(rewriter, node, tensor, value)
            rewriter.erase(dead)

        names = ", ".join(f"'{tensor.name}'" for tensor in values)
        behind = f" and {len(dead) - 1} nodes before it" if len(dead) > 1 else ""
        return Patch(f"fold {node.op}{behind} into the constant {names}", tuple(dead) or (node,), apply)


def _opset(node: Node) -> int:
    graph = node.graph
    assert graph is not None
    return graph.opset
