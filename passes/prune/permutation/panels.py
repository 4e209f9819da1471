"""What the weights of a model show of channels that change places: panels of scores, one per weight and axis."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from graphopt.analysis.channel_groups import Role
from graphopt.solve.patterns import Pattern
from graphopt.solve.permutation import Panel

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from graphopt.analysis.channel_groups import Cut
    from graphopt.passes.prune.permutation.exchange import Order
    from graphopt.passes.prune.structure import Structure

    Matrix = NDArray[np.float64]


def panel_of(structure: Structure, scores: NDArray[Any], cut: Cut, places: Order, share: float) -> Panel | None:
    """Return what a pattern sees of an order of channels in one weight, None where it sees nothing.

    Args:
        structure: How the pattern lies in the weight.
        scores: Of the weight's shape, not negative.
        cut: The axis along which the channels lie.
        places: At which of its indices each of them stands, [U, times].
        share: Share of blocks that goes.
    """
    pattern = structure.pattern
    shape = [-1 if axis == cut.axis else 1 for axis in range(scores.ndim)]
    along = np.broadcast_to(np.arange(scores.shape[cut.axis], dtype=np.float64).reshape(shape), scores.shape)
    parts, indices = structure.matrices(scores), structure.matrices(along)
    if cut.role is Role.PRODUCE and pattern.rows > 1:
        values = _rows(parts, indices, pattern)
        return None if values is None else Panel(values, places, pattern.rows, share=share)
    if cut.role is Role.CONSUME and max(pattern.columns, pattern.of) > 1:
        size = pattern.of or pattern.columns
        columns = _columns(parts, indices, pattern, size)
        return None if columns is None else Panel(columns, places, size, keep=pattern.keep, share=share)
    return None


def _rows(parts: Sequence[Matrix], indices: Sequence[Matrix], pattern: Pattern) -> Matrix | None:
    """Return the scores by row, [n, F], where each row of the matrices is one index."""
    first = [index[:, 0] for index in indices]
    if any((index != own[:, None]).any() for index, own in zip(indices, first, strict=True)):
        return None
    pooled = [Pattern(columns=pattern.columns).pooled(part) for part in parts]
    if all(np.array_equal(own, np.arange(len(own))) for own in first):
        return np.concatenate(pooled, axis=1)
    one_behind_the_other = np.array_equal(np.concatenate(first), np.arange(sum(map(len, first))))
    if one_behind_the_other and all(len(own) % pattern.rows == 0 for own in first):
        return np.concatenate(pooled, axis=0)
    return None


def _columns(parts: Sequence[Matrix], indices: Sequence[Matrix], pattern: Pattern, size: int) -> Matrix | None:
    """Return the scores by column, [n, F], where the columns are the indices in order, over and over."""
    count = int(indices[0].max()) + 1
    times = parts[0].shape[1] // count
    wanted = np.tile(np.arange(count), times)
    if any(index.shape[1] != len(wanted) or (index != wanted).any() for index in indices):
        return None
    if times > 1 and count % size:
        return None
    found = []
    for part in parts:
        pooled = Pattern(rows=pattern.rows).pooled(part)
        cube = pooled.reshape(len(pooled), times, count)
        found.append(np.moveaxis(cube, 2, 0).reshape(count, -1))
    return np.concatenate(found, axis=1)
