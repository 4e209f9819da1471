"""What was seen of one tensor as one form of layer reads it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from graphopt.analysis.layer_statistics.spread import Spread
from graphopt.solve.least_squares import Moments, Squares, Statistics

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from graphopt.analysis.layer_statistics.moments import Reading


@dataclass(slots=True)
class Observed:
    """Sums over what a layer reads.

    Attributes:
        moments: Per group, sums of z z' and z over sampled rows, [C, C] and [C]; empty for a wide layer.
        squares: Per group, sums of z_j z_j and z, [C]; only for a wide layer.
        spread: Range, magnitudes and histogram of every value, not only of those sampled.
    """

    moments: list[Moments]
    squares: list[Squares]
    spread: Spread

    @classmethod
    def of(cls, reading: Reading, channels: int) -> Observed:
        """Return sums of nothing."""
        groups = range(reading.form.groups)
        if reading.wide:
            return cls([], [Squares(reading.columns) for _ in groups], Spread(channels))
        return cls([Moments(reading.columns, symmetric=True) for _ in groups], [], Spread(channels))

    def add(self, reading: Reading, array: NDArray[Any], rows: int, draw: np.random.Generator) -> None:
        """Take in one batch of the tensor.

        Args:
            reading: How it is read.
            array: Its values.
            rows: Rows to draw, at most.
            draw: Decides which.
        """
        self.spread.add(reading.form.channels(array))
        (sampled,) = reading.form.sample([array], rows, draw)
        for group, found in enumerate(sampled):
            finite = np.isfinite(found).all(axis=1)
            kept = found if finite.all() else found[finite]
            if self.squares:
                self.squares[group].add(kept)
            else:
                self.moments[group].add(kept, kept)

    def merge(self, other: Observed) -> Observed:
        """Return what both have seen; they are left as they are."""
        return Observed(
            [a.merge(b) for a, b in zip(self.moments, other.moments, strict=True)],
            [a.merge(b) for a, b in zip(self.squares, other.squares, strict=True)],
            self.spread.merge(other.spread),
        )

    def finite(self) -> bool:
        """Tell whether there are rows and no sum overflowed."""
        return all(each.finite() for each in self.moments) and all(each.finite() for each in self.squares)

    def mean(self, *, centred: bool) -> list[Statistics]:
        """Return the statistics per row of each group; none for a wide layer."""
        return [each.mean(centred=centred) for each in self.moments]

    def mean_squares(self) -> list[NDArray[np.float64]]:
        """Return the mean square of each column per group, [C]."""
        if self.squares:
            return [each.inner / each.count for each in self.squares]
        for each in self.moments:
            each.settle()
        return [np.diag(each.inner) / each.count for each in self.moments]
