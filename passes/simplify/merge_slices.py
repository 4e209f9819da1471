"""Make one Slice of a Slice of a Slice."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from graphopt.analysis.shape_values import ShapeValues
from graphopt.analysis.types import Types
from graphopt.passes.simplify.algebra.ranges import Range, ranges_of, state_slice
from graphopt.passes.simplify.look import Look, chained
from graphopt.rewrite.driver import Rule, RulePass
from graphopt.rewrite.patch import Patch, Skip, node_label
from graphopt.verify.contract import Contract

if TYPE_CHECKING:
    from collections.abc import Sequence

    from graphopt.analysis.manager import Facts
    from graphopt.graph import Model, Rewriter


@dataclass(frozen=True, slots=True, kw_only=True)
class MergeSlices(RulePass):
    """Make one Slice of two that follow each other.

    Matches:   Slice whose input another Slice makes for it alone, both with known bounds.
    Produces:  One Slice with the ranges of both; on an axis that both cut, the range that the second selects of the
               first. Saves a node and a copy of what lies between.
    Requires:  On an axis of known size anything composes, steps and negative bounds too. On one of free size: steps
               forward and starts from the front; ends as far as they can be combined without the size.
    Preserves: Every output bitwise; names, types and shapes of the last Slice.
    Source:    Element i of [a::s] then element j of [b::t] is element a + s (b + t j).
    """

    name: ClassVar[str] = "merge-slices"
    contract: ClassVar[Contract] = Contract.EXACT
    requires: ClassVar[tuple[type[Any], ...]] = (Types, ShapeValues)

    def rules(self, model: Model, facts: Facts) -> Sequence[Rule]:
        """Return the rule."""
        return [chained("Slice", facts.get(Types), facts.get(ShapeValues), _merge)]


def _merge(look: Look, before: Look) -> Patch | Skip | None:
    source, first, second = before.first(), ranges_of(before), ranges_of(look)
    shape = None if source is None else look.shape(source)
    if source is None or shape is None or first is None or second is None:
        return None
    both: dict[int, Range] = dict(first)
    for axis, selected in second.items():
        earlier = first.get(axis)
        found = selected if earlier is None else earlier.then(selected, shape[axis])
        if found is None:
            return Skip(look.node, f"how axis {axis} of size {shape[axis]} is cut twice depends on the size")
        both[axis] = found

    def apply(rewriter: Rewriter) -> None:
        state_slice(rewriter, look.node, source, both, look.opset)

    reason = f"Slice '{node_label(look.node)}' takes over the ranges of '{node_label(before.node)}'"
    return Patch(reason, (before.node, look.node), apply)
