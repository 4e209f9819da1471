"""Scales of weights by what rounding changes in the outputs of a layer."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Matrix = NDArray[np.float64]
Vector = NDArray[np.float64]

CANDIDATES = 41
"""Shares of the largest weight that are tried, from the whole down to ``LEAST_SHRINK``."""

LEAST_SHRINK = 0.5
"""With 8 bits, cutting off more than half of the largest weight never pays."""


def weight_scales(
    weight: Matrix,
    importance: Matrix | Vector | None = None,
    *,
    moment: Matrix | None = None,
    limit: int = 127,
    per_row: bool = True,
) -> Vector:
    """Return symmetric scales on which rounding a weight to nearest changes the outputs of its layer least.

    The error of a row is (q - w) H (q - w)', H the second moment of the layer's inputs; with its diagonal alone the
    error of each column counts by the mean square of the input it meets. Ties keep the larger scale. Cost: 41 times
    R C, or R C^2 with all of H.

    Args:
        weight: [R, C], one row per output.
        importance: The diagonal of H, [C], or one per row, [R, C]; None weighs all columns alike.
        moment: All of H, [C, C], in its place.
        limit: The largest integer; the smallest is its negative.
        per_row: One scale per row; else one in all.

    Returns:
        Scales, [R] or [1]: float32 numbers; zero for what has no weights but zeros.
    """

    def errors(scales: Vector) -> Vector:
        steps = np.where(scales > 0, scales, 1.0)[:, None]
        error = np.clip(np.rint(weight / steps), -limit, limit) * steps - weight
        if moment is not None:
            rows = np.einsum("rc,rc->r", error @ moment, error)
        else:
            rows = (np.square(error) * (1.0 if importance is None else importance)).sum(axis=1)
        return np.asarray(rows if per_row else rows.sum(keepdims=True))

    largest = np.abs(weight).max(axis=1, initial=0.0)
    if not per_row:
        largest = largest.max(initial=0.0, keepdims=True)
    best: Vector = (largest / limit).astype(np.float32).astype(np.float64)
    least = errors(best)
    for share in np.linspace(1.0, LEAST_SHRINK, CANDIDATES)[1:]:
        scales = (largest * share / limit).astype(np.float32).astype(np.float64)
        found = errors(scales)
        better = found < least
        best, least = np.where(better, scales, best), np.where(better, found, least)
    return np.asarray(best)
