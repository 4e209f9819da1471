"""The calibrators by name: how the range of a grid follows from what was seen."""

from __future__ import annotations

from typing import TYPE_CHECKING

from graphopt.solve.calibrators import least_divergence, least_error, percentile

if TYPE_CHECKING:
    from graphopt.analysis.activation_ranges.tensor import TensorRange
    from graphopt.solve.calibrators import Span

CALIBRATORS = ("auto", "minmax", "moving-average", "percentile", "entropy", "mse")
"""``auto`` is what was best on the models measured: mse."""

WITHOUT_HISTOGRAM = frozenset(("minmax", "moving-average"))
"""Calibrators that need no counts of the values."""

SHARE = 99.999
"""Percent of the values that ``percentile`` keeps where nothing else is asked for."""


def choose(
    seen: TensorRange, calibrator: str, *, share: float = SHARE, levels: int = 256, symmetric: bool = False
) -> Span:
    """Return the range of a tensor: one that a calibration cache has settled, else what the calibrator makes of it.

    Args:
        seen: What was seen of the tensor.
        calibrator: One of ``CALIBRATORS``.
        share: For ``percentile``, in percent.
        levels: Integers of the grid.
        symmetric: Whether both ends of the grid are equally far from zero.
    """
    distribution = seen.distribution
    if seen.chosen is not None:
        return seen.chosen
    if calibrator == "moving-average":
        return seen.moving_average()
    if distribution is None or calibrator == "minmax":
        return seen.low, seen.high
    if calibrator == "percentile":
        return percentile(distribution, share)
    if calibrator == "entropy":
        return least_divergence(distribution, levels, symmetric=symmetric)
    return least_error(distribution, levels, symmetric=symmetric)
