"""What each weight is worth to its layer, for the choice of an order of channels."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from graphopt.solve import obs
from graphopt.solve.patterns import UNSTRUCTURED
from graphopt.solve.threads import cores

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from graphopt.analysis.layer_statistics import Sums
    from graphopt.rewrite.layer_stop import Stop

    Matrix = NDArray[np.float64]

MOST_FLOPS = 1e11
"""Layers whose exact order would cost more are scored by their mean squares: about 15 seconds."""


def saliency(stop: Stop, sums: Sums | None, damping: float) -> NDArray[np.float64]:
    """Return the scores of a layer's weights, of the weight's shape; they sum to one.

    With statistics a score is the share of the layer's weights that exact OBS removes before this one; of layers too
    wide for that w^2 E[z^2]. Without, it is w^2.

    Args:
        stop: The layer.
        sums: What it reads; None where that is not known.
        damping: Of the system of exact OBS, relative to the mean square of the inputs.
    """
    weights = stop.form.matrices(stop.layer.array())
    if sums is None or not sums.finite():
        found = [np.square(weight) for weight in weights]
    elif not sums.fit or sum((obs.path_flops(weight.shape, UNSTRUCTURED) for weight in weights), 0.0) > MOST_FLOPS:
        squares = [each.inner / each.count for each in sums.squares]
        squares = squares or [np.diag(moments.inner) / moments.count for moments in sums.fit]
        found = [np.square(weight) * square for weight, square in zip(weights, squares, strict=True)]
    else:
        given = [moments.mean(centred=stop.bias is not None) for moments in sums.fit]
        found = _removal_ranks(weights, [obs.damped(each.inner, damping) for each in given])
    total = max(sum(float(part.sum()) for part in found), np.finfo(np.float64).tiny)
    return stop.form.weight([part / total for part in found], np.zeros(stop.dense.shape))


def _removal_ranks(weights: Sequence[Matrix], systems: Sequence[Matrix]) -> list[Matrix]:
    """Return which share of all weights goes before each one, [R, C] per group."""
    levels = []
    for weight, system in zip(weights, systems, strict=True):
        path = obs.removal_path(weight, system, threads=cores())
        level = np.empty(weight.shape)
        np.put_along_axis(level, path.order.astype(np.int64), path.highest_so_far(), axis=1)
        levels.append(level)
    together = np.concatenate([level.reshape(-1) for level in levels])
    ranks = np.empty(len(together))
    ranks[np.argsort(together, kind="stable")] = np.arange(len(together)) / len(together)
    ends = np.cumsum([level.size for level in levels])[:-1]
    return [part.reshape(level.shape) for part, level in zip(np.split(ranks, ends), levels, strict=True)]
