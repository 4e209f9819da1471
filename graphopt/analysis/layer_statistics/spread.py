"""How the values of a tensor are spread: range and mean magnitude per channel, and a histogram over all of it.

Everything merges exactly, in any order: what two shards have seen, put together, is what one run over both would give
(sums of magnitudes up to rounding).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from typing import Any

Vector = NDArray[np.float64]

BINS = 4096
"""Bins of a histogram; half of them are below zero."""

_LEAST = -149
"""Exponent of the smallest number that float32 knows."""


@dataclass(slots=True)
class Histogram:
    """Counts over [-2^e, 2^e) in bins of one width; the range doubles when a value lies outside.

    The width is a power of two, so that a value's bin is exact and two neighbours become one bin exactly: the result
    does not depend on the order of the values, nor on which of two histograms is merged into which.

    Attributes:
        exponent: The e.
        counts: Values per bin, [BINS].
        left_out: How many values were NaN or infinite.
    """

    exponent: int = _LEAST
    counts: NDArray[np.int64] = field(default_factory=lambda: np.zeros(BINS, np.int64))
    left_out: int = 0

    def add(self, values: NDArray[Any]) -> None:
        """Count values of any shape."""
        flat = np.asarray(values, np.float64 if values.dtype == np.float64 else np.float32).reshape(-1)
        finite = np.isfinite(flat)
        if not finite.all():
            self.left_out += int(flat.size - np.count_nonzero(finite))
            flat = flat[finite]
        if not flat.size:
            return
        largest = max(float(flat.max()), -float(flat.min()))
        if largest > 0:
            self._reach(math.frexp(largest)[1])
        places = np.floor(np.ldexp(flat.astype(np.float64), BINS.bit_length() - 2 - self.exponent)).astype(np.int64)
        self.counts += np.bincount(places + BINS // 2, minlength=BINS)

    def merge(self, other: Histogram) -> Histogram:
        """Return the counts of both, which are left as they are."""
        found = Histogram(self.exponent, self.counts.copy(), self.left_out + other.left_out)
        found._reach(other.exponent)
        added = Histogram(other.exponent, other.counts.copy())
        added._reach(found.exponent)
        found.counts += added.counts
        return found

    def edges(self) -> Vector:
        """Return the edges of the bins, [BINS + 1]."""
        return np.ldexp(np.arange(-BINS // 2, BINS // 2 + 1, dtype=np.float64), self.exponent + 2 - BINS.bit_length())

    def _reach(self, exponent: int) -> None:
        if exponent <= self.exponent:
            return
        if self.counts.any():
            places = (np.arange(BINS) - BINS // 2 >> min(exponent - self.exponent, 62)) + BINS // 2
            merged = np.zeros_like(self.counts)
            np.add.at(merged, places, self.counts)
            self.counts = merged
        self.exponent = exponent


@dataclass(slots=True)
class Spread:
    """Range and mean magnitude of the channels of a tensor, and a histogram of all its values.

    Attributes:
        minimum, maximum: Per channel, [channels]; infinite where nothing was seen.
        magnitude: Sum of |x| per channel, [channels].
        count: Values per channel.
        histogram: Over all channels.
    """

    channels: int
    minimum: Vector = field(init=False)
    maximum: Vector = field(init=False)
    magnitude: Vector = field(init=False)
    count: int = 0
    histogram: Histogram = field(default_factory=Histogram)

    def __post_init__(self) -> None:
        self.minimum = np.full(self.channels, np.inf)
        self.maximum = np.full(self.channels, -np.inf)
        self.magnitude = np.zeros(self.channels)

    def add(self, values: NDArray[Any]) -> None:
        """Take in values whose last axis counts channels; what is not finite only enters the histogram's count."""
        table = values.reshape(-1, values.shape[-1])
        self.histogram.add(table)
        table = table.astype(np.float32) if table.dtype.itemsize < 4 else table
        table = table[np.isfinite(table).all(axis=1)] if self.histogram.left_out else table
        if not len(table):
            return
        self.minimum = np.minimum(self.minimum, table.min(axis=0))
        self.maximum = np.maximum(self.maximum, table.max(axis=0))
        self.magnitude += np.abs(table).sum(axis=0, dtype=np.float64)
        self.count += len(table)

    def merge(self, other: Spread) -> Spread:
        """Return what both have seen; they are left as they are."""
        found = Spread(self.channels)
        found.minimum = np.minimum(self.minimum, other.minimum)
        found.maximum = np.maximum(self.maximum, other.maximum)
        found.magnitude = self.magnitude + other.magnitude
        found.count = self.count + other.count
        found.histogram = self.histogram.merge(other.histogram)
        return found
