"""Finds scales per channel that move what is hard to round between a layer's inputs and its weights.

The channel x_j is divided by s_j where it is written, and column j of the weights that read it multiplied by s_j.

* `smooth`: for activations of few bits: outliers of a channel move into the weights;
* `protect`: for weights of few bits: columns that large inputs meet are rounded more finely.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

Matrix = NDArray[np.float64]
Vector = NDArray[np.float64]

MOST = 1e3
"""Scales lie between 1 / MOST and MOST."""

STEPS = 20
"""Exponents that `protect` tries: 0, 1/20, ... 19/20."""

ROUNDS = 4
"""Searches that `protect` makes at most, each on what the one before left."""

LEAST_GAIN = 0.02
"""A search that lowers the error by less than this share is the last, and its scales are not taken."""


def smooth(inputs: Vector, weights: Vector, alpha: float) -> Vector:
    """Return the scales max|x_j|^alpha / max|w_j|^(1 - alpha), [C]; 1 for channels that are always zero.

    Where one of them lies beyond the bounds all get a common factor, which evens nothing out, so that the largest and
    the smallest are equally far from 1.

    Args:
        inputs: Largest size of each channel on real data, [C].
        weights: Largest size of the weights that each channel meets, [C].
        alpha: 1 moves all unevenness of the inputs into the weights, 0 that of the weights into the inputs.

    Source: Xiao et al. 2023, arXiv:2211.10438, equation 4.
    """
    used = (inputs > 0) & (weights > 0)
    wide, narrow = np.where(used, inputs, 1.0), np.where(used, weights, 1.0)
    scales = np.where(used, wide**alpha / narrow ** (1 - alpha), 1.0)
    if used.any() and not 1 / MOST <= scales.min() <= scales.max() <= MOST:
        middle = np.sqrt(scales[used].max() * scales[used].min())
        scales = np.where(used, scales / middle, 1.0)
    return _bounded(scales)


@dataclass(frozen=True, slots=True)
class Protection:
    """What `protect` found.

    Attributes:
        scales: Per column, [C]; all 1 where nothing is better.
        exponents: The exponents of the inputs' size, one per round.
        before: Error of the layers' outputs when the weights are rounded as they are.
        after: The same with the scales.
    """

    scales: Vector
    exponents: tuple[float, ...]
    before: float
    after: float


def protect(
    weights: Sequence[Matrix],
    moment: Matrix,
    sizes: Vector,
    rounded: Callable[[Matrix], Matrix],
    *,
    steps: int = STEPS,
    rounds: int = ROUNDS,
) -> Protection:
    """Return the scales mean|x_j|^a whose exponent a makes the rounded layers' outputs change least.

    The error of a try is the sum over layers of tr((Q(W s) / s - W) H (Q(W s) / s - W)'), the mean square change of
    their outputs, so no try runs the model. What was found is taken for granted and searched again while that helps.

    Args:
        weights: W of each layer that reads the channels, [R, C].
        moment: H = E[x x'], [C, C].
        sizes: Mean size of each column's input, [C].
        rounded: Rounds a matrix, [R, C], to the grid that will be used.
        steps: Exponents tried in a round, from 0 in equal steps below 1.
        rounds: Searches at most.

    Cost: rounds * steps * R C^2 for R rows in all.
    Source: Lin et al. 2024, arXiv:2306.00978, section 3.2 and equation 5.
    """
    total = np.ones(len(sizes))
    before = after = _lost(weights, moment, total, rounded)
    exponents: list[float] = []
    for _ in range(rounds):
        tries = [(step / steps, _powers(sizes / total, step / steps)) for step in range(1, steps)]
        errors = [_lost(weights, moment, _bounded(total * scales), rounded) for _, scales in tries]
        best = int(np.argmin(errors)) if errors else 0
        if not errors or not errors[best] < after * (1 - LEAST_GAIN):
            break
        exponents.append(tries[best][0])
        total, after = _bounded(total * tries[best][1]), errors[best]
    return Protection(total, tuple(exponents), before, after)


def _powers(sizes: Vector, exponent: float) -> Vector:
    """Return sizes to a power, their largest and smallest equally far from 1; 1 for channels that are always zero."""
    used = sizes > 0
    if not used.any():
        return np.ones(len(sizes))
    scales = np.where(used, sizes, 1.0) ** exponent
    middle = np.sqrt(scales[used].max() * scales[used].min())
    return np.asarray(np.where(used, scales / middle, 1.0))


def _bounded(scales: Vector) -> Vector:
    return np.asarray(np.clip(scales, 1 / MOST, MOST))


def _lost(weights: Sequence[Matrix], moment: Matrix, scales: Vector, rounded: Callable[[Matrix], Matrix]) -> float:
    """Return the mean square change of the outputs when weights are rounded with scales."""
    total = 0.0
    for weight in weights:
        difference = rounded(weight * scales) / scales - weight
        total += float(np.einsum("rc,rc->", difference @ moment, difference))
    return total
