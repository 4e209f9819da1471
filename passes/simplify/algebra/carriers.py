"""Nodes that do the same whatever the shape of their data is, as long as the axes they work along are there.

A node that works on each element does not care for the shape at all; one that works along an axis (Slice, Gather, Pad)
needs an axis with as many elements in front of it and behind it, one that works on rows the same last axis.
`Carrier.past` finds out whether a node that reads a view can read what the view reads, and how it is stated then.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from graphopt.analysis.dims import product
from graphopt.passes.simplify.purity import DEFAULT_DOMAINS, is_constant, refers_to_function

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from graphopt.analysis.dims import Dim
    from graphopt.graph import Rewriter, Tensor
    from graphopt.passes.simplify.look import Array, Look

# fmt: off
UNARY = frozenset({
    "Abs", "Acos", "Acosh", "Asin", "Asinh", "Atan", "Atanh", "BitwiseNot", "Cast", "Ceil", "Celu", "Clip", "Cos",
    "Cosh", "Elu", "Erf", "Exp", "Floor", "Gelu", "HardSigmoid", "HardSwish", "Identity", "IsInf", "IsNaN",
    "LeakyRelu", "Log", "Mish", "Neg", "Not", "Reciprocal", "Relu", "Round", "Selu", "Shrink", "Sigmoid", "Sign",
    "Sin", "Sinh", "Softplus", "Softsign", "Sqrt", "Swish", "Tan", "Tanh", "ThresholdedRelu",
})
# fmt: on
"""Operators that work on each element of their first input; further inputs hold one element."""

# fmt: off
BINARY = frozenset({
    "Add", "And", "BitShift", "BitwiseAnd", "BitwiseOr", "BitwiseXor", "Div", "Equal", "Greater",
    "GreaterOrEqual", "Less", "LessOrEqual", "Max", "Min", "Mod", "Mul", "Or", "Pow", "PRelu", "Sub", "Xor",
})
# fmt: on
"""Operators that work on each element of two inputs, which broadcast."""

LAST_AXIS = frozenset({"Softmax", "LogSoftmax", "Hardmax", "LayerNormalization", "RMSNormalization"})
"""Operators that work on each row along an axis; taken where that is the last one."""

Shape: TypeAlias = "tuple[Dim, ...]"
Again: TypeAlias = "Callable[[Rewriter, Tensor], Tensor]"
"""Makes the node once more, on other data."""


@dataclass(frozen=True, slots=True)
class Carrier:
    """A node that a view can move past.

    Attributes:
        look: The node.
        index: Which of its inputs the view is.
    """

    look: Look
    index: int

    @property
    def data(self) -> Tensor:
        """The input that the view is."""
        found: Tensor = self.look.node.inputs[self.index]
        return found

    def past(self, shape: Shape, seen: Shape) -> tuple[Shape, Again] | None:
        """Return the shape of what the node makes of the data before the view, and how; None where it cannot.

        Args:
            shape: The shape before the view.
            seen: The shape after the view, which the node reads now.
        """
        op, made = self.look.node.op, self.look.shape(self.look.output)
        if made is None:
            return None
        if op in UNARY:
            return (shape, self._again({})) if made == seen else None
        if op in BINARY:
            return self._binary(shape, seen) if made == seen else None
        if op == "MatMul":
            return self._matmul(shape, seen, made)
        if op in LAST_AXIS:
            return self._rows(shape, seen)
        if op == "Gather":
            return self._gather(shape, seen)
        if op == "Slice":
            return self._slice(shape, seen, made)
        return self._pad(shape, seen, made)

    def _again(self, inputs: dict[int, Array], attrs: dict[str, Any] | None = None, count: int = 0) -> Again:
        """Return what makes the node once more with some inputs and attributes of its own."""
        node = self.look.node

        def make(rewriter: Rewriter, data: Tensor) -> Tensor:
            given: list[Tensor | None] = [tensor if tensor.name else None for tensor in node.inputs]
            given[self.index] = data
            for index, value in inputs.items():
                given.extend([None] * (index + 1 - len(given)))
                given[index] = rewriter.constant(value, near=node)
            if count:
                del given[count:]
            while given[-1] is None:
                given.pop()
            stated = {**node.attrs, **(attrs or {})}
            made: Tensor = rewriter.op(node.op, given, attrs=stated, near=node, origin=[node])
            return made

        return make

    def _binary(self, shape: Shape, seen: Shape) -> tuple[Shape, Again] | None:
        other = 1 - self.index
        value = self.look.constant(other)
        if value is None or self.look.opset < 7:
            return None
        if value.size == 1:
            return shape, self._again({other: value.reshape(())} if value.ndim > len(shape) else {})
        wide = [axis for axis in range(-value.ndim, 0) if value.shape[axis] != 1]
        first = wide[0] if wide else 0
        if -first <= len(shape) and tuple(shape[first:]) == tuple(seen[first:]):
            return shape, self._again({other: value.reshape(value.shape[first:])} if value.ndim > len(shape) else {})
        axis = axis_before(shape, seen, len(seen) + first) if len(wide) == 1 else None
        if axis is None:
            return None
        return shape, self._again({other: value.reshape([-1] + [1] * (len(shape) - axis - 1))})

    def _matmul(self, shape: Shape, seen: Shape, made: Shape) -> tuple[Shape, Again] | None:
        """A product with a matrix: all rows in front of the last axis are one batch, however they are laid out."""
        weight = self.look.shape(self.look.node.inputs[1])
        if weight is None or len(weight) != 2 or len(shape) < 2 or len(seen) < 2 or shape[-1] != seen[-1]:
            return None
        return (*shape[:-1], made[-1]), self._again({})

    def _rows(self, shape: Shape, seen: Shape) -> tuple[Shape, Again] | None:
        """A function of each row: the rows follow each other, however many axes count them."""
        normalizes = self.look.node.op.endswith("Normalization")
        default = -1 if normalizes or self.look.opset >= 13 else 1
        axis = self.look.axis("axis", default, len(seen))
        if axis != len(seen) - 1 or not shape or shape[-1] != seen[-1]:
            return None
        if any(self.look.types.rank(tensor) != 1 for tensor in self.look.node.inputs[1:] if tensor.name):
            return None
        return shape, self._again({}, {"axis": len(shape) - 1})

    def _gather(self, shape: Shape, seen: Shape) -> tuple[Shape, Again] | None:
        axis = self.look.axis("axis", 0, len(seen))
        indices = self.look.shape(self.look.node.inputs[1])
        before = None if axis is None else axis_before(shape, seen, axis)
        if before is None or indices is None:
            return None
        return (*shape[:before], *indices, *shape[before + 1 :]), self._again({}, {"axis": before})

    def _slice(self, shape: Shape, seen: Shape, made: Shape) -> tuple[Shape, Again] | None:
        starts = self.look.ints(1, "starts")
        axes = self.look.ints(3, "axes")
        if axes is None and (self.look.input(3) is not None or starts is None):
            return None
        axes = list(range(len(starts or ()))) if axes is None else [axis % len(seen) for axis in axes]
        moved = _axes_before(shape, seen, axes)
        if moved is None:
            return None
        after = _with_sizes(shape, moved, [made[axis] for axis in axes])
        if self.look.opset < 10:
            return after, self._again({}, {"axes": moved})
        kind = self.look.dtype(self.look.node.inputs[1])
        return after, self._again({3: np.array(moved, np.int32 if kind == 6 else np.int64)})

    def _pad(self, shape: Shape, seen: Shape, made: Shape) -> tuple[Shape, Again] | None:
        pads = self.look.ints(1, "pads")
        if pads is None or self.look.opset < 2:
            return None
        axes = list(range(len(seen)))
        if self.look.input(3) is not None:
            given = self.look.ints(3, "axes")
            if given is None:
                return None
            axes = [axis % len(seen) for axis in given]
        count = len(axes)
        wide = [place for place in range(count) if pads[place] or pads[count + place]]
        moved = _axes_before(shape, seen, [axes[place] for place in wide])
        if moved is None or len(pads) != 2 * count:
            return None
        new = [0] * (2 * len(shape))
        for place, axis in zip(wide, moved, strict=True):
            new[axis], new[len(shape) + axis] = pads[place], pads[count + place]
        after = _with_sizes(shape, moved, [made[axes[place]] for place in wide])
        if self.look.opset < 11:
            return after, self._again({}, {"pads": new})
        return after, self._again({1: np.array(new, np.int64)}, count=3)


def carrier(look: Look) -> Carrier | None:
    """Return a node as what a view can move past; None where it is no such node."""
    node = look.node
    if node.domain not in DEFAULT_DOMAINS or len(node.outputs) != 1 or not node.inputs:
        return None
    if node.op in BINARY:
        if len(node.inputs) != 2 or refers_to_function(node):
            return None
        for index in (0, 1):
            if is_constant(node.inputs[1 - index]) and (node.op != "PRelu" or index == 0):
                return Carrier(look, index)
        return None
    if node.op == "MatMul":
        return Carrier(look, 0) if len(node.inputs) == 2 and is_constant(node.inputs[1]) else None
    if node.op not in UNARY and node.op not in LAST_AXIS and node.op not in {"Gather", "Slice", "Pad"}:
        return None
    return None if refers_to_function(node) else Carrier(look, 0)


def axis_before(shape: Sequence[Dim], seen: Sequence[Dim], axis: int) -> int | None:
    """Return the axis of a tensor that is an axis of a view of it; None where none is proved to be.

    Args:
        shape: The shape before the view.
        seen: The shape after it.
        axis: The axis there.
    """
    front, behind = product(list(seen[:axis])), product(list(seen[axis + 1 :]))
    for found, size in enumerate(shape):
        if size == seen[axis] and product(list(shape[:found])) == front and product(list(shape[found + 1 :])) == behind:
            return found
    return None


def _axes_before(shape: Shape, seen: Shape, axes: Sequence[int]) -> list[int] | None:
    found = [axis_before(shape, seen, axis) for axis in axes]
    moved = [axis for axis in found if axis is not None]
    return moved if len(moved) == len(axes) == len(set(moved)) else None


def _with_sizes(shape: Shape, axes: Sequence[int], sizes: Sequence[Dim]) -> Shape:
    new = list(shape)
    for axis, size in zip(axes, sizes, strict=True):
        new[axis] = size
    return tuple(new)
