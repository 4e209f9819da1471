"""Moves scale between layers that are linear in a channel between them, so that one step of a grid serves all channels.

A channel that one layer writes and others read can be divided by s where it is written and multiplied by s where it is
read: the model computes the same. Where ReLU or another function with f(s x) = s f(x) for s > 0 lies between, too.

Source: Nagel et al. 2019, arXiv:1906.04721, section 4.1; Meller et al. 2019, arXiv:1902.01917.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from collections.abc import Sequence

Matrix = NDArray[np.floating]
Vector = NDArray[np.float64]

ITERATIONS = 20
TOLERANCE = 1e-3
"""Relative change of a scale below which nothing changes any more."""

MOST = 100.0
"""Scales lie between 1 / MOST and MOST."""


def equalize(
    layers: Sequence[Matrix], links: Sequence[tuple[int, Sequence[int]]], *, iterations: int = ITERATIONS
) -> list[Vector]:
    """Return by what each channel of each link is divided where it is written, and multiplied where it is read.

    With r1 the largest weight that writes a channel and r2 the largest that reads it, the scale sqrt(r1 r2) / r2 makes
    both the same. A layer between two links changes with both, so the links are visited in turn until nothing moves.

    Args:
        layers: The size |w| of each layer's weights, the largest over kernel places, [outputs, inputs].
        links: Per link the layer that writes its channels (all of its outputs) and those that read them (as all of
            their inputs). A layer writes at most one link and reads at most one.
        iterations: Rounds over all links at most.

    Returns:
        Per link the scales, [channels], 1 for channels that are never written or never read.

    Cost: one pass over all weights per round.
    """
    sizes = [np.array(layer, np.float64) for layer in layers]
    scales = [np.ones(len(sizes[writer])) for writer, _ in links]
    for _ in range(iterations):
        moved = 0.0
        for place, (writer, readers) in enumerate(links):
            written = sizes[writer].max(axis=1, initial=0.0)
            read = np.max([sizes[reader].max(axis=0, initial=0.0) for reader in readers], axis=0)
            used = (written > 0) & (read > 0)
            step = np.sqrt(np.divide(written, read, out=np.ones_like(written), where=used))
            total = np.clip(scales[place] * step, 1 / MOST, MOST)
            step = total / scales[place]
            scales[place] = total
            sizes[writer] /= step[:, None]
            for reader in readers:
                sizes[reader] *= step
            moved = max(moved, float(np.abs(step - 1).max(initial=0.0)))
        if moved < TOLERANCE:
            break
    return scales


def unevenness(sizes: Matrix) -> float:
    """Return the mean share of the common range that channels leave unused, 0..1, of sizes of one channel each."""
    largest = float(np.max(sizes, initial=0.0))
    return float(1 - np.mean(sizes[sizes > 0] / largest)) if largest > 0 else 0.0


def lower_bounds(weight: Matrix, bias: Vector, low: float, high: float) -> Vector:
    """Return what the outputs of a layer never fall below, [R], for inputs between two numbers, infinite ones too.

    Args:
        weight: W, [R, C], kernel places among the columns.
        bias: [R].
        low: Smallest input, padding included.
        high: Largest input.
    """
    positive, negative = np.maximum(weight, 0.0), np.minimum(weight, 0.0)

    def times(part: Matrix, value: float) -> Vector:
        if np.isfinite(value):
            return np.asarray(part.sum(axis=1) * value)
        return np.where((part != 0).any(axis=1), -np.inf, 0.0)

    return np.asarray(bias + times(positive, low) + times(negative, high))


def absorbed(bias: Vector, bounds: Vector | None) -> Vector:
    """Return what of each bias can move into the layers that read the channel, [R].

    A part c may go where f(x - c) = f(x) - c for every x that occurs: everywhere if nothing lies between, and where x
    never falls below c if it is ReLU.

    Args:
        bias: [R].
        bounds: What the outputs never fall below where ReLU lies between, [R]; None where nothing does.

    Source: Nagel et al. 2019, arXiv:1906.04721, section 4.1.3, with a bound that is proven instead of a likely one.
    """
    if bounds is None:
        return bias.copy()
    return np.where(np.isfinite(bounds), np.minimum(np.maximum(bounds, 0.0), np.maximum(bias, 0.0)), 0.0)
