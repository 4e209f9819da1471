"""The pass ``refit-weights``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from graphopt.rewrite.layerwise import LayerwisePass, Problem, Solution
from graphopt.solve import least_squares

if TYPE_CHECKING:
    from numpy.typing import NDArray

MOST_FLOPS = 3e12
"""A layer that costs more is left as it is: tens of seconds on one core."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RefitWeights(LayerwisePass):
    """Solve the weights that pruning left again, so that each layer gives the outputs it gave before.

    Layers are solved front to back against the dense model's outputs on the compressed model's inputs, so each repairs
    what those before it lost. Rows whose error on samples kept from the fit does not fall stay as they are.

    Matches: Conv, Gemm and MatMul of the main graph whose weight pruning may touch, where prune-magnitude ran before.
    Produces: The same nodes; V = argmin E |W x - V z|^2 over the weights that are not zero, x and z the layer's inputs
        before and after pruning; the bias keeps the mean output (a Conv or Gemm without bias may get one).
    Requires: Calibration data; the model before pruning, which prune-magnitude records.
    Preserves: Zeros, names, types and shapes. Not values: LOSSY.
    Source: He et al. 2017, arXiv:1707.06168, section 3.1.2; Hubara et al. 2021, arXiv:2102.08124, section 3; bias:
        Nagel et al. 2019, arXiv:1906.04721, section 4.2.
    """

    name: ClassVar[str] = "refit-weights"
    repairs: ClassVar[bool] = True

    def solve(self, problem: Problem) -> Solution | str:
        """Return the least-squares weights on the support that is left, or that they would take too long."""
        supports = [part != 0 for part in problem.present]
        if sum(map(least_squares.solve_flops, supports)) > MOST_FLOPS:
            return "solving it would take too long"
        groups = zip(problem.dense, supports, problem.fit, strict=True)
        solved = [least_squares.solve_rows(*each, damping=self.damping) for each in groups]
        return Solution(solved, otherwise=problem.present)

    def finish(self, problem: Problem, weight: NDArray[Any]) -> NDArray[Any]:
        """Keep weights that became zero in their own type: they would be lost to the next run."""
        array = problem.layer.array()
        return np.where((weight == 0) & (array != 0), array, weight)

    def describe(self, problem: Problem, solution: Solution, taken: int) -> str:
        """Return how many rows were refitted."""
        return f"{taken} of {problem.rows} rows refitted"

    def refuse_unchanged(self, problem: Problem) -> str:
        """Return that nothing got better."""
        return "no row got better on the samples kept from the fit"
