"""Make one If of two with the same condition."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from graphopt.analysis.bodies import Bodies
from graphopt.analysis.types import Types
from graphopt.graph import Graph, Node, Tensor, captures, enclosing, producer, uses
from graphopt.graph.moving import transfer_initializer, transfer_nodes
from graphopt.passes.simplify.control.bodies import branches
from graphopt.rewrite.driver import Rule, RulePass
from graphopt.rewrite.patch import Patch
from graphopt.verify.contract import Contract

if TYPE_CHECKING:
    from collections.abc import Sequence

    from graphopt.analysis.manager import Facts
    from graphopt.graph import Model, Rewriter

_MOST_READERS = 64
_MOST_CAPTURES = 4096


@dataclass(frozen=True, slots=True, kw_only=True)
class MergeConditionals(RulePass):
    """Make one If of two with the same condition.

    Matches:   Two If in one graph that read the same condition, where what the branches of the second read is there
               before the first, or is an output of the first.
    Produces:  The first If with the nodes and the outputs of the second in its branches; what the second read of the
               first it reads inside. Saves a node and an entry into a subgraph, and brings what belongs together into
               one branch.
    Requires:  Everything that the second reads stands before the first in the order of the nodes.
    Preserves: Every output bitwise; public names, types and shapes; metadata of the moved nodes.
    Source:    ONNX operator If; jump threading, Muchnick, Advanced Compiler Design and Implementation, 1997, 18.6.
    """

    name: ClassVar[str] = "merge-conditionals"
    contract: ClassVar[Contract] = Contract.EXACT
    requires: ClassVar[tuple[type[Any], ...]] = (Types,)

    def rules(self, model: Model, facts: Facts) -> Sequence[Rule]:
        """Return the rule for If; none for a model without bodies."""
        if not facts.get(Bodies):
            return []
        types = facts.get(Types)
        return [Rule(("If",), lambda node: _merged(node, types), depth=2)]


def _merged(node: Node, types: Types) -> Patch | None:
    """Return the patch that takes an If into an earlier one."""
    graph, condition = node.graph, node.inputs[0]
    if graph is None or branches(node) is None or not 1 < len(condition.outputs) <= _MOST_READERS:
        return None
    earlier = [
        other
        for other in dict.fromkeys(condition.outputs)
        if other is not node and other.op == "If" and other.graph is graph and branches(other) is not None
    ]
    earlier = [other for other in earlier if graph.nodes.label(other) < graph.nodes.label(node)]
    for first in sorted(earlier, key=graph.nodes.label):
        if _is_ready(node, first, graph):
            return _merger(first, node, types)
    return None


def _is_ready(node: Node, first: Node, graph: Graph) -> bool:
    """Whether all that the branches of an If read stands before an earlier one, or is an output of that."""
    pair = branches(node)
    assert pair is not None
    limit = graph.nodes.label(first)
    for body in pair:
        read = captures(body)
        if len(read) > _MOST_CAPTURES:
            return False
        for tensor in read:
            made = producer(tensor)
            if made is not None and made.graph is graph and made is not first and graph.nodes.label(made) >= limit:
                return False
    return True


def _merger(first: Node, second: Node, types: Types) -> Patch:
    def apply(rewriter: Rewriter) -> None:
        into, out_of = branches(first), branches(second)
        assert into is not None
        assert out_of is not None
        inner: list[list[Tensor]] = []
        for target, source in zip(into, out_of, strict=True):
            given = dict(zip(first.outputs, target.outputs, strict=True))
            results = list(source.outputs)
            source.outputs.clear()
            for constant in list(source.initializers):
                if constant.outputs or constant in results:
                    transfer_initializer(rewriter, constant, target)
            transfer_nodes(rewriter, list(source.nodes), target)
            for tensor in [tensor for tensor in captures(target) if tensor in given]:
                readers = [use for use in uses(tensor) if target in enclosing(use.node.graph)]
                for use in readers:
                    rewriter.insert_on_edge(use, given[tensor])
                for refined in types.refine([use.node for use in readers]):
                    rewriter.mark(refined)
            inner.append(results)
        outputs = list(second.outputs)
        second.outputs.clear()
        for output, then, otherwise in zip(outputs, *inner, strict=True):
            first.outputs.append(output)
            into[0].outputs.append(then)
            into[1].outputs.append(otherwise)
        rewriter.erase(second)
        rewriter.mark(first)

    return Patch(f"take If '{second.name}' into '{first.name}', which has the same condition", (first, second), apply)
