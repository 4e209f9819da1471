"""What shares of zeros cost the outputs of a model, layer by layer: measured at a few shares, between them by law."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from graphopt.analysis.layer_statistics import Batches
from graphopt.rewrite.sensitivity import Candidate, damage, measure_layers, unmeasurable
from graphopt.solve.allocation import monotone

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from graphopt.passes.prune.masking import MaskingPass
    from graphopt.rewrite.layer_stop import Stop
    from graphopt.rewrite.sweep import Sweep
    from graphopt.solve.least_squares import Statistics

    Vector = NDArray[np.float64]

MEASURED = (0.3, 0.5, 0.65, 0.8, 0.9, 0.97)
"""Shares of zeros that are measured where the pattern leaves the share free."""

JUDGING_SAMPLES = 128
"""Samples that outputs are compared on, at most: a fifth of the calibration data, none of the rest."""


def measured_damages(step: MaskingPass, sweep: Sweep, stops: Sequence[Stop], levels: Vector) -> list[Vector]:
    """Return the damage that each layer alone does at each level, [levels] each; zeros where none can be measured.

    Args:
        step: The pass whose choice is measured.
        sweep: The model and its calibration data.
        stops: The layers, front to back.
        levels: Shares of zeros, ascending.
    """
    found = {stop.key: np.zeros(len(levels)) for stop in stops}
    if not isinstance(sweep.batches, Batches) or len(sweep.batches.feeds) < 2:
        return list(found.values())
    calibration, judging = sweep.batches.feeds.split(at_least=JUDGING_SAMPLES // 2)
    own = step.parsed.share
    shares = MEASURED if own is None else (own,)
    measurable = [stop for stop in stops if not unmeasurable(stop, sweep.model)]

    def candidates(stop: Stop, given: list[Statistics] | None) -> Sequence[Candidate]:
        return [] if given is None else step.candidates(stop, given, shares)

    measured = measure_layers(
        sweep.model,
        measurable,
        candidates,
        judging=judging.take(JUDGING_SAMPLES),
        calibration=calibration,
        rows=sweep.rows * len(sweep.batches),
        seed=sweep.seed,
    )
    for stop, qualities in measured:
        if qualities:
            found[stop.key] = between(levels, shares, np.array([damage(quality)[0] for quality in qualities]))
    return list(found.values())


def between(levels: Vector, shares: Sequence[float], damages: Vector) -> Vector:
    """Return the damage at each level from that at a few shares.

    It grows by a factor per step, as damages of layers do; from no zeros to the least share by the square of the share,
    as an error does; beyond the largest share as between the last two.

    Args:
        levels: Shares of zeros, ascending, 0..1.
        shares: Where damages are known, ascending, above 0.
        damages: Not negative, one per share.
    """
    known = np.log(np.maximum(monotone(damages), np.finfo(np.float64).tiny))
    places = np.array(shares)
    found = np.interp(levels, places, known)
    if len(places) > 1:
        slope = (known[-1] - known[-2]) / (places[-1] - places[-2])
        found = np.where(levels > places[-1], known[-1] + slope * (levels - places[-1]), found)
    start = np.exp(known[0]) * (levels / places[0]) ** 2
    return np.where(levels < places[0], start, np.exp(np.minimum(found, 700.0)))
