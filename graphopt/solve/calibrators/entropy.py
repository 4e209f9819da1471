"""The range whose grid loses the least information: every threshold is tried."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from graphopt.solve.calibrators.distribution import Distribution, Span

Vector = NDArray[np.float64]
Places = NDArray[np.int64]

ROUNDS = 2
"""How often each end is searched with the other one fixed."""

CANDIDATES = 256
"""Thresholds tried per end and round; every bin edge where there are fewer."""

BINS_PER_LEVEL = 2
"""Bins that a level holds at least: with one, a grid would lose nothing at all."""


def least_divergence(seen: Distribution, levels: int = 256, *, symmetric: bool = False) -> Span:
    """Return the range whose grid of ``levels`` steps keeps the distribution of the values best.

    For each threshold the values beyond it are moved into the outermost bins (P); the values inside are merged into
    ``levels`` levels and spread out again evenly over the bins of a level that hold any (Q); the threshold with the
    least KL(P || Q) is taken. Both ends of tensors with two signs are searched in turn. Exact zeros are left out: they
    are on the grid. Prefix sums make a threshold cost ``levels`` steps, whatever the bins. Source: Migacz 2017, "8-bit
    Inference with TensorRT", GTC, for one symmetric threshold.

    Args:
        seen: The values.
        levels: Integers of the grid.
        symmetric: Whether both ends are equally far from zero; half of the levels are on either side then.
    """
    counts, edges = seen.rounded_counts()
    if not seen.low < seen.high or not counts.any():
        return seen.span
    if symmetric:
        return _symmetric(seen, counts, edges, levels)
    middle = int(np.searchsorted(edges, 0.0))
    first, last = 0, len(counts)
    sums = Sums(counts)
    for _ in range(ROUNDS if 0 < middle < len(counts) else 1):
        if seen.high > 0:
            tried = _thinned(np.arange(max(middle, first + BINS_PER_LEVEL * levels), len(counts) + 1))
            found = _best(sums, np.full(len(tried), first), tried, levels)
            last = last if found is None else int(tried[found])
        if seen.low < 0:
            tried = _thinned(np.arange(min(middle, last - BINS_PER_LEVEL * levels), -1, -1))
            found = _best(sums, tried, np.full(len(tried), last), levels)
            first = first if found is None else int(tried[found])
    low = seen.low if first == 0 else max(seen.low, float(edges[first]))
    high = seen.high if last == len(counts) else min(seen.high, float(edges[last]))
    return low, high


def _symmetric(seen: Distribution, counts: Vector, edges: Vector, levels: int) -> Span:
    """Return the best threshold of the magnitudes, on both sides: what Migacz describes."""
    middle = int(np.searchsorted(edges, 0.0))
    reach = max(middle, len(counts) - middle)
    magnitudes = np.zeros(reach)
    magnitudes[: len(counts) - middle] += counts[middle:]
    magnitudes[:middle] += counts[middle - 1 :: -1] if middle else counts[:0]
    half = levels // 2
    tried = _thinned(np.arange(BINS_PER_LEVEL * half, reach + 1))
    found = _best(Sums(magnitudes), np.zeros(len(tried), np.int64), tried, half)
    if found is None or int(tried[found]) == reach:
        return seen.span
    end = int(tried[found]) * float(edges[1] - edges[0])
    return max(seen.low, -end), min(seen.high, end)


class Sums:
    """Sums over the first bins of counts, of bins that hold any, and of counts times their logarithm; [bins + 1]."""

    __slots__ = ("counts", "information", "mass", "used")

    def __init__(self, counts: Vector) -> None:
        self.counts = counts
        self.mass = _prefix(counts)
        self.used = _prefix((counts > 0).astype(np.float64))
        self.information = _prefix(_times_log(counts))


def _best(sums: Sums, first: Places, last: Places, levels: int) -> int | None:
    """Return the place of the best of ranges of bins, or None where there is none; the widest of equal ones."""
    if not len(first):
        return None
    divergence = divergences(sums, first, last, levels)
    least = divergence.min()
    if not np.isfinite(least):
        return None
    return int(np.flatnonzero(divergence <= least)[-1])


def divergences(sums: Sums, first: Places, last: Places, levels: int) -> Vector:
    """Return KL(P || Q) for ranges of bins from ``first`` up to and without ``last``, [candidates]."""
    total = sums.mass[-1]
    inside = sums.mass[last] - sums.mass[first]
    below, above = sums.mass[first], total - sums.mass[last]
    ends = (sums.counts[first], sums.counts[last - 1])
    information = sums.information[last] - sums.information[first]
    information += sum(
        _times_log(end + moved) - _times_log(end) for end, moved in zip(ends, (below, above), strict=True)
    )
    places = first[:, None] + ((last - first)[:, None] * np.arange(levels + 1) + levels // 2) // levels
    mass = np.diff(sums.mass[places], axis=1)
    used = np.diff(sums.used[places], axis=1)
    seen = mass.copy()
    for column, end, moved in ((0, ends[0], below), (-1, ends[1], above)):
        seen[:, column] += moved
        used[:, column] += (end == 0) & (moved > 0)
    with np.errstate(divide="ignore", invalid="ignore"):
        spread = np.where(seen > 0, seen * np.log(mass / (used * inside[:, None])), 0.0)
        found = information / total - np.log(total) - spread.sum(axis=1) / total
    return np.asarray(np.where(np.isfinite(found), found, np.inf))


def _thinned(places: Places) -> Places:
    """Return at most ``CANDIDATES`` of the places, evenly spaced, the last among them."""
    if len(places) <= CANDIDATES:
        return places
    return np.asarray(places[np.linspace(0, len(places) - 1, CANDIDATES).astype(np.int64)])


def _prefix(values: Vector) -> Vector:
    return np.concatenate([[0.0], np.cumsum(values)])


def _times_log(counts: Vector) -> Vector:
    return np.asarray(counts * np.log(np.where(counts > 0, counts, 1.0)))
