"""Slices as ranges per axis, and what two ranges after each other select."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from graphopt.passes.simplify.removal import restate

if TYPE_CHECKING:
    from graphopt.analysis.dims import Dim
    from graphopt.graph import Node, Rewriter, Tensor
    from graphopt.passes.simplify.look import Look

FAR = (1 << 31) - 1
"""Ends from here on mean "as far as there is", whatever type they are written in."""

LAST = (1 << 63) - 1
"""How such an end is written."""


@dataclass(frozen=True, slots=True)
class Range:
    """The elements that a Slice selects along one axis.

    Attributes:
        start: First element; negative counts from the end.
        end: First element that is not selected; negative counts from the end.
        step: Distance, not 0.
    """

    start: int
    end: int
    step: int

    def of(self, size: int) -> range:
        """Return the elements of an axis of a known size."""
        start = self.start + size if self.start < 0 else self.start
        end = self.end + size if self.end < 0 else self.end
        if self.step > 0:
            return range(min(max(start, 0), size), min(max(end, 0), size), self.step)
        return range(min(max(start, 0), size - 1), min(max(end, -1), size - 1), self.step)

    def starts_in_front(self, size: int) -> bool:
        """Whether it goes backwards from in front of the first element: evaluators do not agree what that selects."""
        return self.step < 0 and self.start < -size

    def then(self, second: Range, size: Dim) -> Range | None:
        """Return the range that selects what a second range selects of this; None where the size would decide.

        Args:
            second: The range on the elements that this selects.
            size: The size of the axis.
        """
        if isinstance(size, int):
            first = self.of(size)
            if self.starts_in_front(size) or second.starts_in_front(len(first)):
                return None
            selected = second.of(len(first))
            start, step = first.start + selected.start * first.step, first.step * selected.step
            return _as_range(range(start, start + len(selected) * step, step), size)
        if self.step < 0 or second.step < 0 or self.start < 0 or second.start < 0:
            return None
        start, step = self.start + second.start * self.step, self.step * second.step
        if self.end >= FAR:
            if second.end >= FAR:
                return Range(start, LAST, step)
            if second.end >= 0:
                return Range(start, self.start + second.end * self.step, step)
            return Range(start, second.end, step) if self.step == 1 else None
        if self.end >= 0:
            if second.end < 0:
                return None
            return Range(start, min(self.end, self.start + min(second.end, FAR) * self.step), step)
        if second.end >= FAR:
            return Range(start, self.end, step)
        return Range(start, self.end + second.end, step) if second.end < 0 and self.step == 1 else None


def ranges_of(look: Look) -> dict[int, Range] | None:
    """Return what a Slice selects, by axis from the front; None where it is not known."""
    source = look.first()
    rank = None if source is None else look.types.rank(source)
    starts, ends = look.ints(1, "starts"), look.ints(2, "ends")
    if rank is None or starts is None or ends is None or len(starts) != len(ends):
        return None
    axes, steps = look.ints(3, "axes"), look.ints(4, "steps")
    if (axes is None and look.input(3) is not None) or (steps is None and look.input(4) is not None):
        return None
    axes = list(range(len(starts))) if axes is None else [axis + rank if axis < 0 else axis for axis in axes]
    steps = [1] * len(starts) if steps is None else steps
    if len(axes) != len(starts) or len(steps) != len(starts) or len(set(axes)) != len(axes) or 0 in steps:
        return None
    if any(step < 0 and end >= FAR for step, end in zip(steps, ends, strict=True)):
        return None  # runtimes do not agree: ONNX Runtime goes on to the first element
    return {axis: Range(*bounds) for axis, *bounds in zip(axes, starts, ends, steps, strict=True)}


def state_slice(rewriter: Rewriter, node: Node, source: Tensor, ranges: dict[int, Range], opset: int) -> None:
    """State a node as the Slice that selects these ranges.

    Args:
        rewriter: The rewriter of the patch.
        node: The node.
        source: What is sliced.
        ranges: The ranges by axis; before opset 10 with steps of 1.
        opset: Version of the ONNX domain.
    """
    axes = sorted(ranges)
    # what lies beyond every element may lie beyond int64 as well after adding
    columns = [[_bounded(ranges[axis].start) for axis in axes], [_bounded(ranges[axis].end) for axis in axes], axes]
    if opset < 10:
        restate(rewriter, node, "Slice", [source], dict(zip(("starts", "ends", "axes"), columns, strict=True)))
        return
    steps = [ranges[axis].step for axis in axes]
    if any(step != 1 for step in steps):
        columns.append(steps)
    constants = [rewriter.constant(np.array(column, np.int64), near=node) for column in columns]
    restate(rewriter, node, "Slice", [source, *constants])


def _bounded(position: int) -> int:
    return max(-LAST - 1, min(LAST, position))


def _as_range(selected: range, size: int) -> Range:
    if not selected:
        return Range(0, 0, 1)
    if selected.step > 0:
        return Range(selected.start, min(selected.stop, size), selected.step)
    return Range(selected.start, selected.stop if selected.stop >= 0 else -size - 1, selected.step)
