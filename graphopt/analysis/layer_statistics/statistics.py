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
    from collections.abc import Iterable, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from graphopt.analysis.layer_statistics.moments import Reading
    from graphopt.analysis.layer_statistics.rows import Form
    from graphopt.analysis.manager import Facts
    from graphopt.graph import Model, Node
    from graphopt.runtime import Feeds

SAMPLES = 1024
"""Samples that the analysis runs at most, spread evenly over the data."""

POSITIONS = 64
"""Rows drawn per sample and layer: the places of one image are much alike."""

NORM_TOLERANCE = 2e-3
"""Columns whose norms differ by more are not the same ones; float16 changes single weights by a quarter of it."""

MATRIX_BYTES = 1 << 30
"""Matrices of all layers together; the widest have squares only where more would be needed."""


class LayerStatistics(Analysis):
    """What every weight layer reads: second moments, means, ranges, histograms; how often embeddings are looked up.

    One run over the data serves all layers; memory holds one batch and the sums. Shards of the data can be collected
    apart, saved, loaded and merged: counts and ranges are exactly those of all the data, sums are up to rounding, where
    every row is taken; drawn rows are other ones.

    Attributes:
        contents: All of it, as it is saved.
        fingerprint: Identifies the weights of the model that they were asked for.
        samples: How many samples were run.
        tables: What was seen of each tensor, by tensor and number.
        forms: Of each table, the name of the tensor and how layers read it.
        layers: The tables of each layer, by the name of its first output; several where it reads several tensors.
        norms: The norm of each column of each layer's weight, [groups * columns]: whose columns the sums belong to.
        lookups: Per Gather from constant rows, by the name of its output, how often each row was read, [rows].
        refused: Why other layers have none, by their names.
    """

    def __init__(self, contents: archive.Contents) -> None:
        self.contents = contents
        self.fingerprint = contents.fingerprint
        self.samples = contents.samples
        self.tables = dict(contents.tables)
        self.forms = dict(contents.forms)
        self.layers = dict(contents.layers)
        self.norms = dict(contents.norms)
        self.lookups = dict(contents.lookups)
        self.refused = dict(contents.refused)

    @classmethod
    def compute(cls, model: Model, facts: Facts) -> Self:
        """Collect on the calibration data; without any, every layer is refused."""
        if facts.feeds is None:
            readings, _, refused = find_readings(model)
            reason = "there is no calibration data"
            why = {**refused, **dict.fromkeys(readings, reason)}
            return cls(archive.Contents(fingerprint_of(model), 0, {}, {}, {}, {}, {}, why))
        return cls.collect(model, facts.feeds, seed=facts.seed)

    @classmethod
    def collect(
        cls,
        model: Model,
        feeds: Feeds,
        *,
        samples: int = SAMPLES,
        positions: int = POSITIONS,
        seed: int = 0,
        fingerprint: str = "",
    ) -> Self:
        """Run the model once over the data and sum up.

        Args:
            model: The model; weights in bodies are refused.
            feeds: The data.
            samples: Samples to run at most.
            positions: Rows to draw per sample and layer, at most.
            seed: Decides which.
            fingerprint: Of the model that they are asked for, where this is what passes made of it.
        """
        readings, norms, refused = find_readings(model)
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
        taken = 0
        with one_thread():
            for number, values in enumerate(stream(model, names, batches) if wanted else ()):
                taken += len(values[counter]) if counter else 1
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
        return cls(
            archive.Contents(
                fingerprint or fingerprint_of(model),
                taken,
                tables,
                {name: (each.tensor, repr(each.form)) for each, name in named.items() if name in tables},
                layers,
                {key: norms[key] for key in layers},
                counts,
                {**refused, **unseen},
            )
        )

    def of(self, layer: Node | str) -> Observed | None:
        """Return what a layer reads, all uses of its weight together; None where that is not known.

        Args:
            layer: The node, or the name of its first output (with ``/recurrent`` for recurrent weights).
        """
        name = layer if isinstance(layer, str) else next((each.name for each in layer.outputs if each.name), "")
        parts = [self.tables[table] for table in self.layers.get(name, ())]
        return _together(parts) if parts else None

    def read_by(self, readings: Iterable[tuple[str, Form]], norms: NDArray[np.float64]) -> Observed | str:
        """Return what was seen of the tensors that a layer reads, all together, or why it does not hold for the layer.

        Passes may have renamed nodes since the statistics were collected; they may also have scaled or moved channels,
        which changes what a name stands for. The weights tell: their columns change along with what they read.

        Args:
            readings: The tensors, each with how it is read.
            norms: Norm of each column of the layer's weight, [groups * columns]; of its dense weight where it lost any.
        """
        known = {form: name for name, form in self.forms.items()}
        wanted = [known.get((tensor, repr(form)), "") for tensor, form in readings]
        if not wanted or "" in wanted:
            return "the collected statistics hold nothing of what it reads"
        same = [name for name, parts in self.layers.items() if sorted(parts) == sorted(wanted)]
        if not any(_alike(self.norms[name], norms) for name in same):
            return "the collected statistics were seen beside other weights than it has now"
        return _together([self.tables[name] for name in wanted])

    def merge(self, other: LayerStatistics) -> Self:
        """Return the statistics over the data of both, which are left as they are.

        Raises:
            DataError: They belong to different weights, or layers read them in other ways.
        """
        if self.fingerprint != other.fingerprint:
            raise DataError(
                "statistics of different weights cannot be merged",
                must="Both are collected on the same model.",
                do="Collect them again on one model.",
            )
        tables, forms, norms = dict(self.tables), {**self.forms, **other.forms}, {**self.norms, **other.norms}
        known = {name for name in self.norms if name in other.norms}
        if forms != {**forms, **self.forms} or not all(_alike(self.norms[name], other.norms[name]) for name in known):
            raise _unlike("other passes changed the model before they were collected")
        try:
            for name, table in other.tables.items():
                tables[name] = tables[name].merge(table) if name in tables else table
            lookups = {name: self.lookups.get(name, 0) + counts for name, counts in other.lookups.items()}
        except ValueError as error:
            raise _unlike(str(error)) from error
        layers = {**self.layers, **other.layers}
        refused = {name: why for name, why in {**self.refused, **other.refused}.items() if name not in layers}
        samples = self.samples + other.samples
        whole = archive.Contents(
            self.fingerprint, samples, tables, forms, layers, norms, {**self.lookups, **lookups}, refused
        )
        return type(self)(whole)

    def save(self, path: str | Path) -> None:
        """Write them to an .npz file, which replaces an older one.

        Raises:
            WriteError: The file cannot be written.
        """
        archive.write(path, self.contents)

    @classmethod
    def load(cls, path: str | Path, model: Model | None = None) -> Self:
        """Read them from a file; nothing in it is unpickled.

        Args:
            path: The file.
            model: The model that they were asked for; None does not check.

        Raises:
            DataError: The file is missing, damaged, of another format, or belongs to other weights.
        """
        found = cls(archive.read(path))
        if model is not None:
            found.refuse_others(model, where=str(path))
        return found

    def refuse_others(self, model: Model, *, where: str) -> None:
        """Raise DataError unless they were collected for this model; ``where`` names the file."""
        if self.fingerprint != fingerprint_of(model):
            raise DataError(
                "the statistics belong to other weights than those of the model",
                where=where,
                must="They are collected on the model they are used for.",
                do="Collect them again on this file with `graphopt statistics collect`.",
            )

    def same_as(self, other: Self) -> bool:
        """Tell whether both hold the same numbers."""
        mine, theirs = (archive.flat(each.contents) for each in (self, other))
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


def _together(parts: Sequence[Observed]) -> Observed:
    found = parts[0]
    for part in parts[1:]:
        found = found.merge(part)
    return found


def _alike(one: NDArray[np.float64], other: NDArray[np.float64]) -> bool:
    """Tell whether columns have the same norms, up to what another float type changes."""
    most = float(one.max(initial=0.0))
    return one.shape == other.shape and np.allclose(one, other, rtol=NORM_TOLERANCE, atol=NORM_TOLERANCE * most)


def _unlike(what: str) -> DataError:
    return DataError(
        f"the statistics do not go together: {what}",
        must="All are collected on the same model by the same version of graphopt.",
        do="Collect them again.",
    )


def _bounded(readings: dict[Reading, Any]) -> dict[Reading, Reading]:
    """Return how each reading is taken: without matrices for the widest where all together would need too much."""
    found = {}
    left = MATRIX_BYTES
    for each in sorted(readings, key=lambda each: each.form.groups * each.columns**2):
        left -= 0 if each.wide else 8 * each.form.groups * each.columns**2
        found[each] = replace(each, wide=each.wide or left < 0)
    return {each: found[each] for each in readings}
