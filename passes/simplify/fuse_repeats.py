"""Repeat parts of a tensor with one Gather."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from graphopt.analysis.types import Types
from graphopt.graph import is_graph_output, producer
from graphopt.passes.simplify.fix_reshape_targets import constant_target
from graphopt.passes.simplify.purity import is_op, refers_to_function
from graphopt.passes.simplify.removal import erase_unread
from graphopt.rewrite.driver import Rule, RulePass
from graphopt.rewrite.patch import Patch
from graphopt.verify.contract import Contract

if TYPE_CHECKING:
    from collections.abc import Sequence

    from graphopt.analysis.dims import Dim
    from graphopt.analysis.manager import Facts
    from graphopt.graph import Model, Node, Rewriter, Tensor

_LONGEST = 1024
_VIEWS = ("Reshape", "Unsqueeze", "Flatten", "Squeeze")


@dataclass(frozen=True, slots=True, kw_only=True)
class FuseRepeats(RulePass):
    """Turn the repetition of heads, or of other parts, into one Gather.

    Matches:   A view that inserts an axis of size 1, Expand or Tile that repeats along it, and Reshape that merges it
               with the axis before or behind, each read by the next alone: ``repeat_interleave`` and ``repeat`` of
               PyTorch, the repetition of keys and values in grouped-query attention.
    Produces:  Gather along the axis with constant indices: 0, 0, 1, 1, ... or 0, 1, ..., 0, 1, .... Two nodes less, and
               the target shapes are no longer computed; one less where the view did more than to insert the axis, and
               stays as a Reshape. The same bytes are moved.
    Requires:  The size of the axis and the number of repetitions are numbers, at most 1024 together; every other size
               is proved to stay.
    Preserves: Every output bitwise; names, types and shapes.
    Source:    Ainslie et al. 2023, GQA, arXiv:2305.13245, section 2: heads that share keys and values.
    """

    name: ClassVar[str] = "fuse-repeats"
    contract: ClassVar[Contract] = Contract.EXACT
    requires: ClassVar[tuple[type[Any], ...]] = (Types,)

    def rules(self, model: Model, facts: Facts) -> Sequence[Rule]:
        """Return the rule for the Reshape behind the repetition."""
        types = facts.get(Types)

        def fused(node: Node) -> Patch | None:
            repeat = _before(node, "Expand", "Tile")
            view = None if repeat is None else _before(repeat, *_VIEWS)
            if repeat is None or view is None:
                return None
            shapes = [types.shape(tensor) for tensor in (view.inputs[0], *_outputs(view, repeat, node))]
            source, viewed, repeated, merged = shapes
            if source is None or viewed is None or repeated is None or merged is None:
                return None
            found = _repetition(viewed, repeated, merged)
            if found is None:
                return None
            if source == found.shape:
                return _patch(node, (repeat, view), found, None)
            target = constant_target(found.shape, source, allow_zero=False)
            return None if isinstance(target, str) else _patch(node, (repeat, view), found, target)

        return [Rule(("Reshape",), fused, depth=2)]


def _before(node: Node, *ops: str) -> Node | None:
    """Return the node that computes the data of a node for it alone, if it is one of these operators."""
    before = producer(node.inputs[0])
    if before is None or not is_op(before, *ops) or before.graph is not node.graph or refers_to_function(before):
        return None
    output = before.outputs[0]
    return before if len(output.outputs) == 1 and not is_graph_output(output) else None


def _outputs(*nodes: Node) -> list[Tensor]:
    return [node.outputs[0] for node in nodes]


@dataclass(frozen=True, slots=True)
class _Repetition:
    """What is repeated.

    Attributes:
        shape: The shape without the axis of size 1.
        axis: The axis of it whose parts are repeated.
        indices: The parts, in order.
    """

    shape: tuple[Dim, ...]
    axis: int
    indices: list[int]


def _repetition(viewed: tuple[Dim, ...], repeated: tuple[Dim, ...], merged: tuple[Dim, ...]) -> _Repetition | None:
    if len(viewed) != len(repeated):
        return None
    changed = [axis for axis, (old, new) in enumerate(zip(viewed, repeated, strict=True)) if old != new]
    if len(changed) != 1 or viewed[changed[0]] != 1:
        return None
    inserted = changed[0]
    count = repeated[inserted]
    shape = (*viewed[:inserted], *viewed[inserted + 1 :])
    # the axis before the inserted one repeats each part, the one behind it repeats all of them
    for axis in (inserted - 1, inserted):
        size = shape[axis] if 0 <= axis < len(shape) else None
        if not isinstance(size, int) or not isinstance(count, int) or size * count > _LONGEST:
            continue
        if merged == (*shape[:axis], size * count, *shape[axis + 1 :]):
            once = list(range(size))
            each = [index for index in once for _ in range(count)]
            return _Repetition(shape, axis, each if axis < inserted else once * count)
    return None


def _patch(node: Node, before: tuple[Node, Node], found: _Repetition, target: list[int] | None) -> Patch:
    def apply(rewriter: Rewriter) -> None:
        data = before[1].inputs[0]
        if target is not None:
            data = rewriter.op("Reshape", [data, _vector(rewriter, node, target)], near=node, origin=[before[1]])
        picked = _vector(rewriter, node, found.indices)
        made = rewriter.op("Gather", [data, picked], attrs={"axis": found.axis}, like=node.outputs[0], near=node)
        rewriter.replace_tensor(node.outputs[0], made)
        erase_unread(rewriter, [node.outputs[0]])

    return Patch(f"repeat along axis {found.axis} with one Gather", (node, *before), apply)


def _vector(rewriter: Rewriter, node: Node, entries: list[int]) -> Tensor:
    constant: Tensor = rewriter.constant(np.array(entries, np.int64), near=node)
    return constant
