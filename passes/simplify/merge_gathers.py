"""Make one Gather of chains of Gather, Slice, Squeeze and Unsqueeze."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from graphopt.analysis.shape_values import ShapeValues
from graphopt.analysis.types import Types
from graphopt.graph import is_graph_output
from graphopt.passes.simplify.algebra.ranges import ranges_of
from graphopt.passes.simplify.algebra.views import VIEWS
from graphopt.passes.simplify.look import Look, read_once
from graphopt.passes.simplify.purity import is_op, refers_to_function
from graphopt.passes.simplify.removal import restate
from graphopt.rewrite.driver import Rule, RulePass
from graphopt.rewrite.patch import Patch, Skip, node_label
from graphopt.verify.contract import Contract

if TYPE_CHECKING:
    from collections.abc import Sequence

    from graphopt.analysis.dims import Dim
    from graphopt.analysis.manager import Facts
    from graphopt.graph import Model, Node, Rewriter, Tensor
    from graphopt.passes.simplify.look import Array


@dataclass(frozen=True, slots=True, kw_only=True)
class MergeGathers(RulePass):
    """Make one Gather of two, and of a Gather or Slice of one element whose axis a view adds or removes.

    Matches:   Gather with constant indices of a Gather with a constant vector of indices along the same axis;
               Unsqueeze or Reshape that puts back the axis that a Gather with one constant index took away, where all
               readers of that Gather do so; Squeeze or Reshape that takes away the axis of which a Gather or Slice
               takes one element, for it alone.
    Produces:  One Gather: with the indices of the indices, with a vector of one index, or with a scalar. Saves a node.
    Requires:  All indices are constant and valid: a composed one lies in the first vector. The size of a sliced axis
               is known. The shapes before and after are proved, symbolic sizes included.
    Preserves: Every output bitwise; names, types and shapes of the last node.
    Source:    x[i][j] is x[i[j]]; a scalar index removes the axis that a vector of one index keeps.
    """

    name: ClassVar[str] = "merge-gathers"
    contract: ClassVar[Contract] = Contract.EXACT
    requires: ClassVar[tuple[type[Any], ...]] = (Types, ShapeValues)

    def rules(self, model: Model, facts: Facts) -> Sequence[Rule]:
        """Return the rule for two Gathers and the rule for a view of one."""
        types, values = facts.get(Types), facts.get(ShapeValues)

        def gather(node: Node) -> Patch | Skip | None:
            look = Look(node, types, values)
            before = look.above(0, "Gather")
            return None if before is None or refers_to_function(node) else _merge(look, before)

        def view(node: Node) -> Patch | None:
            look = Look(node, types, values)
            before = look.above(0, "Gather", "Slice")
            return None if before is None or refers_to_function(node) else _view(look, before)

        return [Rule(("Gather",), gather), Rule(VIEWS, view, below=1)]


def _merge(look: Look, before: Look) -> Patch | Skip | None:
    source, first, second = before.first(), before.constant(1), look.constant(1)
    shape = None if source is None else look.shape(source)
    if source is None or shape is None or first is None or second is None or first.ndim != 1:
        return None
    axis = before.axis("axis", 0, len(shape))
    if axis is None or look.axis("axis", 0, len(shape)) != axis or not read_once(before.output):
        return None
    if second.size and not -first.size <= second.min() <= second.max() < first.size:
        return Skip(look.node, f"an index lies outside of the {first.size} elements that it is given")
    return _patch(look, before, source, first[second], axis)


def _view(look: Look, before: Look) -> Patch | None:
    source = before.first()
    shape = None if source is None else look.shape(source)
    made = look.shape(look.output)
    if source is None or shape is None or made is None:
        return None
    found = _one_index(before, shape)
    if found is None:
        return None
    axis, index = found
    if made == (*shape[:axis], *shape[axis + 1 :]) and read_once(before.output):
        return _patch(look, before, source, np.array(index, np.int64), axis)
    rank = look.types.rank(before.output)
    if (
        made == (*shape[:axis], 1, *shape[axis + 1 :])
        and rank == len(shape) - 1
        and _all_views(before.output, made, look)
    ):
        return _patch(look, before, source, np.array([index], np.int64), axis)
    return None


def _one_index(before: Look, shape: Sequence[Dim]) -> tuple[int, int] | None:
    """Return the axis and the one element of it that a Gather or a Slice takes."""
    if before.node.op == "Gather":
        indices, axis = before.constant(1), before.axis("axis", 0, len(shape))
        if indices is None or axis is None or indices.size != 1 or indices.ndim > 1:
            return None
        return axis, int(indices.reshape(-1)[0])
    ranges = ranges_of(before)
    if ranges is None or len(ranges) != 1:
        return None
    axis, cut = next(iter(ranges.items()))
    size = shape[axis]
    if not isinstance(size, int) or cut.starts_in_front(size) or len(cut.of(size)) != 1:
        return None
    return axis, cut.of(size)[0]


def _all_views(tensor: Tensor, made: Sequence[Dim], look: Look) -> bool:
    """Whether every reader of a tensor is a view of the same shape, so that nobody needs the tensor afterwards."""
    if is_graph_output(tensor) or len(tensor.outputs) > _MOST_READERS:
        return False
    return all(is_op(user, *VIEWS) and look.shape(user.outputs[0]) == made for user in tensor.outputs)


_MOST_READERS = 16


def _patch(look: Look, before: Look, source: Tensor, indices: Array, axis: int) -> Patch:
    node = look.node

    def apply(rewriter: Rewriter) -> None:
        restate(rewriter, node, "Gather", [source, rewriter.constant(indices, near=node)], {"axis": axis})

    reason = f"{node.op} '{node_label(node)}' and {before.node.op} '{node_label(before.node)}' become one Gather"
    return Patch(reason, (before.node, node), apply)
