"""The pass ``prune-wanda``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from graphopt.passes.prune.masking import LEVELS, MaskingPass
from graphopt.solve.wanda import wanda_mask, wanda_scores

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from graphopt.rewrite.layerwise import Problem, Solution
    from graphopt.solve.least_squares import Statistics
    from graphopt.solve.patterns import Mask

    Matrix = NDArray[np.float64]
    Vector = NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class PruneWanda(MaskingPass):
    """Set the weights to zero that are small beside what their inputs bring.

    Attributes:
        allocation: How layers share it out: ``uniform``, all the same; ``size``, large ones a little sparser: the share
            that stays goes with the number of weights to the power of -1/8; ``erk``, by their shapes, far sparser;
            ``loss``, by the share of its scores that each layer loses; ``kl``, by what it costs the outputs of the
            model where only that layer is pruned, measured.
        refit: Solve the weights that stay again for the dense outputs; without it they stay as they were, as the
            method was published.

    Matches: Conv, Gemm and MatMul of the main graph with a constant float weight, but depthwise ones.
    Produces: The same nodes, front to back: in every row the weights with the least |w| sqrt(E[z^2]) go, z what they
        read in the model as pruned so far; the others are solved again, and the bias keeps the mean output.
    Requires: Calibration data. For N:M a number of inputs that is a multiple of M.
    Preserves: Zeros, names, types and shapes. Not values: LOSSY.
    Source: Sun et al. 2023, arXiv:2306.11695; Hubara et al. 2021, arXiv:2102.08124 (least squares on the mask).
    """

    name: ClassVar[str] = "prune-wanda"

    refit: bool = True

    def solve(self, problem: Problem) -> Solution | str:
        """Return the weights that stay, solved again or as they were."""
        found = super(PruneWanda, self).solve(problem)
        if self.refit or isinstance(found, str) or found.otherwise is None:
            return found
        return type(found)(found.otherwise, what=found.what)

    def choose(
        self, weights: Sequence[Matrix], given: Sequence[Statistics], squares: Sequence[Vector], share: float
    ) -> list[tuple[Matrix, Mask]]:
        """Return the weights and which stay: each row loses the same number."""
        groups = zip(weights, squares, strict=True)
        masks = [wanda_mask(weight, square, self.parsed, share) for weight, square in groups]
        return [(np.where(mask, weight, 0.0), mask) for weight, mask in zip(weights, masks, strict=True)]

    def losses(self, weights: Sequence[Matrix], given: Sequence[Statistics], squares: Sequence[Vector]) -> Vector:
        """Return the share of the squared scores that goes at each level."""
        found = []
        values = [np.square(wanda_scores(weight, square)) for weight, square in zip(weights, squares, strict=True)]
        total = max(sum(float(value.sum()) for value in values), np.finfo(np.float64).tiny)
        for level in LEVELS:
            masks = (
                wanda_mask(w, square, self.parsed, float(level)) for w, square in zip(weights, squares, strict=True)
            )
            found.append(sum(float(value[~mask].sum()) for value, mask in zip(values, masks, strict=True)) / total)
        return np.asarray(found)
