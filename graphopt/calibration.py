"""Collects what the layers of a model read and write, apart from the run that uses it; shards of the data one by one.

Statistics are those of the model as the preset ``default`` leaves it, because that is what recipes compress, ranges of
activations those of the model that ``insert-qdq`` meets; both are asked for, and used, by the file that goes in.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from graphopt.analysis import Facts
from graphopt.analysis.activation_ranges import Ranges
from graphopt.analysis.activation_ranges.choice import SHARE
from graphopt.analysis.calibration_cache import CalibrationCache, structure_of
from graphopt.analysis.layer_statistics import LayerStatistics, fingerprint_of
from graphopt.analysis.layer_statistics.statistics import POSITIONS
from graphopt.graph import Model, read_model
from graphopt.preparation import in_order
from graphopt.rewrite import PassManager, load_recipe
from graphopt.runtime import Feeds, input_specs

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from graphopt.rewrite import Recipe
    from graphopt.rewrite.verification import Level
    from graphopt.runtime.feeds import Source


def collect_statistics(
    model: Model | str | Path,
    data: Source | Feeds,
    *,
    samples: int | None = None,
    positions: int = POSITIONS,
    verify: Level = "fast",
    seed: int = 0,
    progress: Callable[[str, int, int], None] | None = None,
) -> LayerStatistics:
    """Run a model once over data, and sum up what each of its layers reads.

    Memory holds a batch and the sums, however much data there is: of a layer that reads C numbers at a time a matrix of
    C x C. `LayerStatistics.merge` adds up those of other data; `graphopt.compile` takes them in place of data.

    Args:
        model: An ONNX file or a loaded model; it is not changed.
        data: Feeds; all of them are used, none is held back.
        samples: Samples that are run at most, spread evenly over the data; None runs all.
        positions: Places that are looked at per sample and layer, at most: pixels of an image, words of a text.
        verify: How strictly the passes that prepare the model are checked: ``off``, ``fast`` or ``full``.
        seed: Decides which places.
        progress: Told what is going on.

    Raises:
        GraphoptError: The model or the data cannot be used.
    """
    tell = progress or _silent
    tell("preparing", 0, 2)
    source, prepared, feeds = _prepared(model, data, load_recipe("default"), verify, seed)
    tell("collecting", 1, 2)
    wanted = len(feeds) if samples is None else samples
    return LayerStatistics.collect(
        prepared, feeds, samples=wanted, positions=positions, seed=seed, fingerprint=fingerprint_of(source)
    )


def calibrate(
    model: Model | str | Path,
    data: Source | Feeds,
    *,
    calibrator: str = "auto",
    percentile: float = SHARE,
    verify: Level = "fast",
    seed: int = 0,
    progress: Callable[[str, int, int], None] | None = None,
) -> CalibrationCache:
    """Run a model over data and choose a range for every activation.

    Memory holds a batch and one histogram per tensor, however much data there is. The result can be saved, edited,
    merged with that of other data, and taken by ``insert-qdq`` in place of data.

    Args:
        model: An ONNX file or a loaded model; it is not changed.
        data: Feeds; 512 of them are used at most, spread evenly, none is held back.
        calibrator: ``auto``, ``minmax``, ``moving-average``, ``percentile``, ``entropy`` or ``mse``.
        percentile: Share of the values that ``percentile`` keeps, in percent.
        verify: How strictly the passes that prepare the model are checked: ``off``, ``fast`` or ``full``.
        seed: Seeds whatever the passes draw.
        progress: Told what is going on.

    Raises:
        GraphoptError: The model or the data cannot be used.
    """
    tell = progress or _silent
    tell("preparing", 0, 2)
    source, prepared, feeds = _prepared(model, data, load_recipe("int8").without(["insert-qdq"]), verify, seed)
    tell("calibrating", 1, 2)
    ranges = Ranges.observe(prepared, Facts(prepared, feeds=feeds, seed=seed))
    return CalibrationCache.of(ranges, structure_of(source), calibrator=calibrator, share=percentile)


def _prepared(
    model: Model | str | Path, data: Source | Feeds, recipe: Recipe, verify: Level, seed: int
) -> tuple[Model, Model, Feeds]:
    """Return the model, what a recipe makes of it, and the data.

    Passes that look at data meet none: when the results are used, the same data may not be there.
    """
    source = in_order(model if isinstance(model, Model) else read_model(model))
    feeds = Feeds.open(data, input_specs(source))
    prepared = source.copy()
    PassManager(recipe.create(), verify=verify, seed=seed).run(prepared)
    prepared.sort()
    return source, prepared, feeds


def _silent(what: str, done: int, total: int) -> None:
    """Tell nobody."""
