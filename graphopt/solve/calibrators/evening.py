"""Factors per channel for inputs that are rounded on one grid in every run."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from graphopt.solve.smoothing import smooth

Vector = NDArray[np.float64]
Matrix = NDArray[np.float64]

ALPHAS = np.linspace(0.3, 1.0, 15)
"""How much of the unevenness of the inputs moves into the weights: what is tried."""

LEVELS = 255
LIMIT = 127


@dataclass(frozen=True, slots=True)
class Evening:
    """What `even_channels` found.

    Attributes:
        scales: Per channel, [C]: the inputs are divided by them, the rows of the weight multiplied.
        gain_db: By how much the expected error of the outputs falls; 0 where nothing is better.
    """

    scales: Vector
    gain_db: float


def even_channels(lows: Vector, highs: Vector, powers: Vector, weight: Matrix) -> Evening:
    """Return the factors that make rounding a layer's inputs and weights to 8 bits change its outputs least.

    Inputs have one grid from their smallest to their largest value, so that the widest channel sets the step of all;
    weights have one scale per output. The error expected is step^2 / 12 per rounded number, times the mean square of
    what it meets. Factors are those of SmoothQuant, for the exponent that is best for this layer. Cost: 15 times C N.

    Args:
        lows: Smallest value of each channel of the inputs on real data, [C].
        highs: Largest values, [C].
        powers: Mean squares, [C].
        weight: [C, N]; those of several layers that read the same inputs side by side.

    Source: Xiao et al. 2023, arXiv:2211.10438, equation 4, for the form of the factors.
    """
    sizes, meets = np.maximum(np.abs(lows), np.abs(highs)), np.abs(weight)
    largest, squares = meets.max(axis=1, initial=0.0), np.square(weight).sum(axis=1)

    def noise(scales: Vector) -> float:
        step = (max((highs / scales).max(initial=0.0), 0.0) - min((lows / scales).min(initial=0.0), 0.0)) / LEVELS
        steps = (meets * scales[:, None]).max(axis=0, initial=0.0) / LIMIT
        return float(step**2 * (squares * scales**2).sum() + (steps**2).sum() * (powers / scales**2).sum()) / 12

    plain = np.ones(len(sizes))
    best, least = plain, noise(plain)
    before = least
    for alpha in ALPHAS:
        scales = smooth(sizes, largest, float(alpha))
        error = noise(scales)
        if error < least:
            best, least = scales, error
    return Evening(best, 10 * float(np.log10(before / least)) if least > 0 else 0.0)
