"""How the values of a tensor are spread: range and mean magnitude per channel, and a histogram over all of it.

Everything merges exactly, in any order: what two shards have seen, put together, is what one run over both would give
(sums of magnitudes up to rounding).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from graphopt.solve.histogram import BINS, Histogram

if TYPE_CHECKING:
    from typing import Any

Vector = NDArray[np.float64]

__all__ = ["BINS", "Histogram", "Spread"]


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
