"""LayerStatistics: what every weight layer of a model reads, over any amount of data."""

from __future__ import annotations

import hashlib
from collections import Counter
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from graphopt.analysis.base import Analysis
from graphopt.analysis.layer_statistics import archive
from graphopt.analysis.layer_statistics.batches import Batches
from graphopt.analysis.layer_statistics.observed import Observed
from graphopt.analysis.layer_statistics.reading import find_lookups, find_readings
from graphopt.analysis.layer_statistics.segments import stream
from graphopt.errors import DataError
from graphopt.graph import Constant, constant_value
from graphopt.solve.threads import one_thread

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from numpy.typing import NDArray

    from graphopt.analysis.layer_statistics.moments import Reading
    from graphopt.analysis.manager import Facts
    from graphopt.graph import Model, Node
    from graphopt.runtime import Feeds

SAMPLES = 1024
"""Samples that the analysis runs at most, spread evenly over the data."""

POSITIONS = 64
"""Rows drawn per sample and layer: the places of one image are much alike."""

MATRIX_BYTES = 1 << 30
"""Matrices of all layers together; the widest have squares only where more would be needed."""


class LayerStatistics(Analysis):
    """What every weight layer reads: second moments, means, ranges, histograms; how often embeddings are looked up.

    One run over the data serves all layers; memory holds one batch and the sums. Shards of the data can be collected
    apart, saved, loaded and merged: counts and ranges are exactly those of all the data, sums are up to rounding, where
    every row is taken; drawn rows are other ones.

    Attributes:
        fingerprint: Identifies the weights that the statistics belong to.
        tables: What was seen of each tensor, by tensor and number.
        layers: The tables of each layer, by the name of its first output; several where it reads several tensors.
        lookups: Per Gather from constant rows, by the name of its output, how often each row was read, [rows].
        refused: Why other layers have none, by their names.
    """

    def __init__(
        self,
        fingerprint: str,
        tables: Mapping[str, Observed],
        layers: Mapping[str, tuple[str, ...]],
        lookups: Mapping[str, NDArray[np.int64]],
        refused: Mapping[str, str],
    ) -> None:
        self.fingerprint = fingerprint
        self.tables = dict(tables)
        self.layers = dict(layers)
        self.lookups = dict(lookups)
        self.refused = dict(refused)

    @classmethod
    def compute(cls, model: Model, facts: Facts) -> Self:
        """Collect on the calibration data; without any, every layer is refused."""
        if facts.feeds is None:
            readings, refused = find_readings(model)
            reason = "there is no calibration data"
            return cls(fingerprint_of(model), {}, {}, {}, {**refused, **dict.fromkeys(readings, reason)})
        return cls.collect(model, facts.feeds, seed=facts.seed)

    @classmethod
    def collect(
        cls, model: Model, feeds: Feeds, *, samples: int = SAMPLES, positions: int = POSITIONS, seed: int = 0
    ) -> Self:
        """Run the model once over the data and sum up.

        Args:
            model: The model; weights in bodies are refused.
            feeds: The data.
            samples: Samples to run at most.
            positions: Rows to draw per sample and layer, at most.
            seed: Decides which.
        """
        readings, refused = find_readings(model)
        lookups = find_lookups(model)
        batches = Batches.of(feeds, samples)
        forms = _bounded(dict.fromkeys(each for parts in readings.values() for each in parts))
        numbers: Counter[str] = Counter()
        named: dict[Reading, str] = {}
        for each in forms:
            named[each] = f"{each.tensor}#{numbers[each.tensor]}"
            numbers[each.tensor] += 1
        tables: dict[str, Observed] = {}
        counts = {key: np.zeros(size, np.int64) for key, (_, size) in lookups.items()}
        counter = batches.counter
        wanted = [*(each.tensor for each in forms), *(tensor for tensor, _ in lookups.values())]
        names = list(dict.fromkeys([*wanted, *([counter] if counter else [])]))
        with one_thread():
            for number, values in enumerate(stream(model, names, batches) if wanted else ()):
                rows = positions * (len(values[counter]) if counter else 1)
                for place, (each, form) in enumerate(forms.items()):
                    array = values[each.tensor]
                    if not array.size:
                        continue
                    table = tables.get(named[each]) or Observed.of(form, form.form.channels(array).shape[-1])
                    table.add(form, array, rows, np.random.default_rng((seed, number, place)))
                    tables[named[each]] = table
                for key, (tensor, size) in lookups.items():
                    counts[key] += np.bincount(values[tensor].reshape(-1) % size, minlength=size)
        seen = {key: tuple(named[each] for each in parts) for key, parts in readings.items()}
        layers = {key: parts for key, parts in seen.items() if all(part in tables for part in parts)}
        unseen = dict.fromkeys(set(seen) - set(layers), "nothing reached it")
        return cls(fingerprint_of(model), tables, layers, counts, {**refused, **unseen})

    def of(self, layer: Node | str) -> Observed | None:
        """Return what a layer reads, all uses of its weight together; None where that is not known.

        Args:
            layer: The node, or the name of its first output (with ``/recurrent`` for recurrent weights).
        """
        name = layer if isinstance(layer, str) else next((each.name for each in layer.outputs if each.name), "")
        parts = [self.tables[table] for table in self.layers.get(name, ())]
        if not parts:
            return None
        found = parts[0]
        for part in parts[1:]:
            found = found.merge(part)
        return found

    def merge(self, other: LayerStatistics) -> Self:
        """Return the statistics over the data of both, which are left as they are.

        Raises:
            DataError: They belong to different weights.
        """
        if self.fingerprint != other.fingerprint:
            raise DataError(
                "statistics of different weights cannot be merged",
                must="Both are collected on the same model.",
                do="Collect them again on one model.",
            )
        tables = dict(self.tables)
        for name, table in other.tables.items():
            tables[name] = tables[name].merge(table) if name in tables else table
        lookups = {name: self.lookups[name] + counts for name, counts in other.lookups.items()}
        layers = {**self.layers, **other.layers}
        refused = {name: why for name, why in {**self.refused, **other.refused}.items() if name not in layers}
        return type(self)(self.fingerprint, tables, layers, lookups, refused)

    def save(self, path: str | Path) -> None:
        """Write them to an .npz file, which replaces an older one.

        Raises:
            WriteError: The file cannot be written.
        """
        archive.write(
            path,
            archive.Contents(self.fingerprint, self.tables, self.layers, self.lookups, self.refused),
        )

    @classmethod
    def load(cls, path: str | Path, model: Model | None = None) -> Self:
        """Read them from a file; nothing in it is unpickled.

        Args:
            path: The file.
            model: The model they are to be used for; None does not check.

        Raises:
            DataError: The file is missing, damaged, of another format, or belongs to other weights.
        """
        found = archive.read(path)
        if model is not None and found.fingerprint != fingerprint_of(model):
            raise DataError(
                "the statistics belong to other weights than those of the model",
                where=str(path),
                must="They are collected on the model they are used for, after the same passes.",
                do="Collect them again.",
            )
        return cls(found.fingerprint, found.tables, found.layers, found.lookups, found.refused)

    def same_as(self, other: Self) -> bool:
        """Tell whether both hold the same numbers."""
        mine, theirs = (
            archive.flat(archive.Contents(each.fingerprint, each.tables, each.layers, each.lookups, each.refused))
            for each in (self, other)
        )
        return mine.keys() == theirs.keys() and all(np.array_equal(mine[name], theirs[name]) for name in mine)


def fingerprint_of(model: Model) -> str:
    """Return what tells a model's weights from others: a hash over the float constants of all graphs, by name."""
    constants = [tensor for graph in model.graphs() for tensor in graph.initializers]
    constants += [node.outputs[0] for _, node in model.walk() if node.op == "Constant"]
    digest = hashlib.sha256()
    for tensor in sorted(constants, key=lambda each: str(each.name)):
        value = tensor.array() if isinstance(tensor, Constant) else constant_value(tensor)
        if value is not None and "float" in value.dtype.name:
            digest.update(f"{tensor.name} {value.dtype} {value.shape}".encode())
            digest.update(np.ascontiguousarray(value).tobytes())
    return digest.hexdigest()


def _bounded(readings: dict[Reading, Any]) -> dict[Reading, Reading]:
    """Return how each reading is taken: without matrices for the widest where all together would need too much."""
    found = {}
    left = MATRIX_BYTES
    for each in sorted(readings, key=lambda each: each.form.groups * each.columns**2):
        left -= 0 if each.wide else 8 * each.form.groups * each.columns**2
        found[each] = replace(each, wide=each.wide or left < 0)
    return {each: found[each] for each in readings}
