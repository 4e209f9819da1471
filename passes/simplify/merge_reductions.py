"""Let a reduction keep or drop its axes itself instead of a view behind it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from graphopt.analysis.shape_values import ShapeValues
from graphopt.analysis.types import Types
from graphopt.graph import producer
from graphopt.passes.simplify.algebra.carriers import Again, Carrier, Shape, carrier
from graphopt.passes.simplify.algebra.views import VIEWS
from graphopt.passes.simplify.look import Look, read_once
from graphopt.passes.simplify.purity import is_op, refers_to_function
from graphopt.passes.simplify.removal import erase_unread, restate
from graphopt.rewrite.driver import Rule, RulePass
from graphopt.rewrite.patch import Patch, node_label
from graphopt.verify.contract import Contract

if TYPE_CHECKING:
    from collections.abc import Sequence

    from graphopt.analysis.manager import Facts
    from graphopt.graph import Model, Node, Rewriter, Tensor

REDUCTIONS = (
    *("ReduceL1", "ReduceL2", "ReduceLogSum", "ReduceLogSumExp", "ReduceMax", "ReduceMean", "ReduceMin", "ReduceProd"),
    *("ReduceSum", "ReduceSumSquare", "ArgMax", "ArgMin"),
)


_LONGEST = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class MergeReductions(RulePass):
    """Set keepdims of a reduction so that no Squeeze or Unsqueeze behind it is needed.

    Matches:   Reduce*, ArgMax or ArgMin, up to four nodes that work on each element (also with a constant), then a
               Squeeze, Unsqueeze, Reshape or Flatten that drops or puts back exactly the axes of size 1 that the
               reduction leaves or drops; each is read by the next alone.
    Produces:  The reduction with the other keepdims, and the nodes behind it on that shape. Saves the view.
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
            return None if refers_to_function(node) else _find(Look(node, types, values))

        return [Rule(VIEWS, rewrite, depth=_LONGEST + 1)]


def _find(look: Look) -> Patch | None:
    chain: list[Carrier] = []
    source: Tensor = look.node.inputs[0]
    for _ in range(_LONGEST + 1):
        before = producer(source)
        if before is None or before.graph is not look.node.graph or not read_once(source):
            return None
        above = look.at(before)
        if is_op(before, *REDUCTIONS):
            return None if refers_to_function(before) else _merge(look, above, chain[::-1])
        found = carrier(above)
        if found is None:
            return None
        chain.append(found)
        source = found.data
    return None


def _merge(look: Look, before: Look, chain: Sequence[Carrier]) -> Patch | None:
    node, reduction = look.node, before.node
    shape, seen = look.shape(reduction.inputs[0]), look.shape(before.output)
    axes = None if shape is None else _axes(before, len(shape))
    if shape is None or seen is None or axes is None:
        return None
    keeps = 0 if int(before.attr("keepdims", 1)) else 1
    kept: Shape = tuple(1 if axis in axes else size for axis, size in enumerate(shape) if keeps or axis not in axes)
    steps: list[Again] = []
    for each in chain:
        moved, now = each.past(kept, seen), look.shape(each.look.output)
        if moved is None or now is None:
            return None
        kept, seen = moved[0], now
        steps.append(moved[1])
    if look.shape(look.output) != kept:
        return None

    def apply(rewriter: Rewriter) -> None:
        inputs = [tensor if tensor.name else None for tensor in reduction.inputs]
        attrs = {**reduction.attrs, "keepdims": keeps}
        if not steps:
            restate(rewriter, node, str(reduction.op), inputs, attrs)
            return
        source: Tensor = rewriter.op(str(reduction.op), inputs, attrs=attrs, near=node, origin=[reduction])
        for again in steps:
            source = again(rewriter, source)
        unread = list(node.inputs)
        rewriter.replace_tensor(node.outputs[0], source)
        rewriter.erase(node)
        erase_unread(rewriter, unread)

    reason = f"{reduction.op} '{node_label(reduction)}' {'keeps' if keeps else 'drops'} its axes itself"
    return Patch(reason, (reduction, *(each.look.node for each in chain), node), apply)


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
