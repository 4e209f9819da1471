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


def smooth(inputs: Vector, weights: Vector, alpha: float) -> Vector:
    """Return the scales max|x_j|^alpha / max|w_j|^(1 - alpha), [C]; 1 for channels that are always zero.

    Args:
        inputs: Largest size of each channel on real data, [C].
        weights: Largest size of the weights that each channel meets, [C].
        alpha: 1 moves all unevenness of the inputs into the weights, 0 that of the weights into the inputs.

    Source: Xiao et al. 2023, arXiv:2211.10438, equation 4.
    """
    used = (inputs > 0) & (weights > 0)
    wide, narrow = np.where(used, inputs, 1.0), np.where(used, weights, 1.0)
    return np.asarray(np.clip(np.where(used, wide**alpha / narrow ** (1 - alpha), 1.0), 1 / MOST, MOST))


@dataclass(frozen=True, slots=True)
class Protection:
    """What `protect` found.

    Attributes:
        scales: Per column, [C]; all 1 where nothing is better.
        exponent: The exponent of the inputs' size.
        before: Error of the layers' outputs when the weights are rounded as they are.
        after: The same with the scales.
    """

    scales: Vector
    exponent: float
    before: float
    after: float


def protect(
    weights: Sequence[Matrix], moment: Matrix, sizes: Vector, rounded: Callable[[Matrix], Matrix], *, steps: int = STEPS
) -> Protection:
    """Return the scales mean|x_j|^a whose exponent a makes the rounded layers' outputs change least.

    The error of a try is the sum over layers of tr((Q(W s) / s - W) H (Q(W s) / s - W)'), the mean square change of
    their outputs, so no try runs the model.

    Args:
        weights: W of each layer that reads the channels, [R, C].
        moment: H = E[x x'], [C, C].
        sizes: Mean size of each column's input, [C].
        rounded: Rounds a matrix, [R, C], to the grid that will be used.
        steps: Exponents tried, from 0 in equal steps below 1.

    Cost: steps * R C^2 for R rows in all.
    Source: Lin et al. 2024, arXiv:2306.00978, section 3.2 and equation 5.
    """
    used = sizes > 0
    known = np.where(used, sizes, 1.0)
    best: Protection | None = None
    before = 0.0
    for step in range(steps):
        exponent = step / steps
        scales = np.where(used, known**exponent, 1.0)
        if used.any():
            scales = np.where(used, scales / np.sqrt(scales[used].max() * scales[used].min()), 1.0)
        scales = np.clip(scales, 1 / MOST, MOST)
        error = sum(_error(rounded(weight * scales) / scales - weight, moment) for weight in weights)
        if step == 0:
            before = error
        if best is None or error < best.after:
            best = Protection(scales, exponent, before, error)
    assert best is not None
    return best


def _error(difference: Matrix, moment: Matrix) -> float:
    return float(np.einsum("rc,rc->", difference @ moment, difference))
