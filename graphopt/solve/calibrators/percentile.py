"""The range that holds a share of the values."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from graphopt.solve.calibrators.distribution import Distribution, Span


def percentile(seen: Distribution, share: float) -> Span:
    """Return the range that holds a share of all values, the rest cut off evenly at both ends.

    Zeros that an activation function made are one end of the range, not a tail: a tensor without negative values keeps
    its lower end. Exact to a bin. Cost: the bins once.

    Args:
        seen: The values.
        share: In percent, above 50, at most 100: 99.99 cuts off one value in ten thousand.
    """
    counts, edges = seen.histogram.counts, seen.histogram.edges()
    total = int(counts.sum())
    if total == 0 or share >= 100:
        return seen.span
    tail = (100 - share) / 100
    one_sided = seen.low >= 0 or seen.high <= 0
    part = tail if one_sided else tail / 2
    below = np.cumsum(counts)
    first = int(np.searchsorted(below, part * total, side="right"))
    last = int(np.searchsorted(below, (1 - part) * total, side="left"))
    low = seen.low if seen.low >= 0 else max(seen.low, float(edges[first]))
    high = seen.high if seen.high <= 0 else min(seen.high, float(edges[last + 1]))
    return (low, high) if low < high else seen.span
