"""States what rounding a layer minimises."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from graphopt.solve.least_squares import damped

if TYPE_CHECKING:
    from collections.abc import Sequence

    from graphopt.solve.least_squares import Statistics

Cube = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Problem:
    """The weights that are aimed at and the metric in which rounding them is judged.

    Attributes:
        target: w, [G, R, C].
        moment: H, [G, C, C], positive definite.
        mask: Which weights may be other than zero, [G, R, C]; None for all.
    """

    target: Cube
    moment: Cube
    mask: NDArray[np.bool_] | None = None

    def __post_init__(self) -> None:
        groups, _, columns = self.target.shape
        if self.moment.shape != (groups, columns, columns):
            raise ValueError(f"moments of shape {self.moment.shape} for weights of shape {self.target.shape}")
        if self.mask is not None and self.mask.shape != self.target.shape:
            raise ValueError(f"a mask of shape {self.mask.shape} for weights of shape {self.target.shape}")


def asymmetric_target(
    weights: Sequence[Cube],
    given: Sequence[Statistics],
    *,
    damping: float = 0.01,
    mask: Sequence[NDArray[np.bool_]] | None = None,
) -> Problem:
    """Return the problem whose solution gives the dense outputs from the compressed inputs, all groups together.

    Minimising E |W x - Q z|^2 + d |Q - W|^2 over Q is minimising (Q - w)(H + d I)(Q - w)' with
    w = (W G + d W)(H + d I)^-1: what rounding earlier layers lost is part of the aim. Cost: G (C^3 / 3 + R C^2).

    Args:
        weights: The dense weights W of each group, [R, C].
        given: Statistics of each group's inputs.
        damping: d, relative to the mean of the diagonal of H, above 0.
        mask: Which weights may be other than zero. The metric knows nothing of a mask, so the aim may lie off it: then
            rounding on the mask solves the least squares on it as well.

    Source: Frantar et al. 2023, arXiv:2210.17323, section 3; the aim after Hubara et al. 2021, arXiv:2102.08124.
    """
    targets, moments = [], []
    for weight, statistics in zip(weights, given, strict=True):
        moment, strength = damped(statistics.inner, damping)
        wanted = weight @ statistics.cross + strength * weight
        try:
            target = np.linalg.solve(moment, wanted.T).T
        except np.linalg.LinAlgError:
            target = weight
        targets.append(target if np.isfinite(target).all() else weight)
        moments.append(moment)
    return Problem(np.stack(targets), np.stack(moments), None if mask is None else np.stack(mask))
