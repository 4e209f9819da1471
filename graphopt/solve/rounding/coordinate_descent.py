"""Cyclic coordinate descent on a grid, in turn with the scales that fit best.

Each step gives one weight of every row the level that is best while all others stay, so the error never grows.

Source: Behdin et al. 2023, arXiv:2309.01885 (QuantEase), section 3; Zhang et al. 2024, arXiv:2403.07134 (COMQ),
section 3.2, which also refits the scales.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from graphopt.solve.rounding.grids import layer_error, row_errors, stored

if TYPE_CHECKING:
    from collections.abc import Sequence

    from graphopt.solve.rounding.gptq import Rounding
    from graphopt.solve.rounding.grids import Grid
    from graphopt.solve.rounding.problem import Problem

Cube = NDArray[np.float64]

BLOCK = 64
"""Columns between two updates of the gradient of all others."""

LEAST_GAIN = 1e-4
"""A round that lowers the error by less than this share is the last."""


def descend(problem: Problem, grid: Rounding, start: Cube, *, sweeps: int = 4) -> Cube:
    """Return weights on the grid that are at least as good as the start, [G, R, C].

    Args:
        problem: What is minimised; weights off its mask stay zero.
        grid: What is rounded to.
        start: Weights on the grid, [G, R, C], zero off the mask.
        sweeps: Times that every weight is visited at most; a sweep that changes nothing is the last. Cost of one:
            G R C^2, as matrix products of blocks.
    """
    moment = problem.moment
    columns = moment.shape[1]
    diagonal = np.einsum("gcc->gc", moment)[:, :, None]
    values = np.ascontiguousarray(np.moveaxis(start, 2, 1))
    kept = None if problem.mask is None else np.moveaxis(problem.mask, 2, 1)
    # Half the gradient, [G, C, R]. H is symmetric.
    slope = moment @ (values - np.moveaxis(problem.target, 2, 1))
    rounded = grid.rounder(columns)
    for _ in range(sweeps):
        moved = False
        for begin in range(0, columns, BLOCK):
            end = min(begin + BLOCK, columns)
            inside = moment[:, begin:end, begin:end]
            here, before = slope[:, begin:end].copy(), values[:, begin:end].copy()
            for place, column in enumerate(range(begin, end)):
                value = rounded(column, values[:, column] - here[:, place] / diagonal[:, column])
                if kept is not None:
                    value = np.where(kept[:, column], value, 0.0)
                change = value - values[:, column]
                values[:, column] = value
                here += inside[:, :, place, None] * change[:, None]
            change = values[:, begin:end] - before
            if change.any():
                moved = True
                slope += moment[:, :, begin:end] @ change
        if not moved:
            break
    return np.ascontiguousarray(np.moveaxis(values, 1, 2))


def descend_from(problem: Problem, grid: Rounding, starts: Sequence[Cube], *, sweeps: int = 4) -> Cube:
    """Return for each row the best of the descents from several starts, [G, R, C]; see `descend`.

    Descent ends where no single change helps, which depends on where it began.
    """
    found = [descend(problem, grid, start, sweeps=sweeps) for start in starts]
    errors = np.stack([row_errors(problem, values) for values in found])
    return np.asarray(np.take_along_axis(np.stack(found), errors.argmin(axis=0)[None, :, :, None], axis=0)[0])


def refit_scales(problem: Problem, grid: Grid, values: Cube) -> tuple[Grid, Cube]:
    """Return the grid with the scales that fit the integers best, and the weights on it.

    A row alone has s = (q H w') / (q H q'), q the integers less their zero point. Blocks of a row are fitted one after
    the other, each with what the others leave. Cost: G R C^2.

    Args:
        problem: What is minimised.
        grid: The grid that the weights lie on.
        values: Weights on it, [G, R, C].
    """
    scale, _ = grid.spread(values.shape[2])
    unit = values / scale
    fresh = grid.scale.copy()
    current = values.copy()
    slope = (values - problem.target) @ problem.moment
    shared = tuple(axis for axis in (0, 1) if grid.scale.shape[axis] == 1 and values.shape[axis] > 1)
    for place in range(fresh.shape[2]):
        span = slice(place * grid.block, (place + 1) * grid.block)
        part = unit[:, :, span]
        pushed = part @ problem.moment[:, span]
        curvature = np.einsum("grk,grk->gr", pushed[:, :, span], part).sum(axis=shared, keepdims=True)
        pull = np.einsum("grk,grk->gr", slope[:, :, span], part).sum(axis=shared, keepdims=True)
        curvature, pull = (sums[: fresh.shape[0], : fresh.shape[1]] for sums in (curvature, pull))
        step = np.divide(pull, curvature, out=np.zeros_like(pull), where=curvature > 0)
        better = fresh[:, :, place] - step
        better = np.where((better > 0) & (curvature > 0), stored(np.maximum(better, 0)), fresh[:, :, place])
        change = (better - fresh[:, :, place])[:, :, None]
        fresh[:, :, place] = better
        current[:, :, span] = part * better[:, :, None]
        slope += change * pushed
    return replace(grid, scale=fresh), current


def alternate(problem: Problem, grid: Grid, start: Cube, *, rounds: int = 3, sweeps: int = 3) -> tuple[Grid, Cube]:
    """Descend on the grid and refit its scales in turn; return the last grid and the weights on it.

    The error falls in every round; a round that gains next to nothing is the last. Cost: rounds * (sweeps + 2) G R C^2.

    Args:
        problem: What is minimised.
        grid: The first grid.
        start: Weights on it, [G, R, C].
        rounds: At most so many.
        sweeps: Of each descent.
    """
    values, error = start, layer_error(problem, start)
    for _ in range(rounds):
        values = descend(problem, grid, values, sweeps=sweeps)
        grid, values = refit_scales(problem, grid, values)
        now = layer_error(problem, values)
        done = now > error * (1 - LEAST_GAIN)
        error = now
        if done:
            break
    return grid, values
