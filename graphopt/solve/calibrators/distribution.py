"""What a calibrator is told about a tensor."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from graphopt.solve.histogram import Histogram

Span = tuple[float, float]
"""Smallest and largest value of a range."""

Vector = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Distribution:
    """How the values of a tensor are spread.

    Attributes:
        low: Smallest value seen.
        high: Largest value seen.
        histogram: Counts of the values, or of an even sample of them.
        zeros: How many of the counted values are exactly zero. Activation functions make many; a grid that holds zero
            holds them without error, whatever its step.
    """

    low: float
    high: float
    histogram: Histogram
    zeros: int = 0

    @property
    def span(self) -> Span:
        """Everything that was seen."""
        return self.low, self.high

    def rounded_counts(self) -> tuple[Vector, Vector]:
        """Return counts without exact zeros, and edges, [n] and [n + 1], of the bins between the smallest and largest.

        Bins outside what was seen are empty and left out; zero is among the edges.
        """
        counts, edges = self.histogram.counts.astype(np.float64), self.histogram.edges()
        counts[len(counts) // 2] = max(counts[len(counts) // 2] - self.zeros, 0.0)
        used = np.flatnonzero(counts)
        middle = len(counts) // 2
        first = min(int(used[0]), middle) if used.size else middle
        last = max(int(used[-1]) + 1, middle + 1) if used.size else middle + 1
        return counts[first:last], edges[first : last + 1]
