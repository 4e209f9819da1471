"""Remove what contributes to no output."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import onnx.defs

from graphopt.analysis.shape_values import ShapeValues
from graphopt.analysis.types import Types
from graphopt.graph import Constant, Function, Graph, Model, Node, is_graph_output, producer, subgraphs, walk_graphs
from graphopt.graph.order import tensors_read
from graphopt.passes.simplify.purity import DEFAULT_DOMAINS
from graphopt.rewrite.driver import EVERY, Batch, Rule, RulePass
from graphopt.rewrite.patch import Patch
from graphopt.verify.contract import Contract

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from graphopt.analysis.manager import Facts
    from graphopt.graph import Rewriter, Tensor
    from graphopt.rewrite.pass_ import Steps


@dataclass(frozen=True, slots=True, kw_only=True)
class EliminateDead(RulePass):
    """Remove nodes, initializers and functions that contribute to no output of the model.

    Matches:   Nodes of every scope none of whose outputs reaches an output of the model or of a body that runs;
               initializers nobody reads; functions nobody calls.
    Produces:  The model without them.
    Requires:  Inputs and outputs of the model stay, read or not. With ``keep_unknown`` nodes of domains that onnx does
               not define stay too, since they may have side effects.
    Preserves: Every output bitwise; all names, types and shapes that remain.
    Source:    Dead-code elimination; Muchnick, Advanced Compiler Design and Implementation, 1997, section 18.10.

    Options:
        keep_unknown: Keep nodes of domains that onnx does not define although nobody reads them.
    """

    name: ClassVar[str] = "eliminate-dead"
    contract: ClassVar[Contract] = Contract.EXACT
    preserves: ClassVar[tuple[type[Any], ...]] = (Types, ShapeValues)

    keep_unknown: bool = False

    def rules(self, model: Model, facts: Facts) -> Sequence[Rule | Batch]:
        """Return a rule for nodes, and what sweeps the initializers and functions nobody uses."""

        def is_kept(node: Node) -> bool:
            return self.keep_unknown and _is_unknown(node, model)

        def dead(node: Node) -> Patch | None:
            for tensor in node.outputs:  # a loop: this is asked at every visit
                if tensor.outputs or tensor.roles:
                    return None
            return _dead_node(node, is_kept)

        leftovers = _Leftovers(model)
        return [
            Rule((EVERY,), dead, depth=0, domain=EVERY, below=1),
            Batch((EVERY,), leftovers.wants, leftovers.sweep, domain=EVERY),
        ]


def _dead_node(node: Node, is_kept: Callable[[Node], bool]) -> Patch | None:
    """Return the removal of a node, which nobody reads, with all that was computed for it alone."""
    if _is_held(node, is_kept):
        return None
    dead = {node: None}
    stack = [node]
    while stack:
        for tensor in tensors_read(stack.pop()):
            before = producer(tensor)
            if before is None or before in dead or _is_held(before, is_kept):
                continue
            if all(_is_read_only_by(made, dead) for made in before.outputs if made.name):
                dead[before] = None
                stack.append(before)
    gone = list(dead)

    def apply(rewriter: Rewriter) -> None:
        rewriter.erase(gone)

    behind = f" and {len(gone) - 1} nodes before it" if len(gone) > 1 else ""
    return Patch(f"nothing depends on {node.op}{behind}", tuple(gone), apply)


def _is_read_only_by(tensor: Tensor, nodes: Mapping[Node, None]) -> bool:
    """Whether nothing but these nodes, and what is in their bodies, reads a tensor."""
    return not is_graph_output(tensor) and all(_is_within(reader, nodes) for reader in tensor.outputs)


def _is_within(node: Node | None, nodes: Mapping[Node, None]) -> bool:
    while node is not None:
        if node in nodes:
            return True
        node = None if node.graph is None else node.graph.parent_node
    return False


def _is_held(node: Node, is_kept: Callable[[Node], bool]) -> bool:
    """Whether a node, or one in its bodies, is kept although nobody reads it."""
    if is_kept(node):
        return True
    return any(is_kept(inner) for _, body in subgraphs(node) for _, inner in walk_graphs([body]))


def _is_unknown(node: Node, model: Model) -> bool:
    if node.domain in DEFAULT_DOMAINS or any(f.domain == node.domain and f.name == node.op for f in model.functions):
        return False
    return not onnx.defs.has(node.op, node.domain)


class _Leftovers:
    """Initializers and functions nobody uses; initializers that lose their last reader later go with it."""

    def __init__(self, model: Model) -> None:
        self._model = model
        self._begun = False

    def wants(self, _: Node) -> bool:
        """Whether anything may be left over."""
        return not self._begun or bool(self._model.functions)

    def sweep(self, _: Sequence[Node]) -> Steps:
        """Yield the patches that remove them."""
        self._begun = True
        yield from _unread_initializers(self._model)
        yield from _uncalled_functions(self._model)


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
