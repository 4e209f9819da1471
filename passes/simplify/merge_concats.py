"""Make one Concat of a Concat of a Concat, without what is empty."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from graphopt.analysis.shape_values import ShapeValues
from graphopt.analysis.types import Types
from graphopt.graph import is_graph_output, producer
from graphopt.passes.simplify.look import Look
from graphopt.passes.simplify.purity import is_op, refers_to_function
from graphopt.passes.simplify.removal import restate
from graphopt.rewrite.driver import Rule, RulePass
from graphopt.rewrite.patch import Patch, Skip, node_label
from graphopt.verify.contract import Contract

if TYPE_CHECKING:
    from collections.abc import Sequence

    from graphopt.analysis.manager import Facts
    from graphopt.graph import Model, Node, Rewriter, Tensor

_MOST_INPUTS = 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class MergeConcats(RulePass):
    """Make one Concat of nested ones, and drop what is empty.

    Matches:   Concat that reads the result of another Concat along the same axis, which no other node reads; Concat of
               a tensor that is empty along the axis.
    Produces:  One Concat of all operands in order, without empty ones. Saves a node and a copy of what the inner one
               made; an empty operand saves an edge.
    Requires:  Both axes are the same, counted from the front. An operand is dropped only where its size is known to be
               0 and another one stays.
    Preserves: Every output bitwise; names, types and shapes of the outer Concat.
    Source:    Concatenation is associative and has the empty tensor as its neutral element.
    """

    name: ClassVar[str] = "merge-concats"
    contract: ClassVar[Contract] = Contract.EXACT
    requires: ClassVar[tuple[type[Any], ...]] = (Types, ShapeValues)

    def rules(self, model: Model, facts: Facts) -> Sequence[Rule]:
        """Return the rule."""
        types, values = facts.get(Types), facts.get(ShapeValues)

        def rewrite(node: Node) -> Patch | Skip | None:
            return None if refers_to_function(node) else _merge(Look(node, types, values))

        return [Rule(("Concat",), rewrite)]


def _merge(look: Look) -> Patch | None:
    node = look.node
    rank = look.types.rank(look.output)
    axis = look.axis("axis", 1, rank)
    if rank is None or axis is None:
        return None
    operands: list[Tensor] = []
    inner: list[Node] = []
    for tensor in node.inputs:
        before = producer(tensor)
        if before is not None and is_op(before, "Concat") and _serves(tensor, node) and _axis(look.at(before)) == axis:
            operands.extend(before.inputs)
            inner.append(before)
        else:
            operands.append(tensor)
    kept = [tensor for tensor in operands if not _is_empty(look, tensor, axis)] or operands[:1]
    if len(kept) > _MOST_INPUTS or (not inner and len(kept) == len(node.inputs)):
        return None

    def apply(rewriter: Rewriter) -> None:
        restate(rewriter, node, "Concat", kept, {**node.attrs, "axis": axis})

    taken = f" takes over {len(dict.fromkeys(inner))} more" if inner else ""
    dropped = f" drops {len(operands) - len(kept)} empty operands" if len(kept) < len(operands) else ""
    return Patch(f"Concat '{node_label(node)}'{taken}{dropped}", (*dict.fromkeys(inner), node), apply)


def _serves(tensor: Tensor, node: Node) -> bool:
    """Whether a node alone reads a tensor, however often."""
    return not is_graph_output(tensor) and all(user is node for user in tensor.outputs)


def _axis(look: Look) -> int | None:
    if refers_to_function(look.node):
        return None
    return look.axis("axis", 1, look.types.rank(look.output))


def _is_empty(look: Look, tensor: Tensor, axis: int) -> bool:
    shape = look.shape(tensor)
    return shape is not None and axis < len(shape) and shape[axis] == 0
