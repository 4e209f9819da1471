"""Wanda: what a weight is worth by its size and that of its input, row by row; nothing is solved.

Source: Sun et al. 2023, arXiv:2306.11695, section 3.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from graphopt.solve.patterns import keep_best

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from graphopt.solve.patterns import Mask, Pattern

    Matrix = NDArray[np.float64]
    Vector = NDArray[np.float64]


def wanda_scores(weight: Matrix, squares: Vector) -> Matrix:
    """Return |w_ij| sqrt(E[z_j^2]), [R, C].

    Args:
        weight: W, [R, C].
        squares: Mean square of each input, [C]: the diagonal of H.
    """
    return np.asarray(np.abs(weight) * np.sqrt(np.maximum(squares, 0.0)))


def wanda_mask(weight: Matrix, squares: Vector, pattern: Pattern, share: float) -> Mask:
    """Return which weights stay, [R, C]: every group of rows loses the same number.

    Blocks are worth the mean of the squares of their weights' scores: the error that each alone would make.

    Args:
        weight: W, [R, C].
        squares: Mean square of each input, [C].
        pattern: What goes together; N:M keeps its own share.
        share: Share of weights that goes, 0..1.

    Cost: R C, and one sort.
    """
    return keep_best(np.square(wanda_scores(weight, squares)), pattern, share, per_row=True)
