"""Replace an If by the branch that is taken, or by what both branches give."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from graphopt.analysis.bodies import Bodies
from graphopt.analysis.shape_values import ShapeValues
from graphopt.analysis.types import Types
from graphopt.graph import Constant, Graph, Node, Variable, enclosing, is_graph_output, producer, uses
from graphopt.graph.moving import move_initializer, move_nodes
from graphopt.passes.simplify.control.bodies import (
    behind_identities,
    body_batch,
    branches,
    drop_results,
    is_around,
    truth,
)
from graphopt.passes.simplify.control.equivalence import same_bodies, same_constants
from graphopt.passes.simplify.purity import is_op, refers_to_function
from graphopt.rewrite.driver import Batch, Rule, RulePass
from graphopt.rewrite.patch import Patch, Skip
from graphopt.verify.contract import Contract

if TYPE_CHECKING:
    from collections.abc import Sequence

    from graphopt.analysis.manager import Facts
    from graphopt.graph import Model, Rewriter, Tensor
    from graphopt.rewrite.pass_ import Steps


@dataclass(frozen=True, slots=True, kw_only=True)
class InlineIf(RulePass):
    """Put the branch that is taken in place of an If.

    Matches:   If whose condition is constant, follows from known shapes, or is the condition of an If around it; whose
               branches compute the same; outputs of an If for which both branches give the same tensor of an outer
               graph; Not that only conditions of If read.
    Produces:  The nodes and initializers of the branch in the graph around it, under their names where those are
               unique; the readers of the If read what the branch gave. If outputs that are one outer tensor either way
               are that tensor; a negated condition becomes exchanged branches. At least one node less each time, and
               no subgraph has to be entered.
    Requires:  The condition holds one element. A branch output that gives a public output its name where it cannot
               take it over (it is an input, an initializer or captured) does so through an Identity.
    Preserves: Every output bitwise; names, types and shapes of public outputs; metadata of the moved nodes.
    Source:    ONNX operator If; branch folding, Muchnick, Advanced Compiler Design and Implementation, 1997, 18.6.
    """

    name: ClassVar[str] = "inline-if"
    contract: ClassVar[Contract] = Contract.EXACT
    requires: ClassVar[tuple[type[Any], ...]] = (Types, ShapeValues)

    def rules(self, model: Model, facts: Facts) -> Sequence[Rule | Batch]:
        """Return one rule for conditions and one that looks at the branches."""
        if not facts.get(Bodies):
            return []
        types, values = facts.get(Types), facts.get(ShapeValues)
        return [
            Rule(("If",), lambda node: _known_condition(node, types, values)),
            Rule(("Not",), _negated_conditions, below=1),
            body_batch(lambda node: _by_branches(node, types), "If"),
        ]


# ---------------------------------------------------------------------------------------------------- known conditions


def _known_condition(node: Node, types: Types, values: ShapeValues) -> Patch | Skip | None:
    pair = branches(node)
    if pair is None:
        return None
    taken = truth(node.inputs[0], values)
    if taken is None:
        taken = _truth_around(node)
    if taken is None:
        return None
    return inlining(node, pair[0] if taken else pair[1], f"its condition is always {str(taken).lower()}", types)


def _truth_around(node: Node) -> bool | None:
    """Return the condition of an If inside a branch of an If with the same condition."""
    condition = node.inputs[0]
    for graph in enclosing(node.graph):
        holder = graph.parent_node
        if is_op(holder, "If") and holder is not None and holder.inputs[0] is condition:
            return holder.attrs.get("then_branch") is graph
    return None


def inlining(node: Node, branch: Graph, why: str, types: Types) -> Patch | Skip:
    """Return the patch that puts a branch in place of an If.

    Args:
        node: The If.
        branch: The branch.
        why: Why it is the one, for people.
        types: Types; what depends on the outputs is inferred again.
    """
    for output, result in zip(node.outputs, branch.outputs, strict=True):
        reason = clash(output, result, branch)
        if reason:
            return Skip(node, reason)

    def apply(rewriter: Rewriter) -> None:
        results = list(branch.outputs)
        branch.outputs.clear()
        for constant in list(branch.initializers):
            if constant.outputs or constant in results:
                move_initializer(rewriter, constant, node)
        move_nodes(rewriter, list(branch.nodes), node)
        for output, result in zip(list(node.outputs), results, strict=True):
            if output.name:
                replace_result(rewriter, output, result, types)
        rewriter.erase(node)

    return Patch(f"inline the branch '{branch.name}' of If '{node.name}': {why}", (node,), apply)


def replace_result(rewriter: Rewriter, output: Tensor, result: Tensor, types: Types) -> None:
    """Let everybody read the result of a body instead of the output of its node, and know what is known of it."""
    readers = list(dict.fromkeys(output.outputs))
    if is_graph_output(output) and isinstance(result, Variable) and not result.roles and producer(result) is not None:
        rewriter.set_type(result, output.dtype, output.shape)  # what it declared may be less, or wrong
    rewriter.replace_tensor(output, result)
    for node in types.refine(readers):
        rewriter.mark(node)


def clash(output: Tensor, result: Tensor, branch: Graph | None = None) -> str:
    """Return why a public output cannot be given by a tensor; empty where it can.

    Args:
        output: Output of the node.
        result: The tensor.
        branch: Where it is computed, if it takes over the declaration of the output; None if it keeps its own.
    """
    if not is_graph_output(output):
        return ""
    if output.onnx_dtype and result.onnx_dtype and output.onnx_dtype != result.onnx_dtype:
        return f"it declares another element type for '{output.name}' than its branch for '{result.name}'"
    made = producer(result)
    if made is not None and made.graph is branch:
        return ""
    have, want = result.shape, output.shape
    if have is None or want is None or _may_agree(have, want):
        return ""
    return f"it declares the shape {list(want)} for '{output.name}', its branch gives {list(have)}"


def _may_agree(have: Sequence[Any], want: Sequence[Any]) -> bool:
    if len(have) != len(want):
        return False
    return all(not (isinstance(a, int) and isinstance(b, int)) or a == b for a, b in zip(have, want, strict=True))


# ----------------------------------------------------------------------------------------------- exchanged branches


def _negated_conditions(node: Node) -> Patch | None:
    """Exchange the branches of every If that reads a negation, if nobody else does."""
    output = node.outputs[0]
    if is_graph_output(output) or refers_to_function(node):
        return None
    readers = list(dict.fromkeys(output.outputs))
    if not readers or not all(is_op(reader, "If") and branches(reader) for reader in readers):
        return None
    source = node.inputs[0]

    def apply(rewriter: Rewriter) -> None:
        for reader in readers:
            attrs = reader.attrs
            attrs["then_branch"], attrs["else_branch"] = attrs["else_branch"], attrs["then_branch"]
        for use in uses(output):
            rewriter.set_input(use.node, use.index, source)
        rewriter.erase(node)

    return Patch(f"exchange the branches of {len(readers)} If instead of negating their condition", (node,), apply)


# ----------------------------------------------------------------------------------------------- the same either way


def _by_branches(node: Node, types: Types) -> Steps:
    pair = branches(node)
    if pair is None:
        return
    if same_bodies(*pair):
        yield inlining(node, pair[0], "both branches compute the same", types)
        return
    same: list[tuple[int, Tensor]] = []
    for index, (then, otherwise) in enumerate(zip(pair[0].outputs, pair[1].outputs, strict=True)):
        source = _same_either_way(then, otherwise, pair[0])
        if source is not None and not clash(node.outputs[index], source):
            same.append((index, source))
    if same:
        yield _same_results(node, pair, same, types)


def _same_either_way(then: Tensor, otherwise: Tensor, branch: Graph) -> Tensor | None:
    """Return the outer tensor or the constant that both branches give, else None."""
    source, other = behind_identities(then), behind_identities(otherwise)
    if source is other and is_around(source, branch):
        return source
    return source if same_constants(source, other) else None


def _same_results(node: Node, pair: tuple[Graph, Graph], same: list[tuple[int, Tensor]], types: Types) -> Patch:
    whole = len(same) == len(node.outputs)

    def apply(rewriter: Rewriter) -> None:
        for index, source in same:
            if isinstance(source, Constant) and source.home is pair[0]:
                move_initializer(rewriter, source, node)
            if node.outputs[index].name:
                replace_result(rewriter, node.outputs[index], source, types)
        if whole:
            rewriter.erase(node)
        else:
            drop_results(rewriter, node, [(index, [(body, index) for body in pair]) for index, _ in same])

    names = ", ".join(f"'{source.name}'" for _, source in same)
    return Patch(f"both branches of If '{node.name}' give {names}", (node,), apply)
