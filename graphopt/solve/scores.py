"""How much each weight of a layer matters, from the weights alone, and the exact cut that keeps the best ones.

Scores are float32 and not negative, of the weight's own shape; a zero weight scores zero, so whatever was pruned before
stays pruned first, and pruning twice to the same share changes nothing. The cut is found by counting bit patterns,
which takes 512 KiB however many weights there are: blocks of scores are made, counted and forgotten.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

Scores = NDArray[np.float32]
Weights = NDArray[np.generic]

_HALF = 1 << 16
_LARGEST = np.finfo(np.float32).max


def magnitude(weight: Weights) -> Scores:
    """Return |w| as float32, same shape; what float32 cannot hold counts as its largest number.

    Source: Han et al. 2015, arXiv:1506.02626.
    """
    with np.errstate(over="ignore"):
        return np.minimum(np.abs(weight.astype(np.float32)), _LARGEST)


def unfolded(weight: Weights, row_scale: NDArray[np.floating]) -> Scores:
    """Return |w| / |scale of its row|: the magnitude before BatchNormalization was folded into the weight.

    Folding multiplies row r by gamma_r / sigma_r. That scale says how the network normalises its channels and nothing
    about which weights matter, and ranking across rows or layers by folded weights destroys the model.

    Args:
        weight: Any shape.
        row_scale: The scales, in a shape that broadcasts to that of the weight. Where the scale is 0 (dead channels)
            the score is 0; a non-finite scale counts as 1.
    """
    scale = np.abs(row_scale.astype(np.float32))
    scale = np.where(np.isfinite(scale), scale, np.float32(1))
    with np.errstate(divide="ignore", over="ignore"):
        inverse = np.where(scale > 0, np.minimum(np.float32(1) / scale, _LARGEST), np.float32(0))
        return np.minimum(magnitude(weight) * inverse, _LARGEST)


def lamp(scores: Scores) -> Scores:
    """Return the LAMP scores of one layer: s^2 over the sum of all squares at least as large, in 0..1.

    A layer's largest weight scores 1, so a global cut never empties a layer, and layers of different scale become
    comparable without a parameter. Equal weights rank by their position.

    Args:
        scores: Magnitudes (folded or not) of one layer, any shape.

    Source: Lee et al. 2021, arXiv:2010.07611, equation 1.
    """
    flat = scores.ravel()
    largest = flat.max(initial=0.0)
    if largest == 0:
        return np.zeros_like(scores)
    order = np.argsort(flat, kind="stable")
    squares = np.square(flat[order].astype(np.float64) / float(largest))
    remaining = np.cumsum(squares[::-1])[::-1]
    ranked = np.empty_like(flat)
    ranked[order] = np.divide(squares, remaining, out=np.zeros_like(squares), where=remaining > 0)
    # A weight too small for its square keeps a place above every zero.
    np.maximum(ranked, np.finfo(np.float32).tiny, out=ranked, where=flat > 0)
    return ranked.reshape(scores.shape)


SIZE_POWER = -1 / 8
"""By which power of its number of weights a layer keeps more where small ones are spared."""


def erk_densities(shapes: Sequence[tuple[int, ...]], density: float) -> list[float]:
    """Return each layer's share of kept weights so that all layers together keep `density`.

    The share is proportional to (sum of the dimensions) / (product of the dimensions), so that large layers become
    sparser; layers that would keep more than everything keep everything, and the rest is shared out again.

    Args:
        shapes: One weight shape per layer: (out, in) or (out, in, kernel...).
        density: The share of weights to keep over all layers, 0..1.

    Source: Evci et al. 2020, arXiv:1911.11134, section 3 (the Erdos-Renyi kernel rule).
    """
    sizes = [float(np.prod(shape)) for shape in shapes]
    return _densities(sizes, [sum(shape) / size for shape, size in zip(shapes, sizes, strict=True)], density)


def size_densities(sizes: Sequence[int], density: float) -> list[float]:
    """Return each layer's share of kept weights, proportional to its number of weights to the power of -1/8.

    A layer of a sixteenth of the weights of another keeps a share that is larger by a factor of the square root of two:
    far less than by `erk_densities`, where it is about four.

    Args:
        sizes: Number of weights of each layer.
        density: The share of weights to keep over all layers, 0..1.
    """
    return _densities([float(size) for size in sizes], [float(size) ** SIZE_POWER for size in sizes], density)


def _densities(sizes: Sequence[float], wanted: Sequence[float], density: float) -> list[float]:
    """Return shares proportional to `wanted` that keep `density` of all weights; what is above one goes to the rest."""
    full: set[int] = set()
    while len(full) < len(sizes):
        free = [index for index in range(len(sizes)) if index not in full]
        budget = density * sum(sizes) - sum(sizes[index] for index in full)
        factor = budget / sum(wanted[index] * sizes[index] for index in free)
        crowded = {index for index in free if factor * wanted[index] > 1.0}
        if not crowded:
            return [1.0 if index in full else max(0.0, factor * wanted[index]) for index in range(len(sizes))]
        full |= crowded
    return [1.0] * len(sizes)


@dataclass(frozen=True, slots=True)
class Cut:
    """Where to cut: everything that scores below `score` goes, and the first `ties` of those that equal it."""

    score: np.float32
    ties: int

    def mask(self, scores: Scores) -> tuple[NDArray[np.bool_], Cut]:
        """Return which weights of one block are kept, and the cut for the block after it (fewer ties left)."""
        keep = scores > self.score
        equal = np.flatnonzero(scores == self.score)
        keep.flat[equal[self.ties :]] = True
        return keep, Cut(self.score, max(0, self.ties - len(equal)))


def cut(blocks: Callable[[], Iterable[Scores]], count: int) -> Cut:
    """Find the cut that removes exactly `count` of the lowest scores.

    The bit pattern of a float that is not negative grows with its value, so the upper and then the lower halves of the
    patterns are counted: two passes over the blocks, exact, in memory that does not depend on their sizes.

    Args:
        blocks: Returns the blocks of scores (finite, not negative, any shape), the same ones in the same order each
            time. Ties at the cut go in that order, so the result is deterministic.
        count: How many go, 0 to the number of all scores.

    Raises:
        ValueError: There are fewer than `count` scores.
    """
    if count <= 0:
        return Cut(np.float32(-1), 0)
    upper, before = _bucket(_count(blocks, None), count)
    lower, inside = _bucket(_count(blocks, upper), count - before)
    pattern = np.array([upper << 16 | lower], np.uint32)
    return Cut(pattern.view(np.float32)[0], count - before - inside)


def _count(blocks: Callable[[], Iterable[Scores]], upper: int | None) -> NDArray[np.int64]:
    counts = np.zeros(_HALF, np.int64)
    for block in blocks():
        # Adding zero turns -0.0 into 0.0, whose pattern is the smallest.
        bits = (np.ascontiguousarray(block, np.float32).ravel() + np.float32(0)).view(np.uint32)
        halves = bits >> 16 if upper is None else bits[bits >> 16 == upper] & 0xFFFF
        counts += np.bincount(halves, minlength=_HALF)
    return counts


def _bucket(counts: NDArray[np.int64], count: int) -> tuple[int, int]:
    """Return the bucket that holds the count-th element and how many elements lie in the buckets before it."""
    ends = np.cumsum(counts)
    if count > ends[-1]:
        msg = f"{count} weights cannot go: there are {ends[-1]}"
        raise ValueError(msg)
    bucket = int(np.searchsorted(ends, count))
    return bucket, int(ends[bucket] - counts[bucket])
