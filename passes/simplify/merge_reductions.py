"""Let a reduction keep or drop its axes itself instead of a view behind it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from graphopt.analysis.shape_values import ShapeValues
from graphopt.analysis.types import Types
from graphopt.passes.simplify.look import Look, read_once
from graphopt.passes.simplify.purity import refers_to_function
from graphopt.passes.simplify.removal import restate
from graphopt.passes.simplify.views import VIEWS
from graphopt.rewrite.driver import Rule, RulePass
from graphopt.rewrite.patch import Patch, node_label
from graphopt.verify.contract import Contract

if TYPE_CHECKING:
    from collections.abc import Sequence

    from graphopt.analysis.dims import Dim
    from graphopt.analysis.manager import Facts
    from graphopt.graph import Model, Node, Rewriter

REDUCTIONS = (
    *("ReduceL1", "ReduceL2", "ReduceLogSum", "ReduceLogSumExp", "ReduceMax", "ReduceMean", "ReduceMin", "ReduceProd"),
    *("ReduceSum", "ReduceSumSquare", "ArgMax", "ArgMin"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class MergeReductions(RulePass):
    """Set keepdims of a reduction so that no Squeeze or Unsqueeze behind it is needed.

    Matches:   Reduce*, ArgMax or ArgMin whose result only a Squeeze, Unsqueeze, Reshape or Flatten reads, which drops
               or puts back exactly the axes of size 1 that the reduction leaves or drops.
    Produces:  The reduction with the other keepdims. Saves the view.
    Requires:  The axes are known, and the shape that the view gives is proved to be that of the other keepdims.
    Preserves: Every output bitwise; names, types and shapes of the view's output.
    Source:    keepdims changes the shape of a reduction and none of its values.
    """

    name: ClassVar[str] = "merge-reductions"
    contract: ClassVar[Contract] = Contract.EXACT
    requires: ClassVar[tuple[type[Any], ...]] = (Types, ShapeValues)

    def rules(self, model: Model, facts: Facts) -> Sequence[Rule]:
        """Return the rule."""
        types, values = facts.get(Types), facts.get(ShapeValues)

        def rewrite(node: Node) -> Patch | None:
            look = Look(node, types, values)
            before = look.above(0, *REDUCTIONS)
            if before is None or not read_once(before.output) or refers_to_function(node):
                return None
            return _merge(look, before)

        return [Rule(VIEWS, rewrite)]


def _merge(look: Look, before: Look) -> Patch | None:
    node, reduction = look.node, before.node
    shape = look.shape(reduction.inputs[0])
    axes = None if shape is None else _axes(before, len(shape))
    if shape is None or axes is None:
        return None
    keeps = 0 if int(before.attr("keepdims", 1)) else 1
    wanted: list[Dim] = [1 if axis in axes else size for axis, size in enumerate(shape) if keeps or axis not in axes]
    if look.shape(look.output) != tuple(wanted):
        return None

    def apply(rewriter: Rewriter) -> None:
        inputs = [tensor if tensor.name else None for tensor in reduction.inputs]
        restate(rewriter, node, str(reduction.op), inputs, {**reduction.attrs, "keepdims": keeps})

    reason = f"{reduction.op} '{node_label(reduction)}' {'keeps' if keeps else 'drops'} its axes itself"
    return Patch(reason, (reduction, node), apply)


def _axes(look: Look, rank: int) -> set[int] | None:
    """Return the axes that are reduced, counted from the front."""
    if look.node.op in {"ArgMax", "ArgMin"}:
        axis = look.axis("axis", 0, rank)
        return None if axis is None else {axis}
    given = look.ints(1, "axes")
    if given:
        return {axis % rank for axis in given if -rank <= axis < rank}
    if look.input(1) is not None and given is None:
        return None
    return set() if int(look.attr("noop_with_empty_axes", 0)) else set(range(rank))
