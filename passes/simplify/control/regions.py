"""Regions of tensors along one axis: what a scatter overwrites, what a Slice or a Gather reads."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING, Any

import numpy as np

from graphopt.graph import Node, constant_value, producer
from graphopt.passes.simplify.folding.evaluation import evaluate
from graphopt.passes.simplify.look import Look, small_constant
from graphopt.passes.simplify.purity import is_constant, is_op, refers_to_function, why_impure
from graphopt.rewrite.driver import position

if TYPE_CHECKING:
    from graphopt.analysis.shape_values import ShapeValues
    from graphopt.analysis.types import Types
    from graphopt.graph import Tensor

Array = np.ndarray[Any, Any]

SCATTERS = ("ScatterND", "ScatterElements", "Scatter")

_MOST_INDICES = 1 << 20
_MOST_STEPS = 32


@dataclass(frozen=True, slots=True)
class Region:
    """All elements of a tensor whose index on one axis lies in a range.

    Attributes:
        axis: The axis, counted from the front.
        start: First index.
        stop: One past the last index.
        size: Number of indices that the axis has.
    """

    axis: int
    start: int
    stop: int
    size: int

    @property
    def is_whole(self) -> bool:
        """Whether it is the whole tensor."""
        return self.start == 0 and self.stop == self.size

    def is_apart(self, other: Region) -> bool:
        """Whether two regions along the same axis share no element."""
        return self.axis == other.axis and (self.stop <= other.start or other.stop <= self.start)


class Regions:
    """Finds regions; the indices of a scatter are computed once.

    Args:
        types: Types of the tensors.
        values: Values of shape computations.
    """

    def __init__(self, types: Types, values: ShapeValues) -> None:
        self.types = types
        self.values = values
        self._indices: dict[Tensor, Array | None] = {}
        self._written: dict[tuple[Node, Tensor], Region | None] = {}

    # -------------------------------------------------------------------------------------------------------- writing

    def written(self, node: Node | None) -> Region | None:
        """Return what a scatter overwrites, if that is a region and its updates have the shape of it; else None."""
        if node is None or not is_op(node, *SCATTERS) or refers_to_function(node):
            return None
        if node.attrs.get("reduction", "none") not in {"none", b"none"}:
            return None
        key = (node, node.inputs[1])
        if key not in self._written:
            self._written[key] = self._by_vectors(node) if node.op == "ScatterND" else self._by_elements(node)
        return self._written[key]

    def _by_vectors(self, node: Node) -> Region | None:
        data, given, updates = (self.types.static_shape(tensor) for tensor in node.inputs[:3])
        if data is None or given is None or updates is None or not given or prod(data) == 0:
            return None
        axes = given[-1]
        if len(given) - 1 != axes or axes > len(data) or updates != (*given[:-1], *data[axes:]):
            return None
        partial = [axis for axis in range(axes) if updates[axis] != data[axis]]
        indices = self._constant(node.inputs[1]) if len(partial) <= 1 and 0 not in updates else None
        if indices is None:
            return None
        starts = []
        for axis in range(axes):
            entries = indices[..., axis]
            entries = np.where(entries < 0, entries + data[axis], entries)
            starts.append(_first_of_range(entries, axis))
        return _region(starts, updates, data)

    def _by_elements(self, node: Node) -> Region | None:
        data, given, updates = (self.types.static_shape(tensor) for tensor in node.inputs[:3])
        if data is None or given is None or updates != given or len(given) != len(data) or prod(given) == 0:
            return None
        written = int(node.attrs.get("axis", 0)) % len(data)
        partial = [axis for axis in range(len(data)) if given[axis] != data[axis]]
        indices = self._constant(node.inputs[1]) if len(partial) <= 1 else None
        if indices is None:
            return None
        entries = np.where(indices < 0, indices + data[written], indices)
        starts: list[int | None] = [0] * len(data)
        starts[written] = _first_of_range(entries, written)
        return _region(starts, given, data)

    def _constant(self, tensor: Tensor) -> Array | None:
        """Return the value of a tensor that only constants determine, stored or computed."""
        shape = self.types.static_shape(tensor)
        if shape is None or prod(shape) > _MOST_INDICES:
            return None
        if is_constant(tensor):
            return constant_value(tensor)
        if tensor not in self._indices:
            self._indices[tensor] = self._computed(tensor)
        return self._indices[tensor]

    def _computed(self, tensor: Tensor) -> Array | None:
        nodes: dict[Node, None] = {}
        stack = [tensor]
        while stack:
            made = producer(stack.pop())
            if made is None or made.graph is None or why_impure(made) or len(nodes) > _MOST_STEPS:
                return None
            for output in made.outputs:
                shape = self.types.static_shape(output) if output.name else ()
                if shape is None or prod(shape) > _MOST_INDICES:
                    return None
            nodes[made] = None
            stack.extend(t for t in made.inputs if t.name and not is_constant(t) and producer(t) not in nodes)
        graph = next(iter(nodes)).graph
        assert graph is not None
        elements = {output: self.types.dtype(output) for node in nodes for output in node.outputs if output.name}
        ordered = sorted(nodes, key=position)
        found = evaluate(ordered, [tensor], elements, {}, opset=graph.opset, ir_version=graph.ir_version or 4)
        return found.values.get(tensor)

    # -------------------------------------------------------------------------------------------------------- reading

    def read(self, node: Node) -> Region | None:
        """Return the region that a Slice gives out, or around what a Gather picks by constants; None for others."""
        if refers_to_function(node):
            return None
        if is_op(node, "Slice"):
            return self._sliced(node)
        return self._gathered(node) if is_op(node, "Gather") else None

    def _sliced(self, node: Node) -> Region | None:
        look = Look(node, self.types, self.values)
        shape = self.types.shape(node.inputs[0])
        starts, ends, axes = look.ints(1, "starts"), look.ints(2, "ends"), look.ints(3, "axes")
        steps = look.ints(4, "steps") if len(node.inputs) > 4 and node.inputs[4].name else None
        if shape is None or starts is None or ends is None or len(starts) != len(ends):
            return None
        if axes is None:
            if len(node.inputs) > 3 and node.inputs[3].name:
                return None
            axes = list(range(len(starts)))
        if len(node.inputs) > 4 and node.inputs[4].name and (steps is None or any(step != 1 for step in steps)):
            return None
        found: Region | None = None
        for axis, start, end in zip(axes, starts, ends, strict=True):
            place = axis % len(shape)
            size = shape[place]
            if not isinstance(size, int):
                return None
            first, last = _clamped(start, size), _clamped(end, size)
            if (first, last) == (0, size):
                continue
            if found is not None or last <= first:
                return None
            found = Region(place, first, last, size)
        return found

    def _gathered(self, node: Node) -> Region | None:
        shape = self.types.shape(node.inputs[0])
        indices = small_constant(node.inputs[1])
        if shape is None or indices is None or indices.size == 0:
            return None
        axis = int(node.attrs.get("axis", 0)) % len(shape)
        size = shape[axis]
        if not isinstance(size, int):
            return None
        entries = np.where(indices < 0, indices + size, indices)
        return Region(axis, int(entries.min()), int(entries.max()) + 1, size)


def _clamped(index: int, size: int) -> int:
    return min(max(index + size if index < 0 else index, 0), size)


def _first_of_range(entries: Array, axis: int) -> int | None:
    """Return the first index where the entries count up by one along an axis and are the same along the others."""
    first = int(entries.reshape(-1)[0])
    counted = np.arange(first, first + entries.shape[axis]).reshape(
        [-1 if i == axis else 1 for i in range(entries.ndim)]
    )
    return first if np.array_equal(entries, np.broadcast_to(counted, entries.shape)) else None


def _region(starts: list[int | None], sizes: tuple[int, ...], data: tuple[int, ...]) -> Region | None:
    """Return the region that begins at the starts, full on all axes but one at most."""
    found: Region | None = None
    for axis, start in enumerate(starts):
        if start is None or start < 0 or start + sizes[axis] > data[axis]:
            return None
        if sizes[axis] != data[axis]:
            found = Region(axis, start, start + sizes[axis], data[axis])
    return found or Region(0, 0, data[0], data[0])
