"""Rounds one layer by a named method."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray

from graphopt.solve.rounding.adaround import adaround
from graphopt.solve.rounding.coordinate_descent import alternate, descend_from
from graphopt.solve.rounding.gptq import gptq
from graphopt.solve.rounding.grids import nearest_grid, search

if TYPE_CHECKING:
    from graphopt.solve.rounding.grids import Granularity, Grid
    from graphopt.solve.rounding.levels import Levels
    from graphopt.solve.rounding.problem import Problem

Cube = NDArray[np.float64]
Method = Literal["auto", "nearest", "gptq", "adaround"]

FEW_COLUMNS = 640
"""Up to so many columns a second start of the descent costs little."""


def round_layer(
    problem: Problem,
    levels: Levels,
    granularity: Granularity,
    *,
    method: Method = "auto",
    rounds: int = 3,
    weight: Cube | None = None,
) -> tuple[Grid, Cube]:
    """Return a grid and the weights on it, [G, R, C].

    Args:
        problem: What is minimised.
        levels: The integers.
        granularity: What shares a scale.
        method: ``nearest`` looks at the weights alone; the others search scales: ``gptq``; ``auto``, which goes on from
            GPTQ with coordinate descent and refitted scales; ``adaround``, which goes on from AdaRound in the same way.
        rounds: Of descent and refitting.
        weight: Weights in the dense model's own scale that the first scales are searched for; None for the target.
    """
    if method == "nearest":
        kept = problem.target if weight is None else weight
        grid = nearest_grid(kept, levels, granularity, mask=problem.mask)
        return grid, grid.nearest(kept, problem.mask)
    grid = search(problem, levels, granularity, weight=weight)
    if method == "adaround":
        return alternate(problem, grid, adaround(problem, grid), rounds=rounds)
    start = gptq(problem, grid)
    if method == "gptq":
        return grid, start
    if problem.target.shape[2] <= FEW_COLUMNS:
        nearest = grid.nearest(problem.target, problem.mask)
        start = descend_from(problem, grid, [start, nearest], sweeps=2)
    return alternate(problem, grid, start, rounds=rounds)
