"""Make one node of a chain of views."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from graphopt.analysis.shape_values import ShapeValues
from graphopt.analysis.types import Types
from graphopt.graph import Model, Node, Tensor, producer
from graphopt.passes.simplify.algebra.views import CANDIDATES, View, is_view, restated, viewed
from graphopt.passes.simplify.look import Look
from graphopt.passes.simplify.removal import bypass
from graphopt.rewrite.driver import Rule, RulePass
from graphopt.rewrite.patch import Patch, Skip, node_label
from graphopt.verify.contract import Contract

if TYPE_CHECKING:
    from collections.abc import Sequence

    from graphopt.analysis.manager import Facts
    from graphopt.graph import Rewriter

_NEAR = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class MergeReshapes(RulePass):
    """Make one node of a chain of views: Reshape, Flatten, Squeeze, Unsqueeze and what does no more.

    Matches:   A view of a view: Reshape, Flatten, Squeeze, Unsqueeze, Transpose that moves axes of size 1 only, Gather
               of the only element of an axis, Expand that adds axes of size 1 only. The views above may have other
               readers, which keep them.
    Produces:  One Reshape with a constant target, else one Unsqueeze, Squeeze or Flatten, that reads what the first of
               the chain read. Saves a node per view whose result only the chain reads, and shortens the chain else.
    Requires:  The shapes on both ends are known up to symbols. A size is copied (0) only where it is proved equal to
               that of the same axis; at most one is inferred (-1), and only where no copied size can be 0, since
               nothing can be inferred about an empty tensor. A Reshape whose target says -1 itself keeps it.
    Preserves: Every output bitwise; names, types and shapes of the last view.
    Source:    A view keeps the row-major order of elements, so composing two keeps it too.
    """

    name: ClassVar[str] = "merge-reshapes"
    contract: ClassVar[Contract] = Contract.EXACT
    requires: ClassVar[tuple[type[Any], ...]] = (Types, ShapeValues)

    def rules(self, model: Model, facts: Facts) -> Sequence[Rule]:
        """Return the rule."""
        types, values = facts.get(Types), facts.get(ShapeValues)

        def rewrite(node: Node) -> Patch | Skip | None:
            before = producer(node.inputs[0]) if node.inputs else None
            if before is None or before.op not in CANDIDATES or node.graph is None:
                return None
            look = Look(node, types, values)
            return _merge(look, look.at(before))

        return [Rule(CANDIDATES, rewrite, depth=_NEAR)]


def _merge(look: Look, before: Look) -> Patch | Skip | None:
    node = look.node
    if node.op == before.node.op == "Transpose":
        return None  # merge-transposes makes one of them
    if not is_view(look) or not is_view(before):
        return None
    source = viewed(look)
    shape = None if source is None else look.shape(source)
    made = look.shape(look.output)
    if source is None or shape is None or made is None:
        return None
    if shape == made:
        return bypass(node, source, f"the views from '{source.name}' to '{look.output.name}' return to its shape")
    view = restated(shape, made, look.opset) or _keeping_target(look, before, shape)
    if view is None:
        return None
    return _patch(node, before.node, source, view)


def _patch(node: Node, before: Node, source: Tensor, view: View) -> Patch:
    def apply(rewriter: Rewriter) -> None:
        view.apply(rewriter, node, source)

    reason = f"{view.op} '{node_label(node)}' reads '{source.name}', past the view '{node_label(before)}'"
    return Patch(reason, (before, node), apply)


def _keeping_target(look: Look, before: Look, shape: Sequence[Any]) -> View | None:
    """Return the Reshape with the target it has, where what it copies is the same before the views above it.

    It fails on the same empty tensors as before, so its -1 may stay.
    """
    target = look.ints(1, "shape") if look.node.op == "Reshape" else None
    between = look.shape(before.output)
    if target is None or between is None or int(look.attr("allowzero", 0)):
        return None
    for axis, size in enumerate(target):
        if size == 0 and not (axis < len(shape) and axis < len(between) and shape[axis] == between[axis]):
            return None
    return View("Reshape", tuple(target))
