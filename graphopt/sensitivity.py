"""Measures how much each layer of a model suffers from each level of compression, the others left as they are."""

from __future__ import annotations

import difflib
from typing import TYPE_CHECKING

import numpy as np

import graphopt
from graphopt.analysis.layer_statistics import Refusal, find_layers
from graphopt.errors import UsageError
from graphopt.graph import Model, read_model
from graphopt.graph.labels import node_label
from graphopt.preparation import in_order
from graphopt.report.build import environment, model_info
from graphopt.report.report import SkipEntry, Tool
from graphopt.report.sensitivity import LayerDamage, LevelDamage, Sensitivity
from graphopt.rewrite.layer_stop import find_stops
from graphopt.rewrite.sensitivity import Candidate, damage, finish, measure_layers, unmeasurable
from graphopt.runtime import Feeds, input_specs
from graphopt.solve.least_squares import Statistics
from graphopt.solve.level_kinds import Level, compress, parse_levels
from graphopt.solve.patterns import channels_last

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from graphopt.rewrite.layer_stop import Stop
    from graphopt.runtime.feeds import Source
    from graphopt.verify.quality import Quality

    Progress = Callable[[str, int, int], None]

LEVELS = ("bits=8,4,3,2", "sparsity=0.5,0.7,0.9")
"""Levels measured where the user names none."""

SAMPLES = 256
"""Held-back samples compared at most."""

CALIBRATION_SAMPLES = 512
"""Samples that statistics are collected on, at most."""

HELD_BACK_SAMPLES = 64
"""Held back at least, where there are twice as many."""


def measure_sensitivity(
    model: Model | str | Path,
    data: Source | Feeds,
    *,
    levels: Iterable[str] = LEVELS,
    samples: int = SAMPLES,
    keep: Iterable[str] = (),
    seed: int = 0,
    threads: int = 1,
    progress: Progress | None = None,
) -> Sensitivity:
    """Return what each level of each layer does to the outputs of the model.

    Args:
        model: An ONNX file or a loaded model; it is not changed.
        data: Feeds; a fifth of them is held back to compare outputs on, the others give the statistics to solve on.
        levels: ``kind=value,value``; see `graphopt.solve.level_kinds.KINDS`.
        samples: Held-back samples compared at most.
        keep: Names of nodes that are not measured.
        seed: Seeds whatever is random.
        threads: Intra-op threads of the sessions.
        progress: Told which layer is done, of how many.

    Raises:
        UsageError: A level or a name is unknown, or there is one sample only.
        GraphoptError: The model or the data cannot be used.
    """
    wanted = _levels(levels)
    source = in_order(model if isinstance(model, Model) else read_model(model))
    feeds = Feeds.open(data, input_specs(source))
    if len(feeds) < 2:
        raise UsageError("there is one sample only", where="--data", must="One calibrates, another is compared on")
    calibration, judging = feeds.split(at_least=HELD_BACK_SAMPLES)
    calibration, judging = calibration.take(CALIBRATION_SAMPLES), judging.take(samples)
    kept = tuple(keep)
    _refuse_unknown(kept, source)
    stops, skips = _stops(source, kept)
    unsolved: set[str] = set()

    def candidates(stop: Stop, given: list[Statistics] | None) -> Sequence[Candidate]:
        if given is None:
            unsolved.add(stop.key)
        array = stop.layer.array()
        # N:M lies along the channels of one kernel place, as the passes have it.
        order = channels_last(array.shape) if stop.form.op == "Conv" else np.arange(stop.form.columns(array.shape))
        matrices = [part[:, order] for part in stop.form.matrices(array)]
        seen = None if given is None else [_reordered(each, order) for each in given]
        back = np.argsort(order)
        made = [[part[:, back] for part in each] for each in compress(matrices, seen, wanted)]
        return [
            finish(stop, each, given, scales_rows=level.scales_rows) for each, level in zip(made, wanted, strict=True)
        ]

    layers = []
    tell = progress or _silent
    tell("measuring", 0, len(stops))
    judged: list[Quality] = []
    for stop, qualities in measure_layers(
        source, stops, candidates, judging=judging, calibration=calibration, seed=seed, threads=threads
    ):
        layers.append(_layer(stop, wanted, qualities, solved=stop.key not in unsolved))
        judged += qualities
        tell(node_label(stop.layer.node), len(layers), len(stops))
    return Sensitivity(
        tool=Tool(version=graphopt.__version__),
        model=model_info(source),
        data=feeds.name,
        samples=len(judging),
        calibration_samples=len(calibration),
        measure="kl" if any(quality.kl is not None for quality in judged) else "noise",
        levels=tuple(map(str, wanted)),
        layers=tuple(layers),
        skips=tuple(skips),
        environment=environment(),
        seed=seed,
    )


def _reordered(given: Statistics, order: NDArray[np.intp]) -> Statistics:
    """Return the statistics of the same inputs in another order."""
    grid = np.ix_(order, order)
    means = given.dense_mean[order], given.compressed_mean[order]
    return Statistics(given.inner[grid], given.outer[grid], given.cross[grid], *means)


def _levels(texts: Iterable[str]) -> list[Level]:
    try:
        return list(dict.fromkeys(level for text in texts for level in parse_levels(text)))
    except ValueError as error:
        raise UsageError(str(error), where="--levels", do="For example --levels bits=8,4 sparsity=0.5,0.9") from error


def _refuse_unknown(names: Sequence[str], model: Model) -> None:
    known = {node_label(node) for _, node in model.walk()}
    for name in names:
        if name not in known:
            near = difflib.get_close_matches(name, sorted(known), n=1)
            do = f"Did you mean {near[0]}?" if near else "graphopt inspect lists them"
            raise UsageError(f"the model has no node '{name}'", where="--skip", do=do)


def _stops(model: Model, keep: tuple[str, ...]) -> tuple[list[Stop], list[SkipEntry]]:
    """Return the layers that can be measured, front to back, and why the others cannot."""
    stops, skips = [], []
    found = find_layers(model, keep=keep, depthwise=True)
    for stop in find_stops(model, model, found, observed=True, strict=False):
        if isinstance(stop, Refusal):
            skips.append(SkipEntry(node=node_label(stop.node), reason=stop.reason))
        elif reason := unmeasurable(stop, model):
            skips.append(SkipEntry(node=node_label(stop.layer.node), reason=reason))
        else:
            stops.append(stop)
    return stops, skips


def _layer(stop: Stop, levels: Sequence[Level], qualities: Sequence[Quality], *, solved: bool) -> LayerDamage:
    node, weight = stop.layer.node, stop.layer.array()
    return LayerDamage(
        name=node_label(node),
        op=str(node.op),
        shape=tuple(map(int, weight.shape)),
        weights=int(weight.size),
        solved=solved,
        levels=tuple(_damage(level, quality) for level, quality in zip(levels, qualities, strict=True)),
    )


def _damage(level: Level, quality: Quality) -> LevelDamage:
    amount, error = damage(quality)
    return LevelDamage(
        level=str(level),
        size=level.size,
        damage=amount,
        damage_error=error,
        kl=quality.kl,
        kl_error=quality.kl_error,
        agreement=quality.agreement,
        agreement_error=quality.standard_error,
        sqnr_db=quality.worst_sqnr_db,
        sqnr_error_db=quality.sqnr_error_db,
    )


def _silent(what: str, done: int, total: int) -> None:
    """Tell nobody."""
