"""SparseGPT: exact OBS with the columns taken from left to right, for layers too wide for the exact order.

Columns are settled one after the other; those to the right make up for what went to the left. One factorization serves
all rows, so the cost grows with the square of the columns instead of the cube.

Source: Frantar and Alistarh 2023, arXiv:2301.00774, section 3.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from graphopt.solve.obs import inverted
from graphopt.solve.patterns import keep_best

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from graphopt.solve.patterns import Mask, Pattern

    Matrix = NDArray[np.float64]

BLOCK_COLUMNS = 128
"""Columns whose mask is chosen at once."""


def sparse_gpt(
    weight: Matrix, inner: Matrix, pattern: Pattern, share: float, *, block: int = BLOCK_COLUMNS
) -> tuple[Matrix, Mask]:
    """Return the weights after some went and the rest made up for it, and which stay.

    Args:
        weight: W, [R, C]: the dense weights, or the best ones for other inputs (the asymmetric start). Weights that are
            zero stay zero and count as gone.
        inner: H, [C, C], positive definite: damped.
        pattern: What goes together; N:M keeps its own share.
        share: Share of weights that goes, 0..1, the same in every block of columns.
        block: Columns whose mask is chosen at once; rounded up to whole blocks of the pattern.

    Returns:
        V, zero where a weight went, and the mask, True where one stays, [R, C] each.

    Raises:
        numpy.linalg.LinAlgError: H is not positive definite in float64.

    Cost: R C^2 + C^3 multiply-adds; memory three matrices of C^2.
    """
    columns = weight.shape[1]
    unit = max(pattern.columns, pattern.of)
    width = -(-block // unit) * unit
    # H^-1 = U' U with U upper triangular; row j of U is column j of H^-1 once the columns before j are settled.
    upper = np.linalg.cholesky(inverted(inner)).T
    pivots = np.diag(upper)
    left, support = weight.copy(), weight != 0
    kept = np.ones(weight.shape, bool)
    asked = 0.0
    went = 0
    for start in range(0, columns, width):
        stop = min(start + width, columns)
        here = np.arange(start, stop)
        scores = np.where(support[:, here], np.square(left[:, here] / pivots[here]), 0.0)
        # What rounding to whole blocks left over is asked of the next columns, so that the share over all is exact.
        size = scores.size
        asked += share * size
        if pattern.of:
            mask = _n_of_m(left[:, here], support[:, here], upper[np.ix_(here, here)], pattern)
        else:
            mask = keep_best(scores, pattern, min(1.0, max(0.0, (asked - went) / size)))
            went += int(np.count_nonzero(~mask))
            mask &= support[:, here]
        kept[:, here] = mask
        errors = _settle(left[:, here], upper[np.ix_(here, here)], mask)
        left[:, stop:] -= errors @ upper[here, stop:]
        settled = left[:, here]
        left[:, here] = np.where(mask, settled - errors @ np.triu(upper[np.ix_(here, here)], 1), 0.0)
    return left, kept


def _settle(weight: Matrix, upper: Matrix, mask: Mask) -> Matrix:
    """Return the error of each column of a block, [R, block], by its pivot; ``weight`` is not changed."""
    present = weight.copy()
    errors = np.zeros_like(weight)
    for column in range(weight.shape[1]):
        errors[:, column] = np.where(mask[:, column], 0.0, present[:, column]) / upper[column, column]
        present[:, column + 1 :] -= errors[:, column, None] * upper[column, column + 1 :]
    return errors


def _n_of_m(weight: Matrix, support: Mask, upper: Matrix, pattern: Pattern) -> Mask:
    """Return which weights of a block stay: each group of M is chosen when the columns before it are settled."""
    present = weight.copy()
    mask = np.ones(weight.shape, bool)
    for start in range(0, weight.shape[1], pattern.of):
        stop = min(start + pattern.of, weight.shape[1])
        group = np.square(present[:, start:stop] / np.diag(upper)[start:stop])
        free = support[:, start:stop]
        mask[:, start:stop] = keep_best(np.where(free, group, 0.0), pattern, 0.0) & free
        for column in range(start, stop):
            error = np.where(mask[:, column], 0.0, present[:, column]) / upper[column, column]
            present[:, column + 1 :] -= error[:, None] * upper[column, column + 1 :]
    return mask
