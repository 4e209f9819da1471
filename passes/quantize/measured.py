"""How many bits each layer gets so that all have a given number on average: by what they cost the model's outputs."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from graphopt.analysis.layer_statistics import Batches
from graphopt.rewrite.sensitivity import Candidate, damage, finish, measure_layers, unmeasurable
from graphopt.solve import rounding
from graphopt.solve.allocation import allocate, monotone

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from graphopt.rewrite.layer_stop import Stop
    from graphopt.rewrite.sweep import Sweep
    from graphopt.solve.least_squares import Statistics

BITS = (8, 6, 5, 4, 3, 2)
"""Bits that a layer may get, most first."""

JUDGING_SAMPLES = 128
"""Samples that outputs are compared on, at most: a fifth of the calibration data, none of the rest."""


def allocate_bits(
    sweep: Sweep,
    stops: Mapping[Stop, rounding.Granularity],
    average: float,
    levels_of: Callable[[Stop, int], rounding.Levels],
    *,
    damping: float,
    variance: bool,
) -> dict[str, int]:
    """Return the bits of each layer, by ``stop.key``, that do the least damage together.

    Each layer is rounded alone to each number of bits, and the outputs of the model compared; the damages are added up.

    Args:
        sweep: The model and its calibration data.
        stops: The layers, front to back, each with what shares a scale.
        average: Bits of a weight on average, over all weights of these layers.
        levels_of: Returns the integers of a layer for a number of bits.
        damping: Pull towards the weights as they are.
        variance: Whether rows are scaled to vary as before.
    """
    if not isinstance(sweep.batches, Batches) or len(sweep.batches.feeds) < 2:
        return {}
    calibration, judging = sweep.batches.feeds.split(at_least=JUDGING_SAMPLES // 2)

    def candidates(stop: Stop, given: list[Statistics] | None) -> Sequence[Candidate]:
        if given is None:
            return []
        matrices = stop.form.matrices(stop.layer.array())
        zeros = any((part == 0).any() for part in matrices)
        mask = [part != 0 for part in matrices] if zeros else None
        problem = rounding.asymmetric_target(matrices, given, damping=damping, mask=mask)
        found = []
        for bits in BITS:
            grid_levels, start = levels_of(stop, bits), np.stack(matrices)
            _, values = rounding.round_layer(problem, grid_levels, stops[stop], method="gptq", weight=start)
            found.append(finish(stop, list(values), given, scales_rows=variance))
        return found

    measured = measure_layers(
        sweep.model,
        [stop for stop in stops if not unmeasurable(stop, sweep.model)],
        candidates,
        judging=judging.take(JUDGING_SAMPLES),
        calibration=calibration,
        rows=sweep.rows * len(sweep.batches),
        seed=sweep.seed,
    )
    known = [(stop, qualities) for stop, qualities in measured if qualities]
    sizes = [stop.dense.size for stop, _ in known]
    damages = [monotone(np.array([damage(quality)[0] for quality in qualities])) for _, qualities in known]
    costs = [size * np.array(BITS, np.float64) for size in sizes]
    levels = allocate(damages, costs, average * sum(sizes)).levels if known else ()
    return {stop.key: BITS[level] for (stop, _), level in zip(known, levels, strict=True)}
