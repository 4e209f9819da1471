"""The range whose grid loses the least squared error: what rounding adds inside against what is cut off outside."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from graphopt.solve.calibrators.distribution import Distribution, Span

Vector = NDArray[np.float64]

LEAST_SHRINK = 0.1
"""The smallest share of an end that is tried."""

CANDIDATES = 181
"""Shares of each end that are tried, from the whole down to ``LEAST_SHRINK``: half a percent apart."""

CUT_OFF_WEIGHT = 4.0
"""How much the error of a value that a range cuts off counts beside that of a rounded one: it falls on the few largest
activations, which later layers depend on most. Measured: 1 cuts off too much, 16 too little."""


def least_error(
    seen: Distribution, levels: int = 256, *, symmetric: bool = False, cut_off_weight: float = CUT_OFF_WEIGHT
) -> Span:
    """Return the range, inside the one seen, whose grid of ``levels`` steps loses the least squared error.

    Both ends are searched together: a step costs both. Rounding adds step^2 / 12 to a value inside, nothing to one that
    is exactly zero. Cost: all pairs of candidates, 33 000 multiplications, whatever the data.

    Args:
        seen: The values.
        levels: Integers of the grid; zero is always one of them.
        symmetric: Whether both ends are equally far from zero.
        cut_off_weight: Weight of the squared error of values outside the range.
    """
    if not seen.low < seen.high:
        return seen.span
    if symmetric:
        ends = _ends(max(-seen.low, seen.high))
        end = float(ends[_noise(seen, -ends, ends, levels, cut_off_weight).argmin()])
        return max(seen.low, -end), min(seen.high, end)
    lows, highs = _ends(seen.low), _ends(seen.high)
    noise = _noise(seen, lows[:, None], highs[None, :], levels, cut_off_weight)
    row, column = np.unravel_index(int(noise.argmin()), noise.shape)
    return float(lows[row]), float(highs[column])


def rounding_noise(
    seen: Distribution, low: float, high: float, levels: int = 256, *, cut_off_weight: float = CUT_OFF_WEIGHT
) -> float:
    """Return the mean squared error of putting the values on a grid, those that it cuts off weighted."""
    return float(_noise(seen, np.array(low), np.array(high), levels, cut_off_weight))


def power(seen: Distribution) -> float:
    """Return the mean square of the values."""
    counts, edges = seen.rounded_counts()
    centres = (edges[:-1] + edges[1:]) / 2
    return float((counts * centres**2).sum() / max(int(seen.histogram.counts.sum()), 1))


def _ends(end: float) -> Vector:
    """Return candidates for an end, the whole first; an end at zero or beyond it stays."""
    return np.asarray(end * np.linspace(1.0, LEAST_SHRINK, CANDIDATES))


def _noise(seen: Distribution, low: Vector, high: Vector, levels: int, cut_off_weight: float) -> Vector:
    """Return the mean squared error of grids; low and high broadcast."""
    low, high = np.minimum(low, 0.0), np.maximum(high, 0.0)
    counts, edges = seen.rounded_counts()
    centres = (edges[:-1] + edges[1:]) / 2
    # Sums over the bins up to each edge: counts, counts times centre, counts times its square.
    sums = [np.concatenate([[0.0], np.cumsum(counts * centres**power_of)]) for power_of in range(3)]
    first, last = np.searchsorted(centres, low), np.searchsorted(centres, high, side="right")
    below = _beyond([each[first] for each in sums], low)
    above = _beyond([each[-1] - each[last] for each in sums], high)
    inside = sums[0][last] - sums[0][first]
    step = (high - low) / (levels - 1)
    total = max(int(seen.histogram.counts.sum()), 1)
    return np.asarray((inside * step**2 / 12 + cut_off_weight * (below + above)) / total)


def _beyond(sums: list[Vector], end: Vector) -> Vector:
    """Return the sum of (value - end)^2, given the sums of 1, value and value^2."""
    return np.maximum(sums[2] - 2 * end * sums[1] + end**2 * sums[0], 0.0)
