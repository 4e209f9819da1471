"""The pass ``prune-second-order``."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

import numpy as np

from graphopt.passes.prune.masking import LEVELS, MaskingPass, relative
from graphopt.solve import obs
from graphopt.solve.sparse_gpt import sparse_gpt

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from graphopt.solve.least_squares import Statistics
    from graphopt.solve.patterns import Mask

    Matrix = NDArray[np.float64]
    Vector = NDArray[np.float64]

MOST_OBS_FLOPS = 1e11
"""Layers whose exact order would cost more are pruned by SparseGPT where the method is ``auto``: about 15 seconds."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PruneSecondOrder(MaskingPass):
    """Set to zero the weights whose loss the others can best make up for.

    Attributes:
        method: ``obs``, the exact order of every row; ``sparsegpt``, columns from left to right, for wide layers;
            ``auto``, the exact order where it takes seconds.

    Matches: Conv, Gemm and MatMul of the main graph with a constant float weight, but depthwise ones.
    Produces: The same nodes, front to back: V = argmin E |W x - V z|^2 over the weights that stay, x and z the layer's
        inputs before and after; the bias keeps the mean output. Which stay: again and again the weight goes whose loss
        raises the error least when the others move. A row of C weights costs C^3 / 3 operations.
    Requires: Calibration data. For N:M a number of inputs that is a multiple of M.
    Preserves: Zeros, names, types and shapes. Not values: LOSSY.
    Source: Frantar and Alistarh 2022, arXiv:2208.11580 (exact OBS); 2023, arXiv:2301.00774 (SparseGPT); Hubara et al.
        2021, arXiv:2102.08124 (least squares on the mask); Jordan et al. 2022, arXiv:2211.08403 (variance).
    """

    name: ClassVar[str] = "prune-second-order"

    method: Literal["auto", "obs", "sparsegpt"] = "auto"

    def choose(
        self, weights: Sequence[Matrix], given: Sequence[Statistics], squares: Sequence[Vector], share: float
    ) -> list[tuple[Matrix, Mask]]:
        """Return the weights and which stay: one ranking over all rows of the layer."""
        return self.choose_each(weights, given, squares, [share])[0]

    def choose_each(
        self, weights: Sequence[Matrix], given: Sequence[Statistics], squares: Sequence[Vector], shares: Sequence[float]
    ) -> list[list[tuple[Matrix, Mask]]]:
        """Return what `choose` returns, for several shares: the exact order serves all of them."""
        systems = [obs.damped(each.inner, self.damping) for each in given]
        if not self._exact(weights):
            groups = list(zip(weights, systems, strict=True))
            return [[sparse_gpt(*each, self.parsed, share) for each in groups] for share in shares]
        paths = [
            obs.removal_path(*each, self.parsed, threads=_threads()) for each in zip(weights, systems, strict=True)
        ]
        cuts = [obs.cut_paths(paths, share) for share in shares]
        return [
            [(weight, path.mask(count)) for weight, path, count in zip(weights, paths, counts, strict=True)]
            for counts in cuts
        ]

    def losses(self, weights: Sequence[Matrix], given: Sequence[Statistics], squares: Sequence[Vector]) -> Vector:
        """Return the least error at each level, relative to the power of the output."""
        systems = [obs.damped(each.inner, self.damping) for each in given]
        power = sum(float(np.sum((w @ each.inner) * w)) for w, each in zip(weights, given, strict=True))
        if not self._exact(weights):
            errors = [self._error(weights, systems, float(level)) for level in LEVELS]
            return relative(np.asarray(errors), power)
        paths = [
            obs.removal_path(*each, self.parsed, threads=_threads()) for each in zip(weights, systems, strict=True)
        ]
        return relative(obs.losses_at(paths, LEVELS), power)

    def _error(self, weights: Sequence[Matrix], systems: Sequence[Matrix], share: float) -> float:
        total = 0.0
        for weight, system in zip(weights, systems, strict=True):
            lost = sparse_gpt(weight, system, self.parsed, share)[0] - weight
            total += float(np.sum((lost @ system) * lost))
        return total

    def _exact(self, weights: Sequence[Matrix]) -> bool:
        flops = sum(obs.path_flops(weight.shape, self.parsed) for weight in weights)
        return self.method == "obs" or (self.method == "auto" and flops <= MOST_OBS_FLOPS)


def _threads() -> int:
    """Return how many threads this process may use; how many it uses changes no result."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
