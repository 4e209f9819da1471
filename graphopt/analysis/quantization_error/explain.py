"""Which layer a quantized model goes wrong at first, and what its error most likely comes from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from graphopt.analysis.quantization_error.measuring import CEILING_DB, ratio_db

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from graphopt.analysis.quantization_error.measuring import GridUse, TensorError
    from graphopt.analysis.quantization_error.weights import WeightError

HEALTHY_DB = 40.0
"""What 8 bits leave of most tensors: a fall is counted from here where what reaches a layer is better."""

BAD_DROP_DB = 6.0
"""A layer that loses less is not called bad: errors of several inputs add up to that."""

TOO_WIDE = 4.0
"""Range of a grid over that of the values on it from which the scale is called too wide."""

UNEVEN_CHANNELS = 16.0
"""Largest over smallest channel from which one scale for all is called the cause: 4 of 8 bits are lost."""

STRETCHED = 60.0
"""Largest magnitude over the root mean square from which single values are said to stretch a grid."""


@dataclass(frozen=True, slots=True)
class Finding:
    """What stands out.

    Attributes:
        name: Tensor of the float model that the layer makes.
        drop_db: How far its SQNR falls below that of what reaches it, `HEALTHY_DB` at most.
        reason: What most likely causes it.
    """

    name: str
    drop_db: float
    reason: str


def explain(
    errors: Sequence[TensorError], weights: Mapping[str, WeightError]
) -> tuple[Finding | None, dict[str, tuple[float, str]]]:
    """Return the layer with the largest drop, the first of equal ones, and drop and reason of every layer.

    Args:
        errors: What was measured, in model order.
        weights: What became of the weights, by the tensor that their layer makes.

    Returns:
        The finding, or None where no layer stands out; and drop and reason by tensor, the reason empty for small drops.
    """
    reached = {error.pair.name: min(error.accumulated_db, HEALTHY_DB) for error in errors if comparable(error)}
    by_name = {error.pair.name: error for error in errors}
    rows: dict[str, tuple[float, str]] = {}
    worst: Finding | None = None
    for error in errors:
        if not comparable(error):
            continue
        before = min((reached[name] for name in error.pair.sources if name in reached), default=HEALTHY_DB)
        drop = max(0.0, min(before - error.accumulated_db, HEALTHY_DB - error.own_db))
        reason = ""
        if drop >= BAD_DROP_DB:
            inputs = [by_name[name] for name in error.pair.sources if name in by_name]
            reason = cause(error, weights.get(error.pair.name), inputs)
            if worst is None or drop > worst.drop_db + 1e-9:
                worst = Finding(error.pair.name, drop, reason)
        rows[error.pair.name] = (drop, reason)
    return worst, rows


def comparable(error: TensorError) -> bool:
    """Tell whether a pair was compared at all."""
    return not error.unlike and error.count > 0


def cause(error: TensorError, weight: WeightError | None, inputs: Sequence[TensorError]) -> str:
    """Return what most likely causes the error that a layer adds by itself.

    Args:
        error: The layer's result.
        weight: Its weight.
        inputs: What it reads.
    """
    if weight is not None and weight.bias_overflows:
        return "its bias does not fit int32 on the product of the scales: a channel's weights are tiny beside it"
    own = [grid for grid in error.grids if error.pair.rounded]
    blamed = _of_grid(error, own, "its")
    if blamed:
        return blamed
    for source in inputs:
        if not source.pair.rounded and comparable(source):
            share = _of_grid(source, source.grids, f"the input '{source.pair.name}':", of=source.power)
            if share:
                return share
    if weight is not None and weight.sqnr_db < HEALTHY_DB:
        if weight.shared_scale and weight.channel_ratio >= UNEVEN_CHANNELS:
            return (
                f"one scale for all channels of its weight, which differ {weight.channel_ratio:.0f}-fold in size "
                f"({weight.sqnr_db:.1f} dB are left of it): take a scale per channel"
            )
        return f"rounding leaves {weight.sqnr_db:.1f} dB of its weight"
    if weight is not None and weight.bias_sqnr_db is not None and weight.bias_sqnr_db < HEALTHY_DB / 2:
        return f"its bias differs: {weight.bias_sqnr_db:.1f} dB"
    if error.pair.how == "input":
        return "it is given as integers, whose steps are coarse or whose range is small for these values"
    if error.pair.between:
        names = ", ".join(f"'{name}'" for name in error.pair.between[:3])
        return f"it comes from {names}, which the quantized model has no tensor of its own for"
    if error.pair.how == "structure":
        return "nothing in its grids explains it: it may have been matched with another tensor"
    return "its operator computes something else, or its weight was changed by more than rounding"


def _of_grid(error: TensorError, grids: Sequence[GridUse], whose: str, *, of: float | None = None) -> str:
    """Return what is wrong with a tensor's grid, or nothing where most of the noise has another cause."""
    for grid in grids:
        noise = error.own if of is None else (grid.cut_off + grid.rounded)
        if noise <= 0 or (of is not None and ratio_db(of, noise) > HEALTHY_DB - BAD_DROP_DB):
            continue
        if grid.cut_off >= 0.5 * noise:
            share = 100.0 * grid.outside / max(error.count, 1)
            return (
                f"{whose} range is clipped: {share:.3g} % of the values lie outside {grid.low:.4g} to {grid.high:.4g}; "
                f"they reach from {error.low:.4g} to {error.high:.4g}"
            )
        if grid.rounded < 0.5 * noise:
            continue
        used = max(error.high, 0.0) - min(error.low, 0.0)
        if (grid.high - grid.low) >= TOO_WIDE * used:
            return (
                f"{whose} scale is far too wide: the grid spans {grid.low:.4g} to {grid.high:.4g}, the values "
                f"{error.low:.4g} to {error.high:.4g}"
            )
        top = max(abs(error.low), abs(error.high))
        if error.rms > 0 and top >= STRETCHED * error.rms:
            return (
                f"{whose} grid is stretched by single values: they reach {top:.4g}, the root mean square is "
                f"{error.rms:.4g}"
            )
        return f"{whose} steps of {grid.scale:.4g} are coarse beside a root mean square of {error.rms:.4g}"
    return ""


__all__ = ["CEILING_DB", "Finding", "cause", "comparable", "explain"]
