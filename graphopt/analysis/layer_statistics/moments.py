"""Sums up what layers read in the dense and in the compressed model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from graphopt.solve.least_squares import Moments

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from graphopt.analysis.layer_statistics.rows import Form
    from graphopt.graph import Model, Node

    Values = dict[str, Any]

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
        paired: The dense model has the tensor too; else what the compressed one gives stands for both.
    """

    key: str
    tensor: str
    form: Form
    columns: int
    paired: bool = True


@dataclass(frozen=True, slots=True)
class Sums:
    """What was seen of one layer: per group, moments to fit on and moments to judge by."""

    fit: list[Moments]
    judge: list[Moments]


def collect(
    values: Iterable[tuple[Values, Values]], readings: Sequence[Reading], *, rows: int, seed: int
) -> dict[str, Sums]:
    """Return the moments of the layers' inputs by key.

    Memory holds one batch and the sums. Batches whose shapes differ between the models, or whose rows hold NaN or
    infinite values, are left out.

    Args:
        values: What the layers read in the model before compression and in the model as it is now, batch by batch.
        readings: The layers.
        rows: Rows to draw from each batch, per layer.
        seed: Decides which rows are drawn.
    """
    sums = {
        each.key: Sums(
            [Moments(each.columns) for _ in range(each.form.groups)],
            [Moments(each.columns) for _ in range(each.form.groups)],
        )
        for each in readings
    }
    for number, (x, z) in enumerate(values):
        for place, each in enumerate(readings):
            b = z[each.tensor]
            a = x[each.tensor] if each.paired else b
            if a.shape != b.shape or not a.size:
                continue
            sampled = each.form.sample([a, b], rows, np.random.default_rng((seed, number, place)))
            target = sums[each.key].judge if number % JUDGING == JUDGING - 1 else sums[each.key].fit
            for moments, dense_rows, compressed_rows in zip(target, *sampled, strict=True):
                if np.isfinite(dense_rows).all() and np.isfinite(compressed_rows).all():
                    moments.add(dense_rows, compressed_rows)
    return sums


def producers(model: Model) -> dict[str, Node]:
    """Return the nodes of the main graph by the name of their first output."""
    return {node.outputs[0].name: node for node in model.graph.nodes if node.outputs and node.outputs[0].name}
