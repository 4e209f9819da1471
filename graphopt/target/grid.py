"""Integer grids: the scale and zero point that stand for a range of real values.

A grid maps an integer q to (q - zero_point) * scale. All arithmetic on scales is float32, as the runtime's is, so that
what is checked here is what it computes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from graphopt.errors import DataError
from graphopt.target.numbers import UINT8, Number

if TYPE_CHECKING:
    from numpy.typing import NDArray

WEIGHT_LIMIT = 127
"""Weights are rounded to -127..127: the symmetric narrow range, with the zero point 0 that fast kernels need."""

BIAS_LIMIT = 2**31 - 1
BIAS_HEADROOM = 2
"""A rounded bias may use half of int32: the accumulator has to hold the products beside it."""

SMALLEST_SCALE = np.float32(2.0**-96)
"""Scales below this could make products of two scales denormal, which kernels flush to zero."""

MASK, LOGIT_MASK = -1e8, -1e3
"""What is as small as this was not computed but means that something is left out: anywhere, and before a Softmax."""

MASK_FACTOR = 16
"""How much further down than before a Softmax a mask is on its way there: it is added to scores of any sign."""


@dataclass(frozen=True, slots=True)
class GridKind:
    """What grids a target takes for activations.

    Attributes:
        number: Type of the integers.
        symmetric: Whether 0.0 lies in the middle: the zero point is 0, or 128 for uint8 with negative values.
        least_range: Smallest distance of the two ends, in real units.
        mask: What stands in, before a Softmax, for values that only say that something is left out of it, often the
            smallest of their type; None keeps them. Behind the Softmax nothing is left of either, and the other values
            keep a grid.
    """

    number: Number = UINT8
    symmetric: bool = False
    least_range: float = 0.0
    mask: float | None = None


ASYMMETRIC_UINT8 = GridKind()


@dataclass(frozen=True, slots=True)
class Grid:
    """One scale and zero point for a whole tensor.

    Attributes:
        scale: Real distance of two neighbouring integers, float32, above zero.
        zero_point: The integer that stands for 0.0 exactly, ``bottom`` to ``top``.
        top: Largest integer in use.
        bottom: Smallest integer in use.
        number: Type of the integers.
    """

    scale: np.float32
    zero_point: int
    top: int = 255
    bottom: int = 0
    number: Number = UINT8

    @property
    def low(self) -> float:
        """Smallest real value on the grid."""
        return float(self.scale) * (self.bottom - self.zero_point)

    @property
    def high(self) -> float:
        """Largest real value on the grid."""
        return float(self.scale) * (self.top - self.zero_point)

    def quantize(self, values: NDArray[np.float32]) -> NDArray[Any]:
        """Round real values of any shape to the grid, halves to even, as QuantizeLinear does."""
        if self.number.real:
            return self.number.cast(values / self.scale)
        q: NDArray[np.float32] = np.rint(values / self.scale) + self.zero_point
        return np.clip(q, self.bottom, self.top).astype(self.number.dtype)

    def makes_clip_redundant(self, low: float, high: float) -> bool:
        """Tell whether the grid ends inside the bounds, so that a Clip before rounding cuts off nothing more."""
        begins = low == -np.inf or np.rint(np.float32(low) / self.scale) + self.zero_point <= self.bottom
        ends = high == np.inf or np.rint(np.float32(high) / self.scale) + self.zero_point >= self.top
        return bool(begins and ends)


def activation_grid(low: float, high: float, *, levels: int | None = None, kind: GridKind = ASYMMETRIC_UINT8) -> Grid:
    """Return the grid for real values between ``low`` and ``high``; 0.0 always lies on it exactly.

    Args:
        low: Smallest value.
        high: Largest value.
        levels: Integers in use, from the smallest up; None for all.
        kind: Type and symmetry.

    Raises:
        DataError: A bound is not a finite number.
    """
    if not (np.isfinite(low) and np.isfinite(high)):
        raise DataError(
            f"a range from {low} to {high}",
            where="activation ranges",
            must="Ranges must be finite",
            do="Look for NaN or infinity in the calibration data or in the model's weights",
        )
    if kind.mask is not None and low <= MASK:
        low = kind.mask * MASK_FACTOR
    low, high = min(low, 0.0), max(high, 0.0)
    number, bottom = kind.number, kind.number.bottom
    if high - low < kind.least_range:
        high = low + kind.least_range
    top = number.top if levels is None else bottom + levels - 1
    if number.real or (kind.symmetric and (number.signed or low < 0)):
        return _symmetric_grid(max(-low, high), number)
    scale = np.float32((high - low) / (top - bottom))
    if scale < SMALLEST_SCALE:
        return Grid(np.float32(1.0 / (top - bottom)), bottom, top, bottom, number)
    zero_point = int(np.clip(np.rint(-np.float32(low) / scale) + bottom, bottom, top))
    return Grid(scale, zero_point, top, bottom, number)


def _symmetric_grid(limit: float, number: Number) -> Grid:
    """Return the grid from minus to plus a limit, the same number of steps on both sides."""
    zero_point = 0 if number.signed else (number.top + 1) // 2
    steps = number.top - zero_point
    scale = np.float32(limit / steps)
    if scale < SMALLEST_SCALE:
        scale = np.float32(1.0 / steps)
    return Grid(scale, zero_point, number.top, 2 * zero_point - number.top, number)


@dataclass(frozen=True, slots=True)
class WeightGrid:
    """Rounded weights with their scales.

    Attributes:
        values: int8, the shape of the weight.
        scales: float32, one per channel, or one element where the weight has a single scale.
        axis: Axis of the channels; None for a single scale.
    """

    values: NDArray[np.int8]
    scales: NDArray[np.float32]
    axis: int | None

    def restore(self) -> NDArray[np.float32]:
        """Return the weights that the integers stand for."""
        shape = [1] * self.values.ndim
        if self.axis is not None:
            shape[self.axis] = -1
        return (self.values.astype(np.float32) * self.scales.reshape(shape)).astype(np.float32)


def weight_scales(weight: NDArray[np.float32], axis: int | None, limit: int = WEIGHT_LIMIT) -> NDArray[np.float32]:
    """Return the symmetric scales of a weight up to the integer ``limit``: one per index of ``axis``, or one in all."""
    if axis is None:
        top = np.abs(weight).max(initial=0.0).reshape(1)
    else:
        top = np.abs(weight).max(axis=tuple(i for i in range(weight.ndim) if i != axis), initial=0.0)
    scales = (top / limit).astype(np.float32)
    # A channel of zeros may have any scale; one of the size of its neighbours keeps its bias inside int32.
    fallback = scales.max(initial=0.0) or np.float32(1.0)
    return np.where(scales < SMALLEST_SCALE, np.float32(fallback), scales)


def quantize_weight(
    weight: NDArray[np.float32], axis: int | None, scales: NDArray[np.float32], limit: int = WEIGHT_LIMIT
) -> WeightGrid:
    """Round a weight to int8 on the given scales, none beyond the integer ``limit``."""
    shape = [1] * weight.ndim
    if axis is not None:
        shape[axis] = -1
    q = np.clip(np.rint(weight / scales.reshape(shape)), -limit, limit).astype(np.int8)
    return WeightGrid(q, scales, axis)


def fit_bias(
    bias: NDArray[np.float32], activation_scale: np.float32, scales: NDArray[np.float32]
) -> NDArray[np.float32]:
    """Return weight scales, enlarged where a bias would not fit int32 on activation scale times weight scale.

    A tiny weight channel with an ordinary bias overflows otherwise; enlarging its scale costs precision only where the
    weights are so small beside the bias that they hardly matter.
    """
    smallest = np.abs(bias).astype(np.float64) * BIAS_HEADROOM / BIAS_LIMIT / float(activation_scale)
    return np.maximum(scales, smallest.astype(np.float32))


def quantize_bias(
    bias: NDArray[np.float32], activation_scale: np.float32, scales: NDArray[np.float32]
) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
    """Round a bias to int32 on activation scale times weight scale; return it with those products."""
    step = (activation_scale * scales).astype(np.float32)
    q = np.rint(bias.astype(np.float64) / step.astype(np.float64))
    return np.clip(q, -BIAS_LIMIT, BIAS_LIMIT).astype(np.int32), step
