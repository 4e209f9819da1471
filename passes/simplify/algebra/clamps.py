"""Clamps: Relu, Clip, and Min or Max with one constant, as a pair of bounds, and what they do one after the other.

A clamp gives out x, but ``low`` where x < low, then ``high`` where that is > high; NaN passes, and a zero that meets a
bound of 0 keeps its sign. Relu and Clip do exactly that. Min and Max do too, unless their constant is 0: which of two
zeros they give is not defined.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from graphopt.graph.dtypes import numpy_dtype
from graphopt.passes.simplify.look import FLOATS, INTEGERS
from graphopt.passes.simplify.removal import restate

if TYPE_CHECKING:
    from graphopt.graph import Node, Rewriter, Tensor
    from graphopt.passes.simplify.look import Look

CLAMPS = ("Relu", "Clip", "Min", "Max")
"""Operators that may be clamps."""

_FLOAT = 1


@dataclass(frozen=True, slots=True)
class Clamp:
    """Two bounds; numbers that the element type holds exactly, infinite where there is none.

    Attributes:
        source: What is clamped.
        low: The lower bound.
        high: The upper bound, not below ``low``.
    """

    source: Tensor
    low: Any
    high: Any

    @classmethod
    def of(cls, look: Look) -> Self | None:
        """Return what a node clamps to, None where it is no clamp or its bounds are not known."""
        node, source = look.node, look.first()
        dtype = look.dtype(look.output)
        if source is None or (dtype not in FLOATS and dtype not in INTEGERS):
            return None
        if node.op in {"Min", "Max"}:
            return cls._of_extremum(look, dtype)
        if node.op == "Relu":
            return cls(source, 0, np.inf if dtype in FLOATS else _limits(dtype)[1])
        bounds = _clip_bounds(look, dtype)
        if bounds is None:
            return None
        low, high = bounds
        if np.isnan(low) or np.isnan(high) or (low > high == 0 and dtype in FLOATS):
            return None  # where the bounds cross, all numbers become the upper one, zeros of the other sign too
        return cls(source, min(low, high), high)

    @classmethod
    def _of_extremum(cls, look: Look, dtype: int) -> Self | None:
        if len(look.node.inputs) != 2 or look.opset < 8:
            return None
        for index in (1, 0):
            bound, source = look.scalar(index), look.input(1 - index)
            if bound is None or source is None or not look.same_shape(source):
                continue
            if np.isnan(bound) or (dtype in FLOATS and bound == 0):
                return None
            least, most = (-np.inf, np.inf) if dtype in FLOATS else _limits(dtype)
            return cls(source, least, bound) if look.node.op == "Min" else cls(source, bound, most)
        return None

    def gives(self, number: Any) -> Any:
        """Return what the clamp makes of a number."""
        return min(max(number, self.low), self.high)  # the first of two zeros

    def after(self, first: Clamp) -> Clamp | None:
        """Return the clamp that does what another does and then this; None where the sign of a zero would differ."""
        low, high = self.gives(first.low), self.gives(first.high)
        apart = first.high < self.low or first.low > self.high
        if apart and low == 0:
            return None  # every number becomes this zero, but a zero between equal bounds would keep its own sign
        return Clamp(first.source, low, high)

    def apply(self, rewriter: Rewriter, node: Node, dtype: int, opset: int) -> None:
        """State a node as this clamp."""
        least, most = (-np.inf, np.inf) if dtype in FLOATS else _limits(dtype)
        relu = dtype in FLOATS and self.high == np.inf and self.low == 0 and not np.signbit(self.low)
        if relu:
            restate(rewriter, node, "Relu", [self.source])
        elif opset < 11:
            bounds = {"min": float(self.low), "max": float(self.high)}
            restate(rewriter, node, "Clip", [self.source], bounds)
        else:
            kind = numpy_dtype(dtype)
            inputs: list[Tensor | None] = [self.source]
            for bound, neutral in ((self.low, least), (self.high, most)):
                missing = dtype in INTEGERS and bound == neutral
                inputs.append(None if missing else rewriter.constant(np.array(bound, kind), near=node))
            restate(rewriter, node, "Clip", inputs)

    def writable(self, dtype: int, opset: int) -> bool:
        """Whether the clamp can be written in an opset: before 11 the bounds are attributes of single precision."""
        return opset >= 12 or (opset == 11 and dtype in FLOATS) or (opset >= 6 and dtype == _FLOAT)


def _clip_bounds(look: Look, dtype: int) -> tuple[Any, Any] | None:
    """Return the bounds of a Clip; the limits of the type where there are none, which turn infinity into them."""
    least, most = _limits(dtype)
    if look.opset < 11:
        if dtype != _FLOAT or look.opset < 6:
            return None
        return np.float32(look.attr("min", least)), np.float32(look.attr("max", most))
    found = []
    for index, default in ((1, least), (2, most)):
        bound = default if look.input(index) is None else look.scalar(index)
        if bound is None:
            return None
        found.append(bound)
    return found[0], found[1]


def _limits(dtype: int) -> tuple[Any, Any]:
    kind = numpy_dtype(dtype)
    assert kind is not None
    if dtype in INTEGERS:
        info = np.iinfo(kind)
        return info.min, info.max
    import ml_dtypes

    limits = ml_dtypes.finfo(kind)
    return limits.min, limits.max
