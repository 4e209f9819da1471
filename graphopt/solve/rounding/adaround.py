"""AdaRound on second moments: learns whether each weight is rounded down or up.

The original minimises the layer's error on samples of its input. That error is a quadratic form of the weights, so the
moments of the inputs are all it needs, and an iteration costs the same however many samples there were.

Source: Nagel et al. 2020, arXiv:2004.10568, section 3 (equations 21 to 25).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from graphopt.solve.rounding.grids import Grid
    from graphopt.solve.rounding.problem import Problem

Cube = NDArray[np.float64]

STRETCH_HIGH, STRETCH_LOW = 1.1, -0.1
"""The sigmoid is stretched over these and clipped, so that 0 and 1 are reached."""

BETA_FIRST, BETA_LAST = 20.0, 2.0
"""Exponent of the term that pushes to 0 or 1: at first only what is nearly there, in the end everything."""

WARM_SHARE = 0.2
"""Share of the iterations without that term."""


def adaround(problem: Problem, grid: Grid, *, iterations: int = 400, rate: float = 0.1, push: float = 1.0) -> Cube:
    """Return weights on the grid, each the level below or above its target, [G, R, C].

    Args:
        problem: What is minimised; weights off its mask become zero.
        grid: What is rounded to.
        iterations: Steps of Adam, each G R C^2.
        rate: Its step.
        push: Weight of the term that pushes to 0 or 1, relative to the error that one level makes in each weight alone.
    """
    scale, zero = grid.spread(problem.target.shape[2])
    position = problem.target / scale + zero
    below = np.floor(position)
    share = np.clip(position - below, 1e-3, 1 - 1e-3)
    wide = STRETCH_HIGH - STRETCH_LOW
    free = -np.log(wide / (share - STRETCH_LOW) - 1)
    strength = push * _unit(problem, scale)
    first, second = np.zeros_like(free), np.zeros_like(free)
    warm = int(iterations * WARM_SHARE)
    for step in range(1, iterations + 1):
        sigmoid = 1 / (1 + np.exp(-free))
        stretched = sigmoid * wide + STRETCH_LOW
        part = np.clip(stretched, 0.0, 1.0)
        codes = below + part
        inside = (codes > grid.levels.low) & (codes < grid.levels.high) & (stretched > 0) & (stretched < 1)
        values = (np.clip(codes, grid.levels.low, grid.levels.high) - zero) * scale
        if problem.mask is not None:
            values = np.where(problem.mask, values, 0.0)
        gradient = 2 * ((values - problem.target) @ problem.moment) * scale
        if step > warm:
            gradient = gradient + strength * _pushed(part, (step - warm) / (iterations - warm))
        gradient = np.where(inside, gradient, 0.0) * sigmoid * (1 - sigmoid) * wide
        first = 0.9 * first + 0.1 * gradient
        second = 0.999 * second + 0.001 * gradient**2
        free -= rate * (first / (1 - 0.9**step)) / (np.sqrt(second / (1 - 0.999**step)) + 1e-30)
    chosen = below + (1 / (1 + np.exp(-free)) * wide + STRETCH_LOW >= 0.5)
    values = (np.clip(chosen, grid.levels.low, grid.levels.high) - zero) * scale
    return np.asarray(values if problem.mask is None else np.where(problem.mask, values, 0.0))


def _unit(problem: Problem, scale: Cube) -> Cube:
    """Return the error that one level in each weight alone makes, per row: what the push is measured in."""
    diagonal = np.einsum("gcc->gc", problem.moment)[:, None]
    return np.asarray((diagonal * scale**2).mean(axis=2, keepdims=True))


def _pushed(part: Cube, progress: float) -> Cube:
    """Return the derivative of 1 - |2 h - 1|^beta by h."""
    beta = BETA_LAST + 0.5 * (BETA_FIRST - BETA_LAST) * (1 + np.cos(np.pi * progress))
    away = 2 * part - 1
    return np.asarray(-2 * beta * np.sign(away) * np.abs(away) ** (beta - 1))
