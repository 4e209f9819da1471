"""Runs the dense and the compressed model on calibration data and sums up what their layers read."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from graphopt.runtime import run, session
from graphopt.solve.least_squares import Moments

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from numpy.typing import NDArray

    from graphopt.graph import Model
    from graphopt.passes.prune.rows import Form
    from graphopt.runtime import Feeds

BATCH = 8
"""Samples per run where the batch axis is free."""

JUDGING = 4
"""Every so many batches, one is kept from the fit and judges it."""


@dataclass(frozen=True, slots=True)
class Reading:
    """One layer whose inputs are wanted.

    Attributes:
        key: Identifies it among the results.
        tensor: Name of the tensor that it reads, in both models.
        form: How its input is read as rows.
        columns: Columns of each group's matrix.
    """

    key: str
    tensor: str
    form: Form
    columns: int


@dataclass(frozen=True, slots=True)
class Sums:
    """What was seen of one layer: per group, moments to fit on and moments to judge by."""

    fit: list[Moments]
    judge: list[Moments]


def collect(
    dense: Model, compressed: Model, readings: Sequence[Reading], feeds: Feeds, *, rows: int, seed: int
) -> dict[str, Sums]:
    """Run every sample through both models, up to the layers asked for, and return their moments by key.

    Memory holds one batch and the sums. Samples whose shapes differ between the models, or that hold NaN or infinite
    values, are left out.

    Args:
        dense: The model before compression.
        compressed: The model now; tensors have the same names.
        readings: The layers.
        feeds: The samples to run.
        rows: Rows per layer to aim at, over all samples.
        seed: Decides which rows are drawn.
    """
    sums = {
        each.key: Sums(
            [Moments(each.columns) for _ in range(each.form.groups)],
            [Moments(each.columns) for _ in range(each.form.groups)],
        )
        for each in readings
    }
    share = max(1, -(-rows // max(1, len(feeds))))
    names = list(dict.fromkeys(each.tensor for each in readings))
    sources = (_Source(dense, names), _Source(compressed, names))
    for number, feed in enumerate(feeds.batches(BATCH)):
        x, z = (source.values(feed) for source in sources)
        count = share * (max(len(value) for value in feed.values()) if feeds.batchable else 1)
        for place, each in enumerate(readings):
            a, b = x[each.tensor], z[each.tensor]
            if a.shape != b.shape or not a.size:
                continue
            sampled = each.form.sample([a, b], count, np.random.default_rng((seed, number, place)))
            target = sums[each.key].judge if number % JUDGING == JUDGING - 1 else sums[each.key].fit
            for moments, dense_rows, compressed_rows in zip(target, *sampled, strict=True):
                if np.isfinite(dense_rows).all() and np.isfinite(compressed_rows).all():
                    moments.add(dense_rows, compressed_rows)
    return sums


class _Source:
    """A model cut off behind the wanted tensors, or nothing where all of them are fed."""

    def __init__(self, model: Model, names: Sequence[str]) -> None:
        fed = {tensor.name for tensor in model.graph.inputs}
        self._produced = [name for name in names if name not in fed]
        self._fed = [name for name in names if name in fed]
        self._session = session(with_outputs(model, self._produced)) if self._produced else None

    def values(self, feed: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        found = {name: np.asarray(feed[name]) for name in self._fed}
        if self._session is not None:
            wanted = {spec.name for spec in self._session.get_inputs()}
            found |= run(self._session, {name: value for name, value in feed.items() if name in wanted})
        return found


def with_outputs(model: Model, names: Sequence[str]) -> Model:
    """Return a copy of the model, sharing its weights, whose only outputs are the named tensors of the main graph."""
    cut = model.copy()
    made = {tensor.name: tensor for node in cut.graph.nodes for tensor in node.outputs}
    cut.graph.outputs[:] = [made[name] for name in names]
    cut.graph.cleanup()
    return cut


def producers(model: Model) -> dict[str, Any]:
    """Return the nodes of the main graph by the name of their first output."""
    return dict(_named(model))


def _named(model: Model) -> Iterator[tuple[str, Any]]:
    for node in model.graph.nodes:
        if node.outputs and node.outputs[0].name:
            yield node.outputs[0].name, node
