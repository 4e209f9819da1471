"""Make one Split of the Slices that cut a tensor into parts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from graphopt.analysis.shape_values import ShapeValues
from graphopt.analysis.types import Types
from graphopt.passes.simplify.algebra.ranges import ranges_of
from graphopt.passes.simplify.look import Look
from graphopt.passes.simplify.purity import is_op, refers_to_function
from graphopt.passes.simplify.removal import erase_unread
from graphopt.rewrite.driver import Rule, RulePass
from graphopt.rewrite.patch import Patch, Skip
from graphopt.verify.contract import Contract

if TYPE_CHECKING:
    from collections.abc import Sequence

    from graphopt.analysis.manager import Facts
    from graphopt.graph import Model, Node, Rewriter, Tensor

_MOST_READERS = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class MergeSplits(RulePass):
    """Make one Split of Slices that together give every element of a tensor once.

    Matches:   Two or more Slices of one tensor in one graph, along one axis, in steps of 1, whose ranges follow each
               other from the first element to the last.
    Produces:  One Split with their sizes. Saves all nodes but one; as many bytes move as before.
    Requires:  The axis has a known size, the bounds are known, and no range is empty; at most 64 nodes read the tensor.
    Preserves: Every output bitwise; names, types and shapes of all parts.
    Source:    A partition of an axis into runs is what Split gives.
    """

    name: ClassVar[str] = "merge-splits"
    contract: ClassVar[Contract] = Contract.EXACT
    requires: ClassVar[tuple[type[Any], ...]] = (Types, ShapeValues)

    def rules(self, model: Model, facts: Facts) -> Sequence[Rule]:
        """Return the rule."""
        types, values = facts.get(Types), facts.get(ShapeValues)

        def rewrite(node: Node) -> Patch | Skip | None:
            source = node.inputs[0]
            if not 2 <= len(source.outputs) <= _MOST_READERS:
                return None
            readers = [user for user in dict.fromkeys(source.outputs) if is_op(user, "Slice")]
            slices = [user for user in readers if user.graph is node.graph and user.inputs[0] is source]
            return _merge(source, [Look(user, types, values) for user in slices]) if len(slices) > 1 else None

        return [Rule(("Slice",), rewrite)]


def _merge(source: Tensor, slices: Sequence[Look]) -> Patch | None:
    by_axis: dict[int, dict[int, tuple[int, Look]]] = {}
    shape = slices[0].shape(source)
    if shape is None or slices[0].opset < 2:
        return None
    for look in slices:
        ranges = None if refers_to_function(look.node) else ranges_of(look)
        if ranges is None or len(ranges) != 1:
            continue
        axis, cut = next(iter(ranges.items()))
        size = shape[axis]
        selected = cut.of(size) if isinstance(size, int) else range(0)
        if selected and selected.step == 1:
            by_axis.setdefault(axis, {}).setdefault(selected.start, (selected.stop, look))
    for axis, parts in by_axis.items():
        found = _partition(parts, shape[axis])
        if found is not None:
            return _patch(source, axis, found)
    return None


def _partition(parts: dict[int, tuple[int, Look]], size: object) -> list[tuple[int, Look]] | None:
    """Return sizes and Slices, from the first element to the last; None where some are missing."""
    at, found = 0, []
    while at in parts:
        stop, look = parts[at]
        found.append((stop - at, look))
        at = stop
    return found if at == size and len(found) > 1 else None


def _patch(source: Tensor, axis: int, parts: Sequence[tuple[int, Look]]) -> Patch:
    sizes = [size for size, _ in parts]
    nodes = [look.node for _, look in parts]
    graph, opset = nodes[0].graph, parts[0][1].opset

    def apply(rewriter: Rewriter) -> None:
        assert graph is not None
        near = min(nodes, key=graph.nodes.label)
        attrs: dict[str, Any] = {"axis": axis}
        inputs = [source]
        if opset >= 13:
            inputs.append(rewriter.constant(np.array(sizes, np.int64), near=near))
        else:
            attrs["split"] = sizes
        like = [node.outputs[0] for node in nodes]
        made = rewriter.op("Split", inputs, attrs=attrs, outputs=len(nodes), like=like, near=near, origin=nodes)
        for node, part in zip(nodes, made, strict=True):
            before = list(node.inputs)
            rewriter.replace_tensor(node.outputs[0], part)
            rewriter.erase(node)
            erase_unread(rewriter, before)

    return Patch(
        f"{len(nodes)} Slices cut '{source.name}' into parts of {sizes} along axis {axis}", tuple(nodes), apply
    )
