"""Remove what contributes to no output."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import onnx.defs

from graphopt.analysis.shape_values import ShapeValues
from graphopt.analysis.types import Types
from graphopt.graph import Constant, Function, Graph, Model, Node, is_graph_output, subgraphs, walk_graphs
from graphopt.passes.simplify.purity import DEFAULT_DOMAINS
from graphopt.rewrite.pass_ import Pass
from graphopt.rewrite.patch import Patch, Skip
from graphopt.verify.contract import Contract

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator

    from graphopt.analysis.manager import Facts
    from graphopt.graph import Rewriter, Tensor

_KEPT_OUTPUTS = ("BatchNormalization",)  # before opset 14 the number of outputs chooses the mode


@dataclass(frozen=True, slots=True, kw_only=True)
class EliminateDead(Pass):
    """Remove nodes, initializers, functions and optional outputs that contribute to no output of the model.

    Matches:   Nodes of every scope none of whose outputs reaches an output of the model or of a body that runs;
               initializers nobody reads; functions nobody calls; optional outputs of nodes that nobody reads, such as
               the mask of Dropout or the indices of MaxPool.
    Produces:  The model without them.
    Requires:  Inputs and outputs of the model stay, read or not. With ``keep_unknown`` nodes of domains that onnx does
               not define stay too, since they may have side effects. The outputs of BatchNormalization stay, because
               their number chooses its mode in old opsets.
    Preserves: Every output bitwise; all names, types and shapes that remain.
    Source:    Dead-code elimination; Muchnick, Advanced Compiler Design and Implementation, 1997, section 18.10.

    Options:
        keep_unknown: Keep nodes of domains that onnx does not define although nobody reads them.
    """

    name: ClassVar[str] = "eliminate-dead"
    contract: ClassVar[Contract] = Contract.EXACT
    preserves: ClassVar[tuple[type[Any], ...]] = (Types, ShapeValues)

    keep_unknown: bool = False

    def run(self, model: Model, facts: Facts) -> Generator[Patch | Skip, frozenset[Node], None]:
        """Yield one patch per graph with dead nodes, then one each for outputs, initializers and functions."""
        live = self._live(model)
        for graph in reversed(list(model.graphs())):  # inner first: a dead inner node may be what reads an outer one
            dead = [node for node in graph.nodes if node not in live]
            holder = graph.parent_node
            if dead and (holder is None or holder in live):
                yield _removal(graph, dead)
        yield from _unread_outputs(model)
        yield from _unread_initializers(model)
        yield from _uncalled_functions(model)

    def _live(self, model: Model) -> set[Node]:
        """Return the nodes that an output of the model, of a function, or a kept node depends on."""
        live: set[Node] = set()
        stack: list[Node] = [node for root in model.roots() for tensor in root.outputs for node in tensor.inputs]
        if self.keep_unknown:
            stack += [node for _, node in model.walk() if _is_unknown(node, model)]
        while stack:
            node = stack.pop()
            if node in live:
                continue
            live.add(node)
            for tensor in node.inputs:
                stack.extend(tensor.inputs)
            for _, body in subgraphs(node):
                for tensor in body.outputs:
                    stack.extend(tensor.inputs)
            holder = None if node.graph is None else node.graph.parent_node
            if holder is not None:  # a kept node inside a body keeps the body
                stack.append(holder)
        return live


def _is_unknown(node: Node, model: Model) -> bool:
    if node.domain in DEFAULT_DOMAINS or any(f.domain == node.domain and f.name == node.op for f in model.functions):
        return False
    return not onnx.defs.has(node.op, node.domain)


def _removal(graph: Graph, dead: list[Node]) -> Patch:
    def apply(rewriter: Rewriter) -> None:
        rewriter.erase(dead)

    return Patch(f"remove {len(dead)} nodes of graph '{graph.name}' that nothing depends on", tuple(dead), apply)


def _unread_outputs(model: Model) -> Iterator[Patch]:
    found: list[tuple[Node, list[int]]] = []
    for graph, node in model.walk():
        unread = [index for index, tensor in enumerate(node.outputs) if tensor.name and not _is_read(tensor)]
        if unread and len(unread) < len(node.outputs) and node.op not in _KEPT_OUTPUTS:
            optional = [index for index in unread if _is_optional(node, index, graph)]
            if optional:
                found.append((node, optional))
    if not found:
        return

    def apply(rewriter: Rewriter) -> None:
        for node, indices in found:
            for index in indices:
                rewriter.drop_output(node, index)

    reason = f"drop {sum(len(indices) for _, indices in found)} optional outputs that nobody reads"
    yield Patch(reason, tuple(node for node, _ in found), apply)


def _is_optional(node: Node, index: int, graph: Graph) -> bool:
    if node.domain not in DEFAULT_DOMAINS or not onnx.defs.has(node.op):
        return False
    try:
        formal = onnx.defs.get_schema(
            node.op, max_inclusive_version=max(0, min(graph.opset, onnx.defs.onnx_opset_version()))
        ).outputs
    except onnx.defs.SchemaError:
        return False
    return index < len(formal) and formal[index].option == onnx.defs.OpSchema.FormalParameterOption.Optional


def _is_read(tensor: Tensor) -> bool:
    return bool(tensor.outputs) or is_graph_output(tensor)


def _unread_initializers(model: Model) -> Iterator[Patch]:
    for graph in list(model.graphs()):
        unread = [c for c in graph.initializers if not (c.outputs or c.roles or graph.is_overridable(c))]
        if not unread:
            continue

        def apply(rewriter: Rewriter, unread: list[Constant] = unread) -> None:
            for constant in unread:
                rewriter.drop_initializer(constant)

        size = sum(constant.nbytes for constant in unread)
        reason = f"remove {len(unread)} initializers of graph '{graph.name}' that nobody reads, {size} bytes"
        yield Patch(reason, (), apply)


def _uncalled_functions(model: Model) -> Iterator[Patch]:
    """Yield one patch that removes the functions no live graph calls, directly or through other functions."""
    by_call: dict[tuple[str, str], list[Function]] = {}
    for function in model.functions:
        by_call.setdefault((function.domain, function.name), []).append(function)
    called: set[Function] = set()
    stack: list[Graph] = [model.graph]
    while stack:
        for _, node in walk_graphs([stack.pop()]):
            for function in by_call.get((node.domain or "", node.op), ()):  # every overload of the name
                if function not in called:
                    called.add(function)
                    stack.append(function)
    uncalled = [function for function in model.functions if function not in called]
    if not uncalled:
        return

    def apply(rewriter: Rewriter) -> None:
        for function in uncalled:
            rewriter.drop_function(function)

    names = ", ".join(f"{function.domain}::{function.name}" for function in uncalled)
    yield Patch(f"remove the functions that nobody calls: {names}", (), apply)
