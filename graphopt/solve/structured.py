"""Which channels a layer can best do without: whole blocks of columns of the weights that read them.

A unit is a channel, a head or a neuron; several columns of one or more weights read it. What its removal costs is
measured where it is read, after the columns that stay have taken over what they can.

Sources: Kurtic et al. 2023, arXiv:2302.04089, section 3 (block OBS for structures); Hassibi and Stork 1993 (OBS); He et
al. 2017, arXiv:1707.06168, section 3.1 (LASSO); Luo and Wu 2017, arXiv:1706.05791 (entropy); Kim et al. 2020,
arXiv:2010.13160 (merging).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from graphopt.solve.obs import inverted

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

Matrix = NDArray[np.float64]
Vector = NDArray[np.float64]
Places = NDArray[np.int64]

HISTOGRAM_BINS = 32


@dataclass(frozen=True, slots=True)
class Reader:
    """A weight that reads the units.

    Attributes:
        weight: W, [R, C]: the best weights for the statistics, so that only what is removed costs.
        inner: H = E[z z'] of what it reads, [C, C], positive definite.
        units: Which unit each column reads, [C]; -1 for columns that read none of them.
    """

    weight: Matrix
    inner: Matrix
    units: Places

    def power(self) -> float:
        """Return the mean square of the outputs, tr(W H W')."""
        return float(np.einsum("rc,rc->", self.weight @ self.inner, self.weight))


@dataclass(frozen=True, slots=True)
class Removal:
    """In which order units go.

    Attributes:
        order: Units, the first to go first.
        losses: What each step costs: the rise of the error relative to the power of the output, summed over readers.
    """

    order: Places
    losses: Vector


def block_obs(readers: Sequence[Reader], count: int, *, steps: int | None = None, at_once: int = 1) -> Removal:
    """Return the units in the order in which block OBS removes them.

    A step takes the units B of least tr(W_B [H^-1]_BB^-1 W_B'), the error that is left after the other columns were
    solved again, and solves them again: W -= W_B [H^-1]_BB^-1 H^-1_B. Units that no reader reads go first.

    Args:
        readers: Weights that read the units; each one's error counts relative to the power of its output.
        count: Number of units.
        steps: Units that go at most; all by default.
        at_once: Units that go in one step. More than one is an approximation, for many units.

    Cost: count / at_once times the sum over readers of C^2 b + R C b, b columns per step.
    """
    return _greedily([_State(reader) for reader in readers], count, _State.losses, steps, at_once)


def merging(readers: Sequence[Reader], count: int, *, steps: int | None = None, at_once: int = 1) -> Removal:
    """Return the units in the order of how well the others predict them, whatever the weights make of that.

    A step takes the units of least unexplained variance tr([H^-1]_BB^-1) times the mean square of the weights that read
    them; solving the layer again then merges them into the ones that predict them.

    Args:
        readers: Weights that read the units.
        count: Number of units.
        steps: Units that go at most; all by default.
        at_once: Units that go in one step.
    """
    return _greedily([_State(reader) for reader in readers], count, _State.unexplained, steps, at_once)


def _greedily(
    states: Sequence[_State],
    count: int,
    score: Callable[[_State, int], Vector],
    steps: int | None,
    at_once: int,
) -> Removal:
    left = np.ones(count, np.bool_)
    order: list[int] = []
    losses: list[float] = []
    wanted = count if steps is None else min(steps, count)
    while len(order) < wanted:
        total = np.zeros(count)
        for state in states:
            total += score(state, count)
        total[~left] = np.inf
        taken = np.argsort(total, kind="stable")[: min(at_once, wanted - len(order))]
        for unit in taken.tolist():
            order.append(unit)
            losses.append(float(total[unit]))
        left[taken] = False
        for state in states:
            state.remove(taken)
    return Removal(np.array(order, np.int64), np.maximum(np.array(losses), 0.0))


class _State:
    """A reader from which units go: its weights and H^-1 on the columns that are left."""

    def __init__(self, reader: Reader) -> None:
        self._weight = reader.weight.copy()
        self._inverse = inverted(reader.inner)
        self._units = reader.units.copy()
        self._power = max(reader.power(), np.finfo(np.float64).tiny)

    def losses(self, count: int) -> Vector:
        """Return by how much the error rises for each unit that goes next, relative to the power of the output."""
        found = np.zeros(count)
        for units, columns in self._blocks():
            block = self._inverse[columns[:, :, None], columns[:, None, :]]
            weight = self._weight[:, columns].transpose(1, 2, 0)  # [units, columns, rows]
            found[units] = np.einsum("ucr,ucr->u", weight, np.linalg.solve(block, weight)) / self._power
        return found

    def unexplained(self, count: int) -> Vector:
        """Return the variance of each unit that the others do not explain, times the power of its weights."""
        found = np.zeros(count)
        for units, columns in self._blocks():
            block = np.linalg.inv(self._inverse[columns[:, :, None], columns[:, None, :]])
            variance = np.trace(block, axis1=1, axis2=2)
            weights = (self._weight[:, columns] ** 2).mean(axis=(0, 2)) * len(self._weight)
            found[units] = variance * weights / self._power
        return found

    def _blocks(self) -> list[tuple[Places, Places]]:
        """Return (units, their columns [units, columns each]) for each number of columns that units have."""
        columns = np.flatnonzero(self._units >= 0)
        columns = columns[np.argsort(self._units[columns], kind="stable")]
        units, starts, sizes = np.unique(self._units[columns], return_index=True, return_counts=True)
        found = []
        for size in np.unique(sizes).tolist():
            these = sizes == size
            found.append((units[these], columns[starts[these][:, None] + np.arange(size)]))
        return found

    def remove(self, units: Places) -> None:
        """Take units out and let the other columns take over."""
        gone = np.isin(self._units, units)
        if not gone.any():
            return
        block, across = self._inverse[np.ix_(gone, gone)], self._inverse[np.ix_(gone, ~gone)]
        solved = np.linalg.solve(block, across)
        self._weight = self._weight[:, ~gone] - self._weight[:, gone] @ solved
        self._inverse = self._inverse[np.ix_(~gone, ~gone)] - across.T @ solved
        self._units = self._units[~gone]


def lasso(readers: Sequence[Reader], count: int, keep: int) -> Removal:
    """Return the units in the order in which a rising penalty sets their gates to zero.

    min_b sum_readers E|W z - sum_u b_u W_u z_u|^2 / power + penalty * |b|_1, by coordinate descent on its Gram matrix;
    the penalty rises until at most `keep` gates are open. Units whose gates are still open go last, the smallest first.

    Args:
        readers: Weights that read the units.
        count: Number of units.
        keep: Gates that may stay open.
    """
    gram = np.zeros((count, count))
    aim = np.zeros(count)
    for reader in readers:
        power = max(reader.power(), np.finfo(np.float64).tiny)
        # products of what single columns contribute, summed block by block
        product = (reader.weight.T @ reader.weight) * reader.inner / power
        member = (reader.units[:, None] == np.arange(count)).astype(np.float64)
        gram += member.T @ product @ member
        aim += member.T @ product.sum(axis=1) - member.T @ (product @ (reader.units < 0).astype(np.float64))
    gates = np.ones(count)
    closed: list[int] = []
    penalty = 1e-5 * float(np.abs(aim).max() + np.finfo(np.float64).tiny)
    diagonal = np.maximum(np.diag(gram), np.finfo(np.float64).tiny)
    while np.count_nonzero(gates) > keep:
        before = gates.copy()
        for _ in range(30):
            change = 0.0
            for unit in np.flatnonzero(gates).tolist():
                free = aim[unit] - gram[unit] @ gates + gram[unit, unit] * gates[unit]
                gate = float(np.sign(free)) * max(abs(free) - penalty, 0.0) / diagonal[unit]
                change = max(change, abs(gate - gates[unit]))
                gates[unit] = gate
            if change < 1e-4:
                break
        went = np.flatnonzero((gates == 0) & (before != 0))
        closed.extend(went[np.argsort(np.abs(before[went]), kind="stable")].tolist())
        penalty *= 1.3
    still = np.flatnonzero(gates)
    order = [*closed, *still[np.argsort(np.abs(gates[still]), kind="stable")].tolist()]
    return Removal(np.array(order, np.int64), np.zeros(len(order)))


def by_score(scores: Vector) -> Removal:
    """Return the units by rising score, ties in order."""
    order = np.argsort(scores, kind="stable")
    return Removal(order.astype(np.int64), scores[order])


def norms(parts: Sequence[tuple[Matrix, Places]], count: int, *, power: int) -> Vector:
    """Return the norm of the weights that make each unit.

    Args:
        parts: (weights, [n, m]; the unit that each row makes, [n], -1 for none) of all layers that make them.
        count: Number of units.
        power: 1 for the sum of absolute values, 2 for the root of the sum of squares.

    Source: Li et al. 2017, arXiv:1608.08710 (L1 norms of filters).
    """
    sums = np.zeros(count)
    for weight, units in parts:
        rows = (np.abs(weight) ** power).sum(axis=1)
        np.add.at(sums, units[units >= 0], rows[units >= 0])
    return sums if power == 1 else np.sqrt(sums)


def entropies(values: Matrix, units: Places, count: int) -> Vector:
    """Return the mean entropy of the activations that belong to each unit, in bits.

    Args:
        values: One number per sample and column, [n, C]: the mean activation over all positions.
        units: The unit of each column, -1 for none.
        count: Number of units.

    Source: Luo and Wu 2017, arXiv:1706.05791, section 3.1.
    """
    low, high = values.min(axis=0), values.max(axis=0)
    span = np.where(high > low, high - low, 1.0)
    bins = np.minimum(((values - low) / span * HISTOGRAM_BINS).astype(np.int64), HISTOGRAM_BINS - 1)
    table = np.zeros((values.shape[1], HISTOGRAM_BINS))
    np.add.at(table, (np.broadcast_to(np.arange(values.shape[1]), bins.shape), bins), 1.0)
    share = table / len(values)
    bits = -(share * np.log2(np.where(share > 0, share, 1.0))).sum(axis=1)
    sums, columns = np.zeros(count), np.zeros(count)
    np.add.at(sums, units[units >= 0], bits[units >= 0])
    np.add.at(columns, units[units >= 0], 1.0)
    return sums / np.maximum(columns, 1.0)
