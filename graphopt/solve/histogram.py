"""A histogram that streams and merges exactly: what shards have counted, put together, is what one run counts."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Self

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from typing import Any

Vector = NDArray[np.float64]

BINS = 4096
"""Bins of a histogram where nothing else is asked for; half of them are below zero."""

CHUNK = 1 << 16
"""Values that are counted at once: what is made of them on the way stays in the cache and off the peak of memory."""

_LEAST = -149
"""Exponent of the smallest number that float32 knows."""

_EXACT_SHIFTS = range(127)
"""Powers of two by which a float32 number is multiplied without rounding, if the product is known to be small."""


@dataclass(slots=True)
class Histogram:
    """Counts over [-2^e, 2^e) in bins of one width; the range doubles when a value lies outside.

    The width is a power of two, so that a value's bin is exact and two neighbours become one bin exactly: the result
    does not depend on the order of the values, nor on which of two histograms is merged into which.

    Attributes:
        exponent: The e.
        counts: Values per bin, [bins], a power of two of them.
        left_out: How many values were NaN or infinite.
    """

    exponent: int = _LEAST
    counts: NDArray[np.int64] = field(default_factory=lambda: np.zeros(BINS, np.int64))
    left_out: int = 0

    @classmethod
    def of_bins(cls, bins: int) -> Self:
        """Return an empty histogram of so many bins, a power of two."""
        return cls(counts=np.zeros(bins, np.int64))

    @property
    def width(self) -> float:
        """Width of a bin."""
        return math.ldexp(1.0, self.exponent + 1) / len(self.counts)

    def add(self, values: NDArray[Any]) -> None:
        """Count values of any shape; about 2 ns per value."""
        flat: NDArray[np.floating[Any]] = np.asarray(values, np.float64 if values.dtype == np.float64 else np.float32)
        flat = flat.reshape(-1)
        for start in range(0, flat.size, CHUNK):
            self._add(flat[start : start + CHUNK])

    def _add(self, flat: NDArray[np.floating[Any]]) -> None:
        largest = max(float(flat.max()), -float(flat.min()))
        if not math.isfinite(largest):
            finite = np.isfinite(flat)
            self.left_out += int(flat.size - np.count_nonzero(finite))
            flat = flat[finite]
            if not flat.size:
                return
            largest = max(float(flat.max()), -float(flat.min()))
        if largest > 0:
            self._reach(math.frexp(largest)[1])
        half = len(self.counts) // 2
        shift = half.bit_length() - 1 - self.exponent
        # Bins are at most ``half`` away from zero, so the product neither overflows nor, for a shift upwards, rounds.
        scaled = flat * flat.dtype.type(2.0**shift) if shift in _EXACT_SHIFTS else np.ldexp(flat.astype(float), shift)
        places = np.floor(scaled, out=scaled).astype(np.int64)
        places += half
        self.counts += np.bincount(places, minlength=2 * half)

    def merge(self, other: Histogram) -> Histogram:
        """Return the counts of both, which are left as they are; both have the same number of bins."""
        found = Histogram(self.exponent, self.counts.copy(), self.left_out + other.left_out)
        found._reach(other.exponent)
        added = Histogram(other.exponent, other.counts.copy())
        added._reach(found.exponent)
        found.counts += added.counts
        return found

    def edges(self) -> Vector:
        """Return the edges of the bins, [bins + 1]."""
        half = len(self.counts) // 2
        return np.ldexp(np.arange(-half, half + 1, dtype=np.float64), self.exponent + 1 - half.bit_length())

    def _reach(self, exponent: int) -> None:
        if exponent <= self.exponent:
            return
        if self.counts.any():
            bins = len(self.counts)
            places = (np.arange(bins) - bins // 2 >> min(exponent - self.exponent, 62)) + bins // 2
            merged = np.zeros_like(self.counts)
            np.add.at(merged, places, self.counts)
            self.counts = merged
        self.exponent = exponent
