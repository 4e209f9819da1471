"""Collects what the layers of a model read, apart from the run that uses it; shards of the data one by one.

Statistics are those of the model as the preset ``default`` leaves it, because that is what recipes compress; they are
asked for, and used, by the file that goes in.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from graphopt.analysis.layer_statistics import LayerStatistics, fingerprint_of
from graphopt.analysis.layer_statistics.statistics import POSITIONS
from graphopt.graph import Model, read_model
from graphopt.preparation import in_order
from graphopt.rewrite import PassManager, load_recipe
from graphopt.runtime import Feeds, input_specs

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

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
    source = in_order(model if isinstance(model, Model) else read_model(model))
    feeds = Feeds.open(data, input_specs(source))
    prepared = source.copy()
    PassManager(load_recipe("default").create(), verify=verify, seed=seed).run(prepared)
    prepared.sort()
    tell("collecting", 1, 2)
    wanted = len(feeds) if samples is None else samples
    return LayerStatistics.collect(
        prepared, feeds, samples=wanted, positions=positions, seed=seed, fingerprint=fingerprint_of(source)
    )


def _silent(what: str, done: int, total: int) -> None:
    """Tell nobody."""
