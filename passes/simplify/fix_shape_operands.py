"""Give Expand, Slice, Gather and Resize constants where they compute from shapes what constants can say."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from graphopt.analysis.dims import at_least, exact_div
from graphopt.analysis.shape_values import ShapeValues
from graphopt.analysis.types import Types
from graphopt.graph import constant_value
from graphopt.passes.simplify.purity import is_constant, refers_to_function
from graphopt.passes.simplify.removal import erase_unread
from graphopt.rewrite.driver import Rule, RulePass
from graphopt.rewrite.patch import Patch
from graphopt.verify.contract import Contract

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from graphopt.analysis.dims import Dim
    from graphopt.analysis.manager import Facts
    from graphopt.graph import Model, Node, Rewriter

Array = np.ndarray[Any, Any]

_LARGEST_SCALE = 64
_INTEGER_TYPES: dict[int, type[np.signedinteger[Any]]] = {6: np.int32, 7: np.int64}


@dataclass(frozen=True, slots=True, kw_only=True)
class FixShapeOperands(RulePass):
    """Replace computed targets, bounds, indices and sizes by constants that mean the same for every shape.

    Matches:   Expand, Slice with positive steps, Gather and Resize, where the operand is computed from shapes.
    Produces:  Constants: in the target of Expand 1 for every size that the input has already; in the bounds of Slice
               and the indices of Gather a negative number for what is counted from the end, and the largest integer for
               "to the end"; for Resize scales instead of sizes that are whole multiples. The nodes that computed the
               operand go unless something else reads them: one to dozens of small nodes.
    Requires:  The elements are proved to be these sizes, or to be that far from the end, on an axis that is proved to
               be long enough. Resize stretches, and each size is the input's times a whole number up to 64.
    Preserves: Every output bitwise; names, types and shapes.
    Source:    ONNX operators Expand 8, Slice 10, Gather 11, Resize 11: broadcasting, negative indices, scales.
    """

    name: ClassVar[str] = "fix-shape-operands"
    contract: ClassVar[Contract] = Contract.EXACT
    requires: ClassVar[tuple[type[Any], ...]] = (Types, ShapeValues)

    def rules(self, model: Model, facts: Facts) -> Sequence[Rule]:
        """Return a rule for each operator."""
        operands = _Operands(facts.get(Types), facts.get(ShapeValues))
        return [
            Rule((op,), _guarded(fixed))
            for op, fixed in (
                ("Expand", operands.expand),
                ("Slice", operands.slice),
                ("Gather", operands.gather),
                ("Resize", operands.resize),
            )
        ]


def _guarded(fixed: Callable[[Node], Patch | None]) -> Callable[[Node], Patch | None]:
    return lambda node: None if refers_to_function(node) else fixed(node)


@dataclass(frozen=True, slots=True)
class _Operands:
    types: Types
    values: ShapeValues

    def entries(self, node: Node, index: int) -> tuple[Dim, ...] | None:
        """Return the elements of an operand that is computed, None where it is constant or not known."""
        if index >= len(node.inputs) or not node.inputs[index].name or is_constant(node.inputs[index]):
            return None
        return self.values.value(node.inputs[index])

    def expand(self, node: Node) -> Patch | None:
        """Fix the target of an Expand."""
        entries, shape = self.entries(node, 1), self.types.shape(node.inputs[0])
        if entries is None or shape is None:
            return None
        added = len(entries) - len(shape)
        target = [1 if axis >= added and entry == shape[axis - added] else entry for axis, entry in enumerate(entries)]
        return self._patch(node, 1, target)

    def slice(self, node: Node) -> Patch | None:
        """Fix the bounds of a Slice."""
        shape = self.types.shape(node.inputs[0])
        bounds = {index: entries for index in (1, 2) if (entries := self.entries(node, index)) is not None}
        if shape is None or not bounds:
            return None
        count = len(next(iter(bounds.values())))
        axes, steps = _constants(node, 3, list(range(count))), _constants(node, 4, [1] * count)
        if axes is None or steps is None or min(steps, default=1) < 1:
            return None
        for index, entries in bounds.items():
            sizes = [shape[axis] for axis in axes]
            patch = self._patch(node, index, [_from_end(*pair) for pair in zip(entries, sizes, strict=True)])
            if patch is not None:
                return patch
        return None

    def gather(self, node: Node) -> Patch | None:
        """Fix the indices of a Gather."""
        assert node.graph is not None
        entries, shape = self.entries(node, 1), self.types.shape(node.inputs[0])
        if entries is None or not shape or node.graph.opset < 11:
            return None
        size = shape[int(node.attrs.get("axis", 0))]
        indices = [_from_end(entry, size) for entry in entries]
        # an index at or behind the end is an error, so it is left as it is
        return self._patch(node, 1, indices) if all(entry != _END for entry in indices) else None

    def resize(self, node: Node) -> Patch | None:
        """Give a Resize scales."""
        entries, shape = self.entries(node, 3), self.types.shape(node.inputs[0])
        if entries is None or shape is None or not _stretches(node):
            return None
        axes = [int(axis) for axis in node.attrs.get("axes", range(len(shape)))]
        scales = [exact_div(entry, shape[axis]) for entry, axis in zip(entries, axes, strict=True)]
        if not all(isinstance(scale, int) and 1 <= scale <= _LARGEST_SCALE for scale in scales):
            return None
        value = np.array(scales, np.float32)

        def apply(rewriter: Rewriter) -> None:
            sizes = node.inputs[3]
            rewriter.set_input(node, 2, rewriter.constant(value, name=f"{node.outputs[0].name}__scales", near=node))
            rewriter.set_input(node, 3, None)
            erase_unread(rewriter, [sizes])

        return Patch(f"resize by {scales}", (node,), apply)

    def _patch(self, node: Node, index: int, entries: Sequence[Dim]) -> Patch | None:
        """Return the patch that makes an operand constant, None where an element is no number."""
        computed = node.inputs[index]
        element = _INTEGER_TYPES.get(self.types.dtype(computed))
        shape = self.types.static_shape(computed)
        if element is None or shape is None or not all(isinstance(entry, int) for entry in entries):
            return None
        most = int(np.iinfo(element).max)
        value = np.array([most if entry == _END else entry for entry in entries], element).reshape(shape)

        def apply(rewriter: Rewriter) -> None:
            name = f"{node.outputs[0].name}__operand"
            rewriter.set_input(node, index, rewriter.constant(value, name=name, near=node))
            erase_unread(rewriter, [computed])

        return Patch(f"input {index} of {node.op} is {value.tolist()}", (node,), apply)


_END = 2**63 - 1


def _from_end(entry: Dim, size: Dim) -> Dim:
    """Return a bound as a number: the largest for the end or behind it, negative before it; itself where unproved."""
    if isinstance(entry, int):
        return entry
    if at_least(entry, size):
        return _END
    distance = entry - size
    # -1 means the same on an empty axis, too
    return distance if isinstance(distance, int) and (distance == -1 or at_least(size, -distance)) else entry


def _constants(node: Node, index: int, default: list[int]) -> list[int] | None:
    if index >= len(node.inputs) or not node.inputs[index].name:
        return default
    value: Array | None = constant_value(node.inputs[index])
    return None if value is None else [int(entry) for entry in value.ravel()]


def _stretches(node: Node) -> bool:
    """Whether a Resize only scales: it crops nothing and keeps no aspect ratio."""

    def text(name: str, default: str) -> str:
        value = node.attrs.get(name, default)
        return value.decode() if isinstance(value, bytes) else str(value)

    return (
        text("coordinate_transformation_mode", "half_pixel") != "tf_crop_and_resize"
        and text("keep_aspect_ratio_policy", "stretch") == "stretch"
    )
