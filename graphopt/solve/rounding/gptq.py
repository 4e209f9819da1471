"""GPTQ: rounds column by column and lets the columns that are left make up for each error."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from collections.abc import Callable

    from graphopt.solve.rounding.problem import Problem

Cube = NDArray[np.float64]

BLOCK = 64
"""Columns between two updates of everything that is left: inside a block the update stays in cache."""


class Rounding(Protocol):
    """What a weight can be rounded to: a grid or a code book."""

    def rounder(self, columns: int) -> Callable[[int, Cube], Cube]:
        """Return the function that rounds column j of every row, [G, R]."""


def gptq(problem: Problem, grid: Rounding, *, by_size: bool = True) -> Cube:
    """Return weights on the grid, [G, R, C].

    The columns whose inputs are largest go first (act-order), while most others are left to make up for them. Scales of
    blocks of columns stay where they are. Cost: G (C^3 + R C^2).

    Args:
        problem: What is minimised; weights off its mask become zero.
        grid: What is rounded to.
        by_size: Large inputs first; else from the first column to the last.

    Raises:
        LinAlgError: The moments are not positive definite.

    Source: Frantar et al. 2023, arXiv:2210.17323, algorithm 1; order by size from the authors' later code.
    """
    columns = problem.target.shape[2]
    diagonal = np.einsum("gcc->gc", problem.moment)
    # One order for all groups: columns of different groups are then rounded by one call.
    order = np.argsort(-diagonal.sum(axis=0), kind="stable") if by_size else np.arange(columns)
    factor = np.stack([_inverse_factor(part[np.ix_(order, order)]) for part in problem.moment])
    # Columns first: what is worked on lies together.
    left = np.ascontiguousarray(np.moveaxis(problem.target[:, :, order], 2, 1))
    kept = None if problem.mask is None else np.moveaxis(problem.mask[:, :, order], 2, 1)
    result = np.empty_like(left)
    rounded = grid.rounder(columns)
    for begin in range(0, columns, BLOCK):
        end = min(begin + BLOCK, columns)
        here = left[:, begin:end].copy()
        errors = np.empty_like(here)
        for place in range(end - begin):
            column = begin + place
            value = rounded(int(order[column]), here[:, place])
            if kept is not None:
                value = np.where(kept[:, column], value, 0.0)
            result[:, column] = value
            errors[:, place] = (here[:, place] - value) / factor[:, column, column, None]
            weights = factor[:, column, column:end]
            here[:, place:] -= weights[:, :, None] * errors[:, None, place]
        if end < columns:
            left[:, end:] -= np.swapaxes(factor[:, begin:end, end:], 1, 2) @ errors
    back = np.empty_like(order)
    back[order] = np.arange(columns)
    return np.ascontiguousarray(np.moveaxis(result[:, back], 1, 2))


def _inverse_factor(moment: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the upper triangular U with U' U = H^-1, [C, C]."""
    # With J the reversal of the order, J H J = L L' gives H^-1 = U' U for U = J L^-1 J: no inverse of H is formed.
    lower = np.linalg.cholesky(moment[::-1, ::-1])
    inverse = np.linalg.solve(lower, np.eye(len(lower)))
    return np.ascontiguousarray(inverse[::-1, ::-1])
