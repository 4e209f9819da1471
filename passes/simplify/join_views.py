"""Make one view of several whose results meet in one node."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, TypeAlias

from graphopt.analysis.dims import add, product
from graphopt.analysis.shape_values import ShapeValues
from graphopt.analysis.types import Types
from graphopt.graph import producer
from graphopt.passes.simplify.algebra.carriers import BINARY
from graphopt.passes.simplify.algebra.views import CANDIDATES, is_view, restated
from graphopt.passes.simplify.look import Look, read_once
from graphopt.passes.simplify.purity import is_op, refers_to_function
from graphopt.passes.simplify.removal import erase_unread
from graphopt.rewrite.driver import Rule, RulePass
from graphopt.rewrite.patch import Patch, Skip, node_label
from graphopt.verify.contract import Contract

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from graphopt.analysis.dims import Dim
    from graphopt.analysis.manager import Facts
    from graphopt.graph import Model, Node, Rewriter, Tensor
    from graphopt.passes.simplify.algebra.views import View

_ELEMENTWISE = (*sorted(BINARY - {"PRelu"}), "Where", "Sum", "Mean")
_MOST_INPUTS = 64
_Joined: TypeAlias = "tuple[Sequence[Dim], dict[str, Any]]"


@dataclass(frozen=True, slots=True, kw_only=True)
class JoinViews(RulePass):
    """Let a node that reads several views read what they view, and view its result once.

    Matches:   Concat, or an operator on each element (Add, Mul, Where and others), whose inputs are all views of
               tensors with the same shape, for Concat up to the axis; at least two of these views are read by it alone.
    Produces:  The node on the tensors before the views, and one view of its result. Saves all views but one.
    Requires:  For operators on each element: all inputs have the shape of the output. For Concat: an axis of the
               tensors with as many elements in front of it as the axis has, so that the same runs of elements follow
               each other. The view can be stated as one node.
    Preserves: Every output bitwise; names, types and shapes of the result.
    Source:    A view keeps the row-major order of elements, and an axis is told by the elements in front and behind.
    """

    name: ClassVar[str] = "join-views"
    contract: ClassVar[Contract] = Contract.EXACT
    requires: ClassVar[tuple[type[Any], ...]] = (Types, ShapeValues)

    def rules(self, model: Model, facts: Facts) -> Sequence[Rule]:
        """Return the rules for Concat and for operators on each element."""
        types, values = facts.get(Types), facts.get(ShapeValues)

        def concat(node: Node) -> Patch | Skip | None:
            return None if _taken_apart(node) else _join(Look(node, types, values), _concat)

        def elementwise(node: Node) -> Patch | Skip | None:
            first = producer(node.inputs[0])
            if first is None or first.op not in CANDIDATES:
                return None
            return _join(Look(node, types, values), _elementwise)

        return [Rule(("Concat",), concat, below=1), Rule(_ELEMENTWISE, elementwise)]


def _taken_apart(node: Node) -> bool:
    """Whether a Split behind a Concat may give out its operands again, so that neither is needed."""
    reader = node.outputs[0].outputs.first()
    return is_op(reader, "Split") and reader is not None and len(reader.outputs) == len(node.inputs)


def _join(look: Look, joined: Callable[[Look, Sequence[Dim], Sequence[Sequence[Dim]]], _Joined | None]) -> Patch | None:
    inputs = look.node.inputs
    if not 2 <= len(inputs) <= _MOST_INPUTS:
        return None
    views = [producer(tensor) for tensor in inputs]
    if any(view is None or view.op not in CANDIDATES for view in views) or refers_to_function(look.node):
        return None
    above = [look.at(view) for view in views if view is not None]
    if sum(read_once(tensor) for tensor in inputs) < 2 or not all(is_view(view) for view in above):
        return None
    made = look.shape(look.output)
    sources: list[Tensor] = [view.node.inputs[0] for view in above]
    shapes = [look.shape(source) for source in sources]
    known = [shape for shape in shapes if shape is not None]
    if made is None or len(known) < len(shapes):
        return None
    found = joined(look, made, known)
    if found is None:
        return None
    shape, attrs = found
    view = restated(shape, made, look.opset)
    return None if view is None else _patch(look.node, sources, attrs, view)


def _concat(look: Look, made: Sequence[Dim], shapes: Sequence[Sequence[Dim]]) -> _Joined | None:
    """Return the shape and the attributes of the Concat before the views: on an axis with as much in front of it."""
    axis = look.axis("axis", 1, len(made))
    if axis is None or any(len(shape) != len(shapes[0]) for shape in shapes):
        return None
    front = product(list(made[:axis]))
    for place in range(len(shapes[0])):
        rest = [(*shape[:place], *shape[place + 1 :]) for shape in shapes]
        if product(list(shapes[0][:place])) == front and all(other == rest[0] for other in rest):
            total: Dim = 0
            for shape in shapes:
                total = add(total, shape[place])
            return (*shapes[0][:place], total, *shapes[0][place + 1 :]), {**look.node.attrs, "axis": place}
    return None


def _elementwise(look: Look, made: Sequence[Dim], shapes: Sequence[Sequence[Dim]]) -> _Joined | None:
    """Return the shape and the attributes of the node before the views."""
    if look.opset < 7 or any(shape != shapes[0] for shape in shapes):
        return None
    if any(look.shape(tensor) != made for tensor in look.node.inputs):
        return None
    return shapes[0], dict(look.node.attrs)


def _patch(node: Node, sources: Sequence[Tensor], attrs: dict[str, Any], view: View) -> Patch:
    def apply(rewriter: Rewriter) -> None:
        before = list(node.inputs)
        result = rewriter.op(node.op, sources, attrs=attrs, near=node, origin=[node])
        view.apply(rewriter, node, result)
        erase_unread(rewriter, before)

    reason = f"{node.op} '{node_label(node)}' reads what its {len(sources)} inputs view"
    return Patch(reason, (node,), apply)
