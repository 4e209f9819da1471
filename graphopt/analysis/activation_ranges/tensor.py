"""What is seen of one tensor, batch by batch: memory does not grow with the data, and what shards saw merges."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from graphopt.solve.calibrators import Distribution
from graphopt.solve.histogram import Histogram

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from graphopt.solve.calibrators import Span

    Vector = NDArray[np.float64]

BINS = 8192
"""Bins of a histogram. At least a quarter of them lie between zero and the larger end: eight per level of 8 bits."""

SAMPLED_VALUES = 1 << 16
"""Values of one tensor and one batch that enter the histogram, evenly spaced; smallest and largest are exact."""


@dataclass(slots=True)
class Channels:
    """Sums over the channels of a tensor.

    Attributes:
        axis: The axis that counts them, 1 or -1.
        sums: Sum of the values, [channels].
        squares: Sum of their squares, [channels].
        rows: Values per channel.
        lows: Smallest value of each channel, [channels]; None where channels are not the innermost axis.
        highs: Largest value of each channel.
    """

    axis: int
    sums: Vector
    squares: Vector
    rows: int
    lows: Vector | None = None
    highs: Vector | None = None

    @classmethod
    def of(cls, values: NDArray[np.float32], axis: int) -> Channels:
        """Sum up values of two axes or more; sums within one row are float32, of rows float64."""
        if axis == 1 and values.ndim > 2:
            parts = values.reshape(*values.shape[:2], -1)
            sums = parts.sum(axis=2).sum(axis=0, dtype=np.float64)
            squares = np.einsum("bcs,bcs->bc", parts, parts).sum(axis=0, dtype=np.float64)
        else:
            table = values.reshape(-1, values.shape[-1])
            sums = table.sum(axis=0, dtype=np.float64)
            squares = np.einsum("rc,rc->c", table, table).astype(np.float64)
            ends = (table.min(axis=0).astype(np.float64), table.max(axis=0).astype(np.float64))
            return cls(axis, sums, squares, len(table), *ends)
        return cls(axis, sums, squares, values.size // max(len(sums), 1))

    def merge(self, other: Channels) -> Channels | None:
        """Return the sums of both; None where they have not the same channels."""
        if (self.axis, len(self.sums)) != (other.axis, len(other.sums)):
            return None
        lows = highs = None
        if self.lows is not None and other.lows is not None:
            lows = np.minimum(self.lows, other.lows)
        if self.highs is not None and other.highs is not None:
            highs = np.maximum(self.highs, other.highs)
        rows = self.rows + other.rows
        return Channels(self.axis, self.sums + other.sums, self.squares + other.squares, rows, lows, highs)


@dataclass(slots=True, eq=False)
class TensorRange:
    """What was seen of one tensor.

    Attributes:
        low: Smallest value seen.
        high: Largest value seen.
        lows: Sum of the smallest values of the batches.
        highs: Sum of their largest values.
        batches: How many there were.
        values: Values seen in all.
        histogram: Counts of the values, or of an even sample of them; None where only the ends are observed.
        zeros: How many of the counted values are exactly zero.
        channels: Sums per channel; None for tensors of one axis or of changing width.
        unbounded: Whether NaN or infinity was seen (attention masks hold -inf): no grid fits.
        axis: The axis that counts channels.
        chosen: A range that holds whatever was seen: one out of a calibration cache.
        edited: Whether that range was set by hand.
    """

    low: float = math.inf
    high: float = -math.inf
    lows: float = 0.0
    highs: float = 0.0
    batches: int = 0
    values: int = 0
    histogram: Histogram | None = field(default_factory=lambda: Histogram.of_bins(BINS))
    zeros: int = 0
    channels: Channels | None = None
    unbounded: bool = False
    axis: int = 1
    chosen: Span | None = None
    edited: bool = False

    def add(self, values: NDArray[np.float32]) -> None:
        """Take in the values of one run, of any shape; NaN or infinity among them makes the range unbounded."""
        if not values.size or self.unbounded:
            return
        flat = values.reshape(-1)
        low, high = float(flat.min()), float(flat.max())
        if not (math.isfinite(low) and math.isfinite(high)):
            self.unbounded = True
            return
        self._add_channels(values)
        self.low, self.high = min(self.low, low), max(self.high, high)
        self.lows += low
        self.highs += high
        self.batches += 1
        self.values += flat.size
        if self.histogram is not None:
            sampled = _sampled(flat)
            self.histogram.add(sampled)
            self.zeros += sampled.size - int(np.count_nonzero(sampled))

    def _add_channels(self, values: NDArray[np.float32]) -> None:
        if values.ndim < 2 or (self.batches and self.channels is None):
            self.channels = None
            return
        found = Channels.of(values, self.axis)
        self.channels = found if self.channels is None else self.channels.merge(found)

    def merge(self, other: TensorRange) -> TensorRange:
        """Return what both have seen; they are left as they are. Exact for counts and ends, sums up to rounding.

        Chosen ranges are left out: they held for a part.
        """
        first, second = self.histogram, other.histogram
        channels = None
        if not (self.batches and other.batches):
            channels = self.channels or other.channels
        elif self.channels is not None and other.channels is not None:
            channels = self.channels.merge(other.channels)
        return TensorRange(
            low=min(self.low, other.low),
            high=max(self.high, other.high),
            lows=self.lows + other.lows,
            highs=self.highs + other.highs,
            batches=self.batches + other.batches,
            values=self.values + other.values,
            histogram=None if first is None or second is None else first.merge(second),
            zeros=self.zeros + other.zeros,
            channels=channels,
            unbounded=self.unbounded or other.unbounded,
            axis=self.axis,
        )

    @property
    def distribution(self) -> Distribution | None:
        """What calibrators are told; None where only the ends were observed."""
        if self.histogram is None:
            return None
        return Distribution(self.low, self.high, self.histogram, self.zeros)

    def moving_average(self) -> Span:
        """Return the average of the ranges of the batches: one odd batch does not stretch it."""
        count = max(self.batches, 1)
        return self.lows / count, self.highs / count

    def channel_means(self) -> Vector | None:
        """Return the mean of the values per index of axis 1, or None where it is not known."""
        return self._per_channel(None if self.channels is None else self.channels.sums)

    def channel_powers(self) -> Vector | None:
        """Return the mean square of the values per index of axis 1, or None where it is not known."""
        return self._per_channel(None if self.channels is None else self.channels.squares)

    def _per_channel(self, sums: Vector | None) -> Vector | None:
        if sums is None or self.channels is None or not self.channels.rows:
            return None
        return sums / self.channels.rows

    def __eq__(self, other: object) -> bool:
        """Tell whether calibrators choose the same."""
        if not isinstance(other, TensorRange) or (self.histogram is None) != (other.histogram is None):
            return False
        plain = ("low", "high", "lows", "highs", "batches", "values", "zeros", "unbounded", "chosen")
        if any(getattr(self, name) != getattr(other, name) for name in plain):
            return False
        first, second = self.histogram, other.histogram
        return (
            first is None
            or second is None
            or (first.exponent == second.exponent and bool(np.array_equal(first.counts, second.counts)))
        )

    __hash__ = None  # type: ignore[assignment]


def _sampled(flat: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return evenly spaced values; a step that divides the row length would see the same channels in every row."""
    step = max(1, flat.size // SAMPLED_VALUES)
    while math.gcd(step, flat.size) > 1:
        step += 1
    return flat[::step]
