"""Make one Transpose of two."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from graphopt.analysis.shape_values import ShapeValues
from graphopt.analysis.types import Types
from graphopt.passes.simplify.look import Look
from graphopt.passes.simplify.purity import refers_to_function
from graphopt.passes.simplify.removal import bypass, restate
from graphopt.rewrite.driver import Rule, RulePass
from graphopt.rewrite.patch import Patch, Skip, node_label
from graphopt.verify.contract import Contract

if TYPE_CHECKING:
    from collections.abc import Sequence

    from graphopt.analysis.manager import Facts
    from graphopt.graph import Model, Node, Rewriter


@dataclass(frozen=True, slots=True, kw_only=True)
class MergeTransposes(RulePass):
    """Make one Transpose of a Transpose of a Transpose.

    Matches:   Transpose whose input another Transpose makes; that one may have other readers, which keep it.
    Produces:  One Transpose with both permutations, or the input itself where they undo each other. Saves a node and
               one copy of the tensor where nobody else reads the first result; else the chain gets shorter.
    Requires:  Both permutations are known: written out, or reversed with a known rank.
    Preserves: Every output bitwise; names, types and shapes of the last Transpose.
    Source:    Axis i of the result is axis inner[outer[i]] of the input.
    """

    name: ClassVar[str] = "merge-transposes"
    contract: ClassVar[Contract] = Contract.EXACT
    requires: ClassVar[tuple[type[Any], ...]] = (Types, ShapeValues)

    def rules(self, model: Model, facts: Facts) -> Sequence[Rule]:
        """Return the rule."""
        types, values = facts.get(Types), facts.get(ShapeValues)

        def rewrite(node: Node) -> Patch | Skip | None:
            look = Look(node, types, values)
            before = look.above(0, "Transpose")
            return None if before is None or refers_to_function(node) else _merge(look, before)

        return [Rule(("Transpose",), rewrite)]


def _merge(look: Look, before: Look) -> Patch | Skip | None:
    outer, inner, source = look.permutation(), before.permutation(), before.first()
    if outer is None or inner is None or source is None or len(outer) != len(inner):
        return None
    perm = [inner[axis] for axis in outer]
    if perm == sorted(perm):
        return bypass(look.node, source, f"Transpose '{node_label(look.node)}' undoes the one above it")

    def apply(rewriter: Rewriter) -> None:
        restate(rewriter, look.node, "Transpose", [source], {"perm": perm})

    reason = f"Transpose '{node_label(look.node)}' takes over '{node_label(before.node)}'"
    return Patch(reason, (before.node, look.node), apply)
