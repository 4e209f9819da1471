"""Finds the scales of a grid: from the largest weights, or where the layer's outputs change least."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from collections.abc import Callable

    from graphopt.solve.rounding.levels import Levels
    from graphopt.solve.rounding.problem import Problem

Cube = NDArray[np.float64]
Granularity = int | Literal["tensor", "row"]
"""What shares a scale: everything, an output row, or so many neighbouring columns of a row."""

SMALLEST_SCALE = 2.0**-100
"""Scales below this are none: such weights count as zeros."""

COARSE = 14
FINE = 8
"""Shrink factors tried by a search: over the whole span first, then around the best."""

FEW_LEVELS = 4
"""Up to so many levels a grid that reaches the largest weight rounds most others to zero."""

LEAST_SHRINK = 0.15
"""The smallest share of the largest weight that a search lets the highest level stand for."""


@dataclass(frozen=True, slots=True)
class Grid:
    """Levels with scales.

    Attributes:
        levels: The integers.
        scale: Above 0, every one a float32 number, [G or 1, R or 1, B].
        zero: What is subtracted from an integer before it is scaled, in the shape of ``scale``.
        block: Neighbouring columns that share a scale; the last block may be shorter.
    """

    levels: Levels
    scale: Cube
    zero: Cube
    block: int

    def spread(self, columns: int) -> tuple[Cube, Cube]:
        """Return scale and zero per column, [G or 1, R or 1, C]."""
        if self.scale.shape[2] == 1:
            shape = (*self.scale.shape[:2], columns)
            return np.broadcast_to(self.scale, shape), np.broadcast_to(self.zero, shape)
        scale, zero = (np.repeat(part, self.block, axis=2)[:, :, :columns] for part in (self.scale, self.zero))
        return scale, zero

    def codes(self, values: Cube) -> Cube:
        """Return the integers nearest to values [G, R, C], as float64."""
        scale, zero = self.spread(values.shape[2])
        return np.asarray(np.clip(np.rint(values / scale + zero), self.levels.low, self.levels.high))

    def restore(self, codes: Cube) -> Cube:
        """Return what integers [G, R, C] stand for."""
        scale, zero = self.spread(codes.shape[2])
        return np.asarray((codes - zero) * scale)

    def nearest(self, values: Cube, mask: NDArray[np.bool_] | None = None) -> Cube:
        """Return the values on the grid nearest to values [G, R, C]; zero off the mask."""
        found = self.restore(self.codes(values))
        return found if mask is None else np.where(mask, found, 0.0)

    def rounder(self, columns: int) -> Callable[[int, Cube], Cube]:
        """Return the function that rounds column j of every row, [G, R], to the grid."""
        scale, zero = (np.ascontiguousarray(np.moveaxis(part, 2, 0)) for part in self.spread(columns))
        low, high = self.levels.low, self.levels.high

        def rounded(column: int, values: Cube) -> Cube:
            codes = np.clip(np.rint(values / scale[column] + zero[column]), low, high)
            return np.asarray((codes - zero[column]) * scale[column])

        return rounded


def min_max(weight: Cube, levels: Levels, granularity: Granularity = "row", *, shrink: float = 1.0) -> Grid:
    """Return the grid whose outermost level is the largest weight, or a share of it.

    Args:
        weight: [G, R, C].
        levels: The integers.
        granularity: What shares a scale.
        shrink: The share, 0 to 1.
    """
    low, high, block = _ends(weight, granularity)
    return _shrunken(levels, low, high, np.full(low.shape, shrink), block)


def _ends(weight: Cube, granularity: Granularity) -> tuple[Cube, Cube, int]:
    """Return the smallest and largest weight that share a scale, zero among them, and the columns of a block."""
    columns = weight.shape[2]
    block = columns if isinstance(granularity, str) else min(granularity, columns)
    parts = _blocks(weight, block)
    low, high = np.minimum(parts.min(axis=3), 0.0), np.maximum(parts.max(axis=3), 0.0)
    if granularity == "tensor":
        low, high = low.min(keepdims=True), high.max(keepdims=True)
    return low, high, block


def _blocks(values: Cube, block: int) -> Cube:
    """Return [G, R, C] as [G, R, B, block], zeros behind the last column."""
    groups, rows, columns = values.shape
    count = -(-columns // block)
    padded = np.pad(values, [(0, 0), (0, 0), (0, count * block - columns)])
    return np.ascontiguousarray(padded).reshape(groups, rows, count, block)


def stored(scale: Cube) -> Cube:
    """Return scales as they will be stored: float32 numbers; one where nothing but zeros would be scaled."""
    kept = scale.astype(np.float32).astype(np.float64)
    return np.asarray(np.where(kept > SMALLEST_SCALE, kept, 1.0))


def search(problem: Problem, levels: Levels, granularity: Granularity = "row", *, weight: Cube | None = None) -> Grid:
    """Return the grid on which rounding to nearest changes the outputs least, among shrunken min-max grids.

    The squared error of the weights alone clips the large ones, which carry the signal; weighted with the moments of
    the inputs it does not. Blocks are judged each for itself. Cost: 22 factors of R C^2 each, R C block for blocks.

    Args:
        problem: What is minimised.
        levels: The integers.
        granularity: What shares a scale.
        weight: What is rounded, [G, R, C]; None for the target on its mask.
    """
    if weight is None:
        weight = problem.target if problem.mask is None else np.where(problem.mask, problem.target, 0.0)
    block = _ends(weight, granularity)[2]
    return _searched(weight, problem.mask, levels, granularity, _diagonal_blocks(problem.moment, block))


def nearest_grid(
    weight: Cube, levels: Levels, granularity: Granularity = "row", *, mask: NDArray[np.bool_] | None = None
) -> Grid:
    """Return the grid for weights of which nothing else is known.

    Down to 3 bits it reaches the largest weight. Four levels or fewer would leave little but zeros then, so their scale
    is the one of least squared error.

    Args:
        weight: [G, R, C].
        levels: The integers.
        granularity: What shares a scale.
        mask: Which weights may be other than zero.
    """
    if levels.count > FEW_LEVELS:
        return min_max(weight, levels, granularity)
    return _searched(weight, mask, levels, granularity, None)


def _searched(
    weight: Cube, mask: NDArray[np.bool_] | None, levels: Levels, granularity: Granularity, diagonal: Cube | None
) -> Grid:
    """Return the best of shrunken grids; errors are weighted with blocks of H, or not."""
    low, high, block = _ends(weight, granularity)
    ones = np.ones(low.shape)

    def errors(grid: Grid) -> Cube:
        difference = _blocks(grid.nearest(weight, mask) - weight, block)
        pushed = difference if diagonal is None else _times(difference, diagonal)
        found = np.einsum("grbk,grbk->grb", pushed, difference)
        return np.asarray(found.sum(keepdims=True) if granularity == "tensor" else found)

    shrinks, least = ones, errors(_shrunken(levels, low, high, ones, block))
    coarse = np.linspace(LEAST_SHRINK, 1.0, COARSE)
    gap = float(coarse[1] - coarse[0])
    fine = np.linspace(-gap, gap, FINE + 2)[1:-1]
    for trials in (coarse[:-1], fine):
        centre = shrinks if trials is fine else np.zeros(low.shape)
        for trial in trials:
            tried = centre + trial
            found = errors(_shrunken(levels, low, high, tried, block))
            better = found < least
            shrinks, least = np.where(better, tried, shrinks), np.where(better, found, least)
    return _shrunken(levels, low, high, shrinks, block)


def _shrunken(levels: Levels, low: Cube, high: Cube, shrink: Cube, block: int) -> Grid:
    """Return the grid over a share of the span of each block."""
    if levels.symmetric:
        reach = min(levels.high - levels.middle, levels.middle - levels.low)
        scale = stored(np.maximum(-low, high) * shrink / reach)
        return Grid(levels, scale, np.full(scale.shape, levels.middle), block)
    scale = stored((high - low) * shrink / (levels.high - levels.low))
    zero = np.clip(np.rint(levels.low - low * shrink / scale), levels.low, levels.high)
    return Grid(levels, scale, zero, block)


def _diagonal_blocks(moment: Cube, block: int) -> Cube:
    """Return the blocks of H on its diagonal, [G, B, block, block]."""
    groups, columns, _ = moment.shape
    count = -(-columns // block)
    padded = np.pad(moment, [(0, 0), (0, count * block - columns), (0, count * block - columns)])
    cut = padded.reshape(groups, count, block, count, block)
    return np.ascontiguousarray(np.stack([cut[:, place, :, place] for place in range(count)], axis=1))


def _times(parts: Cube, diagonal: Cube) -> Cube:
    """Return each block of each row times its block of H, [G, R, B, block]."""
    return np.moveaxis(np.moveaxis(parts, 2, 1) @ diagonal, 1, 2)


def row_errors(problem: Problem, values: Cube) -> NDArray[np.float64]:
    """Return each row's part of E(Q), [G, R], for Q of shape [G, R, C]."""
    difference = values - problem.target
    return np.asarray(np.einsum("grc,grc->gr", difference @ problem.moment, difference))


def layer_error(problem: Problem, values: Cube) -> float:
    """Return E(Q) over all rows and groups for Q of shape [G, R, C]."""
    return float(row_errors(problem, values).sum())
