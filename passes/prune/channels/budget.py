"""Shares the removal out among groups: more goes where less is lost per operation saved."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from graphopt.analysis.cost import Cost
from graphopt.solve.allocation import allocate

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from graphopt.analysis import Facts
    from graphopt.analysis.channel_groups import ChannelGroups, Group
    from graphopt.passes.prune.channels.choice import Choice

    Vector = NDArray[np.float64]

MOST = 7 / 8
"""Share of a group that goes at most, where the same share of all groups would be less."""

LEVELS = 16
"""Numbers of units that are considered for a group."""


def unit_costs(channels: ChannelGroups, groups: Sequence[Group], facts: Facts) -> dict[Group, float]:
    """Return the operations per run that one unit of each group takes, its share of what its layers compute.

    Sizes that only a run knows count as 1.
    """
    cost = facts.get(Cost)
    firsts = {int(group.units[0]): group for group in groups}
    found = dict.fromkeys(groups, 0.0)
    for cut in channels.cuts:
        units, counts = np.unique(channels.units(cut.labels), return_counts=True)
        operations = cost.node_total(cut.node, default=1).flops
        for unit, count in zip(units.tolist(), counts.tolist(), strict=True):
            if unit in firsts:
                found[firsts[unit]] += operations * count / len(cut.labels)
    return {group: max(value, 1.0) for group, value in found.items()}


def share_out(
    choice: Choice, losses: Mapping[Group, Vector], costs: Mapping[Group, float], *, multiple: int
) -> dict[Group, int]:
    """Return how many units stay in each group, so that as many operations go as with equal shares.

    Args:
        choice: How many would stay in each with equal shares.
        losses: Per group what it costs that the first 0, 1, 2 ... units go, relative to the power of what reads them.
            Groups without keep their share.
        costs: Operations per unit.
        multiple: What stays is a multiple of this in groups that are rounded.
    """
    groups = [group for group in choice.groups if group in losses]
    if not groups:
        return dict(choice.keep)
    kept = [_levels(group, choice.keep[group], multiple) for group in groups]
    damages = [losses[group][len(group) - some] for group, some in zip(groups, kept, strict=True)]
    prices = [costs[group] * some.astype(np.float64) for group, some in zip(groups, kept, strict=True)]
    budget = sum(costs[group] * choice.keep[group] for group in groups)
    levels = allocate(damages, prices, budget).levels
    chosen = {group: int(some[level]) for group, some, level in zip(groups, kept, levels, strict=True)}
    return {**choice.keep, **chosen}


def _levels(group: Group, equal: int, multiple: int) -> NDArray[np.int64]:
    """Return the numbers of units of a group that may stay, that of an equal share among them."""
    count = len(group)
    step = multiple if equal % multiple == 0 and count >= 2 * multiple * multiple else max(1, count // LEVELS)
    least = min(equal, max(1, round((1 - MOST) * count)))
    return np.unique([*range(step * -(-least // step), count + 1, step), equal, count]).astype(np.int64)
