"""In which order channels lie so that a pattern of zeros keeps most: greedy swaps between its blocks or groups.

A pattern looks at neighbours: 4x1 takes four output rows together, 2:4 four input columns. Which rows or columns are
neighbours is free wherever the channels can change places in all weights at once, and decides what a pattern costs.

Units (channels) stand in slots. Each weight shows a panel of scores, its rows along the channels. What a score adds in
a slot, the others being where they are, is max(score - q, 0) above what the others keep alone: for N:M, q is the N-th
best of the others in the group; for blocks, what the block lacks to the level at which blocks stay. Swaps between two
blocks are judged for all pairs at once from a table of these gains; the best that touch different blocks are made, and
what they touch is counted anew, until no swap gains anything.

Source: Pool and Yu 2021, Channel permutations for N:M sparsity (NeurIPS 34), section 3: greedy bounded swaps; here with
several starts, for many weights at once, and for blocks.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
from numpy.typing import NDArray

from graphopt.solve.patterns import Pattern, keep_best

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

Matrix = NDArray[np.float64]
Order: TypeAlias = "NDArray[np.intp]"

MOST_WORK = 2e9
"""Additions that one search may take: about five seconds."""

TABLE_WORK = 2e8
"""Additions that one table of gains may take; wider panels are searched on some of their features."""

ROUNDS = 10
"""How often the level at which blocks stay is found anew."""


@dataclass(frozen=True, slots=True)
class Panel:
    """What one weight makes of an order.

    Attributes:
        values: Scores, not negative, of each index along the channels, by what lies across, [n, F].
        places: At which indices each slot stands, ascending, [U, times]; the other indices are fixed.
        size: Indices that the pattern takes together, from index 0 on; the last ones may be fewer.
        keep: N of N:M; 0 for blocks.
        share: Share of the blocks that goes.
    """

    values: Matrix
    places: Order
    size: int
    keep: int = 0
    share: float = 0.0

    def arranged(self, order: Order) -> Matrix:
        """Return the scores where slot k holds what slot order[k] held, [n, F]."""
        rows = np.arange(len(self.values))
        rows[self.places] = self.places[order]
        return self.values[rows]

    def kept(self, order: Order) -> float:
        """Return the sum of the scores that stay in an order."""
        values = self.arranged(order)
        if self.keep:
            columns = np.ascontiguousarray(values.T)
            return float(columns[keep_best(columns, Pattern(keep=self.keep, of=self.size), 0.0)].sum())
        return float(values[keep_best(values, Pattern(rows=self.size), self.share)].sum())


def best_order(panels: Sequence[Panel], *, starts: int = 3, seed: int = 0) -> tuple[Order, float, float]:
    """Return an order of the units in which the patterns keep most, and what they keep before and then.

    Args:
        panels: The weights that hold the units, of one number of slots. Those in which a unit stands several times are
            not searched on, but count.
        starts: Orders that are improved: the present one, a greedy one, then random ones. They and what is found from
            them do not depend on the present order, so that a second search finds no more.
        seed: Decides the random ones.

    Returns:
        (order, before, after): slot k gets what slot order[k] holds. The present order where none is better.

    Cost: U^2 F additions per round of swaps for U units and F features, bounded by ``MOST_WORK``.
    """
    count = len(panels[0].places)
    present = np.arange(count)
    before = sum(panel.kept(present) for panel in panels)
    chosen, after = present, before
    searched = [_narrowed(panel, count, len(panels), seed) for panel in panels if _matters(panel)]
    if not searched:
        return present, before, before
    work = _Work(MOST_WORK)
    for start in _starts(searched, starts, seed):
        if work.spent():
            break
        found = _improved(searched, start, work)
        reached = sum(panel.kept(found) for panel in panels)
        if reached > after:
            chosen, after = found, reached
    return chosen, before, after


class _Work:
    """Counts additions against a bound."""

    def __init__(self, most: float) -> None:
        self._left = most

    def add(self, amount: float) -> None:
        self._left -= amount

    def spent(self) -> bool:
        return self._left <= 0


def _matters(panel: Panel) -> bool:
    """Tell whether the order can change what the panel keeps, and swaps can be judged one by one."""
    return panel.places.shape[1] == 1 and panel.size > 1 and len(np.unique(_blocks(panel))) > 1


def _narrowed(panel: Panel, units: int, panels: int, seed: int) -> Panel:
    """Return the panel with as many of its features as a table of gains may cost."""
    most = max(16, int(TABLE_WORK / (panels * units**2)))
    features = panel.values.shape[1]
    if features <= most:
        return panel
    some = np.sort(np.random.default_rng(seed).permutation(features)[:most])
    return Panel(np.ascontiguousarray(panel.values[:, some]), panel.places, panel.size, panel.keep, panel.share)


def _blocks(panel: Panel) -> Order:
    """Return the block in which each slot lies, [U]."""
    return panel.places[:, 0] // panel.size


def _starts(panels: Sequence[Panel], count: int, seed: int) -> Iterator[Order]:
    units = len(panels[0].places)
    yield np.arange(units)
    if count > 1:
        yield _greedy(panels)
    sums = np.sum([panel.values[panel.places[:, 0]].sum(axis=1) for panel in panels], axis=0)
    ranked = np.argsort(sums, kind="stable")
    draw = np.random.default_rng(seed)
    for _ in range(count - 2):
        yield ranked[draw.permutation(units)]


def _level(panel: Panel, values: Matrix) -> float:
    """Return the mean score of a block from which on blocks stay."""
    if panel.keep:
        return 0.0
    pattern = Pattern(rows=panel.size)
    means = pattern.pooled(values) / pattern.sizes(values.shape)
    return float(np.quantile(means, panel.share))


def _lacks(panel: Panel, values: Matrix, level: float) -> Matrix:
    """Return for each slot what its score must exceed to be kept, or to add to a block that is, [U, F]."""
    size, (rows, features) = panel.size, values.shape
    blocks = -(-rows // size)
    cube = np.zeros((blocks * size, features))
    cube[:rows] = values
    cube = cube.reshape(blocks, size, features)
    own = panel.places[:, 0]
    if not panel.keep:
        wanted = level * np.minimum(size, rows - size * np.arange(blocks))
        return np.asarray((wanted[:, None] - cube.sum(axis=1))[own // size] + values[own])
    if panel.keep >= size:
        return np.zeros((len(own), features))
    ranked = -np.sort(-cube, axis=1)
    last, next_ = ranked[:, panel.keep - 1][own // size], ranked[:, panel.keep][own // size]
    return np.where(values[own] >= last, next_, last)


def _greedy(panels: Sequence[Panel]) -> Order:
    """Return the order that fills slot by slot, each with the unit that adds most to what lies there already."""
    units = len(panels[0].places)
    # A level that does not depend on the present order: that of single scores.
    levels = [0.0 if panel.keep else float(np.quantile(panel.values, panel.share)) for panel in panels]
    filled = [np.array(panel.values) for panel in panels]
    for panel, values in zip(panels, filled, strict=True):
        values[panel.places[:, 0]] = 0.0
    left = list(range(units))
    order = np.empty(units, np.intp)
    for slot in range(units):
        gains = np.zeros(len(left))
        for panel, values, level in zip(panels, filled, levels, strict=True):
            first = panel.places[slot, 0] // panel.size * panel.size
            near = values[first : first + panel.size]
            if panel.keep:
                lacks = -np.sort(-near, axis=0)[min(panel.keep, len(near)) - 1]
            else:
                # A share of the level that grows as the block fills: the first unit of a block is chosen on its own.
                others = int(np.count_nonzero(_blocks(panel)[:slot] == first // panel.size))
                lacks = level * (others + 1) - near.sum(axis=0)
            scores = panel.values[panel.places[left, 0]]
            gains += np.maximum(scores - lacks, 0.0).sum(axis=1) / max(1.0, float(panel.values.sum()))
        order[slot] = left.pop(int(np.argmax(gains)))
        for panel, values in zip(panels, filled, strict=True):
            values[panel.places[slot, 0]] = panel.values[panel.places[order[slot], 0]]
    return order


def _improved(panels: Sequence[Panel], order: Order, work: _Work) -> Order:
    """Return an order in which no swap gains anything; the level of blocks is found anew a few times."""
    best, reached = order, sum(panel.kept(order) for panel in panels)
    for _ in range(ROUNDS):
        levels = [_level(panel, panel.arranged(best)) for panel in panels]
        found = _swapped(panels, levels, np.array(best), work)
        kept = sum(panel.kept(found) for panel in panels)
        if kept <= reached * (1 + 1e-9):
            break
        best, reached = found, kept
        if work.spent() or not any(levels):
            break
    return best


def _swapped(panels: Sequence[Panel], levels: Sequence[float], order: Order, work: _Work) -> Order:
    """Swap units between blocks while that gains anything."""
    units = len(order)
    blocks = [_blocks(panel) for panel in panels]
    arranged = [panel.arranged(order) for panel in panels]
    least = 1e-9 * max(sum(float(values.sum()) for values in arranged), np.finfo(np.float64).tiny)
    every = np.arange(units)
    tables = [np.zeros((units, units)) for _ in panels]
    rows = [every for _ in panels]
    columns = np.zeros(0, np.intp)
    while True:
        for panel, level, values, table, own, changed in zip(
            panels, levels, arranged, tables, blocks, rows, strict=True
        ):
            _fill(table, panel, level, values, own, changed, columns)
            work.add(float(len(changed) + len(columns)) * units * values.shape[1])
        swaps = _choose(np.sum(tables, axis=0), blocks, least)
        if not swaps or work.spent():
            return order
        columns = np.unique(np.array(swaps).reshape(-1))
        for a, b in swaps:
            order[a], order[b] = order[b], order[a]
            for panel, values in zip(panels, arranged, strict=True):
                one, other = panel.places[a, 0], panel.places[b, 0]
                values[[one, other]] = values[[other, one]]
        rows = [np.flatnonzero(np.isin(own, own[columns])) for own in blocks]


def _fill(
    table: Matrix, panel: Panel, level: float, values: Matrix, blocks: Order, rows: Order, columns: Order
) -> None:
    """Count anew what units add in slots: table[a, b] is what slot a gains from the unit of slot b.

    Args:
        table: [U, U], changed in place.
        panel: The weight.
        level: At which its blocks stay.
        values: Its scores as arranged.
        blocks: In which block each slot lies.
        rows: Slots that lie in other company than before.
        columns: Slots that hold other units than before.
    """
    lacks = _lacks(panel, values, level)
    held = values[panel.places[:, 0]]
    for slot in rows:
        table[slot] = np.maximum(held - lacks[slot], 0.0).sum(axis=1)
    others = np.setdiff1d(np.arange(len(table)), rows, assume_unique=True)
    for slot in columns:
        table[others, slot] = np.maximum(held[slot] - lacks[others], 0.0).sum(axis=1)
    # Within a block nothing changes: as if each slot there held what it holds.
    own = np.diag(table)
    same = blocks[:, None] == blocks[None, :]
    table[same] = np.broadcast_to(own[:, None], table.shape)[same]


def _choose(table: Matrix, blocks: Sequence[Order], least: float) -> list[tuple[int, int]]:
    """Return the swaps that gain most and touch no block twice."""
    own = np.diag(table)
    gains = table + table.T - own[:, None] - own[None, :]
    partner = np.argmax(gains, axis=1)
    gain = gains[np.arange(len(gains)), partner]
    touched = [np.zeros(int(each.max()) + 1, bool) for each in blocks]
    chosen = []
    for a in np.argsort(-gain, kind="stable"):
        if gain[a] <= least:
            break
        b = partner[a]
        if any(marks[each[a]] or marks[each[b]] for marks, each in zip(touched, blocks, strict=True)):
            continue
        for marks, each in zip(touched, blocks, strict=True):
            marks[each[a]] = marks[each[b]] = True
        chosen.append((int(a), int(b)))
    return chosen
