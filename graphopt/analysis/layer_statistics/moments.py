"""Sums up what layers read in the dense and in the compressed model."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from graphopt.solve.least_squares import Moments, Squares

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from graphopt.analysis.layer_statistics.rows import Form
    from graphopt.graph import Model, Node

    Values = dict[str, Any]

JUDGING = 4
"""Every so many batches, one is kept from the fit and judges it."""


@dataclass(frozen=True, slots=True)
class Reading:
    """One tensor that a layer reads. A layer may have several: the sums of readings of one key are added up.

    Attributes:
        key: Identifies the layer among the results.
        tensor: Name of the tensor that it reads, in both models.
        form: How its input is read as rows.
        columns: Columns of each group's matrix.
        paired: The dense model has the tensor too; else what the compressed one gives stands for both.
        wide: The layer has too many columns for matrices of them: only the mean squares of columns are taken.
    """

    key: str
    tensor: str
    form: Form
    columns: int
    paired: bool = True
    wide: bool = False


@dataclass(slots=True)
class Sums:
    """What was seen of one layer: per group, moments to fit on and moments to judge by, or squares for a wide one."""

    fit: list[Moments] = field(default_factory=list)
    judge: list[Moments] = field(default_factory=list)
    squares: list[Squares] = field(default_factory=list)

    @classmethod
    def of(cls, reading: Reading, *, symmetric: bool = False) -> Sums:
        """Return sums of nothing; ``symmetric`` where x is always z."""
        groups = range(reading.form.groups)
        if reading.wide:
            return cls(squares=[Squares(reading.columns) for _ in groups])
        fit, judge = ([Moments(reading.columns, symmetric=symmetric) for _ in groups] for _ in range(2))
        return cls(fit, judge)

    def merge(self, other: Sums) -> Sums:
        """Return both together."""
        return Sums(
            [a.merge(b) for a, b in zip(self.fit, other.fit, strict=True)],
            [a.merge(b) for a, b in zip(self.judge, other.judge, strict=True)],
            [a.merge(b) for a, b in zip(self.squares, other.squares, strict=True)],
        )

    def finite(self) -> bool:
        """Tell whether there are samples of all kinds that there are sums for, and no sum overflowed."""
        moments = [*self.fit, *self.judge]
        every = all(each.finite() for each in moments) and all(each.finite() for each in self.squares)
        return every and bool(self.fit or self.squares)


def collect(
    values: Iterable[tuple[Values, Values]], readings: Sequence[Reading], *, rows: int, seed: int, last: int = -1
) -> dict[str, Sums]:
    """Return the moments of the layers' inputs by key.

    Memory holds one batch and the sums; layers that read the same tensor in the same way share theirs. Batches whose
    shapes differ between the models, or whose rows hold NaN or infinite values, are left out.

    Args:
        values: What the layers read in the model before compression and in the model as it is now, batch by batch; the
            same object twice where x is z.
        readings: The layers.
        rows: Rows to draw from each batch, per layer.
        seed: Decides which rows are drawn.
        last: Number of the last batch where that is known: of few batches it is the one that judges.
    """
    shared: dict[Reading, list[Reading]] = {}
    for each in readings:
        shared.setdefault(Reading("", each.tensor, each.form, each.columns, each.paired, each.wide), []).append(each)
    sums: dict[Reading, Sums] = {}
    for number, (x, z) in enumerate(values):
        judge = number % JUDGING == JUDGING - 1 or (number == last and 0 < last < JUDGING - 1)
        for place, each in enumerate(shared):
            b = z[each.tensor]
            a = b if x is z or not each.paired else x[each.tensor]
            if each not in sums:
                sums[each] = Sums.of(each, symmetric=a is b)
            if a.shape == b.shape and a.size:
                draw = np.random.default_rng((seed, number, place))
                _add(sums[each], each, [a] if a is b else [a, b], rows, draw, judge=judge)
    found: dict[str, Sums] = {}
    for each, users in shared.items():
        for user in users:
            given = sums.get(each) or Sums.of(user)
            found[user.key] = found[user.key].merge(given) if user.key in found else given
    return found


def _add(sums: Sums, reading: Reading, inputs: list[Any], rows: int, draw: np.random.Generator, *, judge: bool) -> None:
    sampled = reading.form.sample(inputs, rows, draw)
    for group in range(reading.form.groups):
        dense, compressed = sampled[0][group], sampled[-1][group]
        if not (np.isfinite(dense).all() and (dense is compressed or np.isfinite(compressed).all())):
            continue
        if reading.wide:
            sums.squares[group].add(compressed)
        else:
            (sums.judge if judge else sums.fit)[group].add(dense, compressed)


def producers(model: Model) -> dict[str, Node]:
    """Return the nodes of the main graph by the names of their outputs."""
    return {tensor.name: node for node in model.graph.nodes for tensor in node.outputs if tensor.name}
