"""Make one Clip of a chain of clamps."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from graphopt.analysis.shape_values import ShapeValues
from graphopt.analysis.types import Types
from graphopt.graph import producer
from graphopt.passes.simplify.algebra.clamps import CLAMPS, Clamp
from graphopt.passes.simplify.look import Look, read_once
from graphopt.passes.simplify.purity import is_op, refers_to_function
from graphopt.rewrite.driver import Rule, RulePass
from graphopt.rewrite.patch import Patch, Skip, node_label
from graphopt.verify.contract import Contract

if TYPE_CHECKING:
    from collections.abc import Sequence

    from graphopt.analysis.manager import Facts
    from graphopt.graph import Model, Node, Rewriter


@dataclass(frozen=True, slots=True, kw_only=True)
class MergeClips(RulePass):
    """Make one Clip, or Relu, of Clip, Relu, Min and Max with a constant that follow each other.

    Matches:   Relu, Clip with constant bounds, Min or Max with one constant, whose input such a node makes for it
               alone.
    Produces:  One clamp with low = clamp(low1) and high = clamp(high1), where clamp is the second: a Relu where these
               are 0 and infinity, else a Clip. Saves a node and one pass over the tensor.
    Requires:  The bounds are constants and no NaN. Ranges that do not overlap give one number everywhere, which must
               not be 0, whose sign would depend on the input; Min and Max of floats with 0 stay, since which zero they
               give is not defined. The opset can write the bounds.
    Preserves: Every output bitwise, NaN and signs of zeros included; names, types and shapes.
    Source:    Both clamps are monotone and piecewise x or constant, so the bounds of the composition are the images
               of the first bounds.
    """

    name: ClassVar[str] = "merge-clips"
    contract: ClassVar[Contract] = Contract.EXACT
    requires: ClassVar[tuple[type[Any], ...]] = (Types, ShapeValues)

    def rules(self, model: Model, facts: Facts) -> Sequence[Rule]:
        """Return the rule."""
        types, values = facts.get(Types), facts.get(ShapeValues)

        def rewrite(node: Node) -> Patch | Skip | None:
            for tensor in node.inputs[:2]:
                before = producer(tensor)
                if is_op(before, *CLAMPS) and before is not None and read_once(tensor):
                    look = Look(node, types, values)
                    return _merge(look, look.at(before))
            return None

        return [Rule(CLAMPS, rewrite)]


def _merge(look: Look, before: Look) -> Patch | Skip | None:
    if refers_to_function(look.node) or refers_to_function(before.node):
        return None
    second = Clamp.of(look)
    if second is None or second.source is not before.output:
        return None
    first = Clamp.of(before)
    if first is None:
        return None
    both = second.after(first)
    if both is None:
        return Skip(look.node, "its range and the one before it do not overlap, and the sign of the 0 between differs")
    dtype, opset = look.dtype(look.output), look.opset
    if not both.writable(dtype, opset):
        return None

    def apply(rewriter: Rewriter) -> None:
        both.apply(rewriter, look.node, dtype, opset)

    reason = f"{look.node.op} '{node_label(look.node)}' takes over the bounds of '{node_label(before.node)}'"
    return Patch(reason, (before.node, look.node), apply)
