"""What shape rules work on: the facts known of a tensor, and one node with the facts of its inputs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from onnx import TensorProto

from graphopt.analysis.dim_extremes import maximum
from graphopt.analysis.dims import at_least, atom_of, differ

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray
    from onnx import TypeProto

    from graphopt.analysis.dims import Dim

VALUE_LIMIT = 256
"""Largest number of elements of a tensor whose value is followed through shape computations."""

PartialShape: TypeAlias = "tuple[Dim | None, ...]"
"""A shape as a rule gives it: None marks a dimension the rule does not know."""

Value: TypeAlias = "NDArray[np.object_]"
"""The value of a small tensor: an object array of int, float, bool, symbolic expressions, and None for unknown."""

INTEGERS: frozenset[int] = frozenset(
    {
        TensorProto.INT64,
        TensorProto.INT32,
        TensorProto.INT16,
        TensorProto.INT8,
        TensorProto.UINT64,
        TensorProto.UINT32,
        TensorProto.UINT16,
        TensorProto.UINT8,
    }
)


@dataclass(slots=True, eq=False)
class Known:
    """What is known of one tensor.

    Attributes:
        dtype: The element type as the ONNX enum, 0 where unknown.
        shape: The shape, None where not even the rank is known.
        value: The elements, where the tensor is small and they are known at least in part.
        proto: The ONNX type of a value that is not a dense tensor (sequence, optional, map, sparse), else None.
    """

    dtype: int = 0
    shape: PartialShape | None = None
    value: Value | None = None
    proto: TypeProto | None = None


NOTHING = Known()


class ShapeClashError(Exception):
    """The inputs of a node contradict each other or its attributes: the node cannot run as it stands."""


class Site:
    """One node as a rule sees it.

    Args:
        op: The operator type.
        attrs: The attributes by name, as Python values.
        known: The facts of the inputs, None for an omitted one.
        outputs: The number of outputs.
        opset: The version of the operator's domain that the model imports.
        read: Reads the value of a constant input on demand; given the index of the input.
    """

    __slots__ = ("_read", "attrs", "known", "op", "opset", "outputs")

    def __init__(
        self,
        op: str,
        attrs: dict[str, Any],
        known: Sequence[Known | None],
        outputs: int,
        opset: int,
        read: Callable[[int], Value | None],
    ) -> None:
        self.op = op
        self.attrs = attrs
        self.known = known
        self.outputs = outputs
        self.opset = opset
        self._read = read

    def has(self, index: int) -> bool:
        """Return whether the input is given."""
        return index < len(self.known) and self.known[index] is not None

    def input(self, index: int) -> Known:
        """Return what is known of an input; nothing for an omitted one."""
        known = self.known[index] if index < len(self.known) else None
        return NOTHING if known is None else known

    def dtype(self, index: int) -> int:
        """Return the element type of an input, 0 where unknown."""
        return self.input(index).dtype

    def shape(self, index: int) -> PartialShape | None:
        """Return the shape of an input, None where its rank is unknown."""
        return self.input(index).shape

    def value(self, index: int) -> Value | None:
        """Return the value of an input, None where it is unknown, omitted or large."""
        if not self.has(index):
            return None
        known = self.input(index)
        return known.value if known.value is not None else self._read(index)

    def ints(self, index: int) -> list[int] | None:
        """Return the elements of an input as plain integers, None unless every one is known and an integer."""
        value = self.value(index)
        if value is None:
            return None
        flat = value.ravel().tolist()
        return flat if all(type(entry) is int for entry in flat) else None

    def floats(self, index: int) -> list[float] | None:
        """Return the elements of an input as floats, None unless every one is a known number."""
        value = self.value(index)
        if value is None:
            return None
        flat = value.ravel().tolist()
        return [float(entry) for entry in flat] if all(isinstance(entry, int | float) for entry in flat) else None

    def dims(self, index: int) -> list[Dim | None] | None:
        """Return the elements of an integer input as dimensions, None where the value is unknown."""
        value = self.value(index)
        return None if value is None else value.ravel().tolist()

    def attr_int(self, name: str, default: int) -> int:
        """Return an integer attribute."""
        found = self.attrs.get(name)
        return default if found is None else int(found)

    def attr_ints(self, name: str) -> list[int] | None:
        """Return an attribute that is a list of integers, None where it is absent."""
        found = self.attrs.get(name)
        return None if found is None else [int(entry) for entry in found]

    def attr_text(self, name: str, default: str) -> str:
        """Return a string attribute."""
        found = self.attrs.get(name)
        if found is None:
            return default
        return found.decode() if isinstance(found, bytes) else str(found)

    def axes(self, index: int) -> list[int] | None:
        """Return the axes a node names by its attribute ``axes`` or by the input at this index; None where unknown."""
        return self.attr_ints("axes") if "axes" in self.attrs else self.ints(index)


def broadcast(*shapes: PartialShape | None) -> PartialShape | None:
    """Return the shape that multidirectional broadcasting gives.

    Raises:
        ShapeClashError: Two sizes differ and neither is 1.
    """
    result = shapes[0]
    for shape in shapes[1:]:
        if result is None or shape is None:
            return None
        result = _broadcast_two(result, shape)
    return result


def _broadcast_two(a: PartialShape, b: PartialShape) -> PartialShape:
    if a == b and None not in a:
        return a
    if len(a) < len(b):
        a, b = b, a
    split = len(a) - len(b)
    return (*a[:split], *[broadcast_dim(x, y) for x, y in zip(a[split:], b, strict=True)])


def broadcast_dim(a: Dim | None, b: Dim | None) -> Dim | None:
    """Return the size of one axis after broadcasting, None where it is not known.

    Raises:
        ShapeClashError: The sizes differ and neither is 1.
    """
    if a is b and a is not None:
        return a
    if isinstance(a, int):
        if a == 1:
            return b
        if isinstance(b, int) and b not in {1, a}:
            msg = f"sizes {a} and {b} do not broadcast"
            raise ShapeClashError(msg)
        return a
    if isinstance(b, int):
        return a if b == 1 else b
    if a is None or b is None:
        return None
    # Two different expressions: a size that is at least 2 is the result, because the other one must be 1 or the same.
    # So is x beside min(x, 512): they are equal unless x is above 512, and then the node fails.
    for dim, other in ((a, b), (b, a)):
        if at_least(dim, 2) or _is_capped(other, dim):
            return dim
    return maximum(a, b) if at_least(a, 1) and at_least(b, 1) else None


def _is_capped(dim: Dim, size: Dim) -> bool:
    """Return whether ``dim`` is the minimum of ``size`` and of numbers that are at least 1."""
    call = atom_of(dim)
    if call is None or call.kind != "min":
        return False
    return all(arg is size or (isinstance(arg, int) and arg >= 1) for arg in call.args) and size in call.args


def unify_dim(a: Dim | None, b: Dim | None) -> Dim | None:
    """Return what is known of a size that two sources describe: the more exact of the two.

    Raises:
        ShapeClashError: The two are proved to differ.
    """
    if a is b or a is None or b is None:
        return b if a is None else a
    if differ(a, b):
        msg = f"sizes {a} and {b} must be equal"
        raise ShapeClashError(msg)
    if isinstance(a, int):
        return a
    return b if isinstance(b, int) or b.size < a.size else a


def normalized(axis: int, rank: int) -> int:
    """Return the axis counted from the front.

    Raises:
        ShapeClashError: There is no such axis.
    """
    if not -rank <= axis < rank:
        msg = f"axis {axis} is outside rank {rank}"
        raise ShapeClashError(msg)
    return axis % rank


def permuted(perm: Sequence[int], rank: int) -> list[int]:
    """Return the permutation with its axes counted from the front.

    Raises:
        ShapeClashError: It is not a permutation of all axes.
    """
    axes = [normalized(axis, rank) for axis in perm]
    if sorted(axes) != list(range(rank)):
        msg = f"{list(perm)} is not a permutation of {rank} axes"
        raise ShapeClashError(msg)
    return axes


def as_value(entries: Sequence[object], shape: tuple[int, ...] | None = None) -> Value:
    """Return the entries as an object array of this shape; one axis where none is given."""
    value = np.empty(len(entries), dtype=np.object_)
    value[:] = entries
    return value if shape is None else value.reshape(shape)
