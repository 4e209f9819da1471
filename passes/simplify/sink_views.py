"""Move views towards the outputs where they meet another view there, or where several become one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from graphopt.analysis.shape_values import ShapeValues
from graphopt.analysis.types import Types
from graphopt.graph import producer
from graphopt.passes.simplify.algebra.carriers import Again, Carrier, carrier
from graphopt.passes.simplify.algebra.views import CANDIDATES, View, is_view, restated
from graphopt.passes.simplify.look import Look, read_once
from graphopt.passes.simplify.removal import erase_unread
from graphopt.rewrite.driver import Rule, RulePass
from graphopt.rewrite.patch import Patch, Skip, node_label
from graphopt.verify.contract import Contract

if TYPE_CHECKING:
    from collections.abc import Sequence

    from graphopt.analysis.manager import Facts
    from graphopt.graph import Model, Node, Rewriter, Tensor

_LONGEST = 6


@dataclass(frozen=True, slots=True, kw_only=True)
class SinkViews(RulePass):
    """Move a view past the nodes below it into the view that follows them.

    Matches:   A view (Reshape, Flatten, Squeeze, Unsqueeze, Transpose that moves axes of size 1 only), then up to six
               nodes that work on each element (also with a constant), along axes (Slice, Gather, Pad), on rows
               (Softmax, normalizations) or multiply by a constant matrix, then a view; each is read by the next alone.
    Produces:  The nodes between on the tensor before the first view, with their axes counted there, and one view at
               the end; none where the shape is the same again, and then the first view may have other readers. Saves
               one view or both.
    Requires:  Every axis that a node between works along is an axis before the view too: the sizes in front of it,
               its own and those behind it are proved to give the same products. Constants that broadcast keep their
               place among the last axes, or hold one element. The view at the end can be stated as one node.
    Preserves: Every output bitwise: each node computes the same elements in the same row-major order.
    Source:    An axis of a row-major tensor is told by the number of elements in front of it and behind it.
    """

    name: ClassVar[str] = "sink-views"
    contract: ClassVar[Contract] = Contract.EXACT
    requires: ClassVar[tuple[type[Any], ...]] = (Types, ShapeValues)

    def rules(self, model: Model, facts: Facts) -> Sequence[Rule]:
        """Return the rule."""
        types, values = facts.get(Types), facts.get(ShapeValues)

        def rewrite(node: Node) -> Patch | Skip | None:
            return _sink(Look(node, types, values))

        return [Rule(CANDIDATES, rewrite, depth=_LONGEST + 1)]


def _sink(look: Look) -> Patch | None:
    chain: list[Carrier] = []
    source: Tensor = look.node.inputs[0]
    for _ in range(_LONGEST + 1):
        before = producer(source)
        if before is None or before.graph is not look.node.graph:
            return None
        above = look.at(before)
        if is_view(above):
            return _moved(look, above, chain[::-1]) if chain else None
        found = carrier(above) if read_once(source) else None
        if found is None or not (chain or is_view(look)):
            return None
        chain.append(found)
        source = found.data
    return None


def _moved(look: Look, view: Look, chain: Sequence[Carrier]) -> Patch | None:
    """Return the patch that moves a view past a chain of nodes, given from the first to the last."""
    source: Tensor = view.node.inputs[0]
    shape, seen = look.shape(source), look.shape(view.output)
    made = look.shape(look.output)
    if shape is None or seen is None or made is None:
        return None
    steps: list[Again] = []
    for each in chain:
        moved = each.past(shape, seen)
        seen = look.shape(each.look.output)
        if moved is None or seen is None:
            return None
        shape = moved[0]
        steps.append(moved[1])
    if shape == made:
        return _patch(look, view, chain, steps, None)
    end = restated(shape, made, look.opset) if read_once(view.output) else None
    return None if end is None else _patch(look, view, chain, steps, end)


def _patch(look: Look, view: Look, chain: Sequence[Carrier], steps: Sequence[Again], end: View | None) -> Patch:
    node, first = look.node, view.node

    def apply(rewriter: Rewriter) -> None:
        source: Tensor = first.inputs[0]
        for again in steps:
            source = again(rewriter, source)
        if end is not None:
            end.apply(rewriter, node, source)
            return
        before = list(node.inputs)
        rewriter.replace_tensor(node.outputs[0], source)
        rewriter.erase(node)
        erase_unread(rewriter, before)

    reason = f"{first.op} '{node_label(first)}' moves past {len(steps)} nodes into '{node_label(node)}'"
    return Patch(reason, (first, *(each.look.node for each in chain), node), apply)
