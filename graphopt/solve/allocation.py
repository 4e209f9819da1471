"""Divides a budget among layers: one level for each, so that together they do the least damage.

Every layer has a few levels (bits, shares of zeros), each with a cost (bytes, weights left, milliseconds) and a damage,
and damages are taken to add up: minimise sum d_l(x_l) subject to sum c_l(x_l) <= budget, a multiple-choice knapsack.

* `allocate_lagrangian`: what is optimal for some price of one unit of cost; fast, exact at the budgets it passes;
* `allocate_exact`: dynamic programming over buckets of cost; exact where costs are whole numbers;
* `allocate_uniform`: the same level for all but the protected layers: the baseline, and the safe choice where damages
  do not add up;
* `uniform_shares`: the same share of zeros for all but the protected layers.

Levels are named by their position. A lower cost is a stronger level; the order of the positions means nothing.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

Vector = NDArray[np.float64]

BUCKETS = 10_000
"""Buckets of cost in `allocate_exact`."""

MOST_STEPS = 2e8
"""Table entries times levels that `allocate` still gives to the exact solver: seconds on one core."""


@dataclass(frozen=True, slots=True)
class Allocation:
    """One level per layer.

    Attributes:
        levels: Position of each layer's level.
        cost: Sum of their costs.
        damage: Sum of their damages.
    """

    levels: tuple[int, ...]
    cost: float
    damage: float


def allocate(damages: Sequence[Vector], costs: Sequence[Vector], budget: float) -> Allocation:
    """Return the least damaging levels that fit the budget, by the best method that the size allows.

    Args:
        damages: Per layer the damage of each of its levels, finite.
        costs: Per layer the cost of each of its levels, finite.
        budget: Largest sum of costs.

    Raises:
        ValueError: The cheapest levels together cost more than the budget, or an argument is not finite.
    """
    quick = allocate_lagrangian(damages, costs, budget)
    if sum(len(each) for each in damages) * BUCKETS > MOST_STEPS:
        return quick
    exact = allocate_exact(damages, costs, budget)
    return exact if exact.damage < quick.damage else quick


def allocate_lagrangian(damages: Sequence[Vector], costs: Sequence[Vector], budget: float) -> Allocation:
    """Return levels that are optimal for a price per unit of cost, then spend what is left of the budget.

    For a price p each layer takes argmin d + p c by itself, which lies on the lower convex hull of its levels. Falling
    prices move one layer at a time to the next vertex, in the order of damage saved per cost, and the walk ends where
    the budget does: bisection over the price with every breakpoint known. Layers that still afford a gentler level get
    it, the most saved first. The result is optimal where the walk ends exactly on the budget; else it does at most the
    damage that the first step left out would have saved more than the optimum.

    Args:
        damages: Per layer the damage of each of its levels, finite.
        costs: Per layer the cost of each of its levels, finite.
        budget: Largest sum of costs.

    Raises:
        ValueError: The cheapest levels together cost more than the budget, or an argument is not finite.

    Cost: O(n log n) for n levels in all.
    Source: Shoham and Gersho 1988, IEEE Trans. ASSP 36(9), section III; Everett 1963.
    """
    _check(damages, costs, budget)
    hulls = [lower_hull(cost, damage) for cost, damage in zip(costs, damages, strict=True)]
    chosen = [hull[0] for hull in hulls]
    spent = math.fsum(cost[level] for cost, level in zip(costs, chosen, strict=True))
    steps = sorted(
        (-(damages[layer][a] - damages[layer][b]) / (costs[layer][b] - costs[layer][a]), layer, place + 1)
        for layer, hull in enumerate(hulls)
        for place, (a, b) in enumerate(itertools.pairwise(hull))
    )
    for _, layer, place in steps:
        level = hulls[layer][place]
        price = costs[layer][level] - costs[layer][chosen[layer]]
        if price <= 0:  # slopes that differ in their last bits came out of order
            continue
        if spent + price > _ceiling(budget):
            break
        chosen[layer], spent = level, spent + price
    return _summed(_spend_rest(chosen, damages, costs, budget), damages, costs)


def allocate_exact(
    damages: Sequence[Vector], costs: Sequence[Vector], budget: float, *, buckets: int = BUCKETS
) -> Allocation:
    """Return the optimum by dynamic programming over the cost above that of the cheapest levels.

    Costs are rounded up to buckets, so the budget is never exceeded. Where all costs differ by whole numbers and the
    spare budget is at most `buckets`, a bucket is 1 and the result exact; else it does at most the damage of the
    optimum for a budget that is smaller by one bucket per layer.

    Args:
        damages: Per layer the damage of each of its levels, finite.
        costs: Per layer the cost of each of its levels, finite.
        budget: Largest sum of costs.
        buckets: Into how many parts the spare budget is divided.

    Raises:
        ValueError: The cheapest levels together cost more than the budget, or an argument is not finite.

    Cost: O(levels of all layers * buckets), memory one byte or two per layer and bucket.
    Source: Frantar and Alistarh 2022, arXiv:2201.13096, section 3.2.
    """
    _check(damages, costs, budget)
    extra = [cost - cost.min() for cost in costs]
    spare = max(0.0, budget - math.fsum(float(cost.min()) for cost in costs))
    if not spare:
        width, size = 1.0, 0
    elif spare <= buckets and all((each == np.round(each)).all() for each in extra):
        width, size = 1.0, math.floor(_ceiling(spare))
    else:
        width, size = spare / buckets, buckets
    least = np.zeros(size + 1)
    taken: list[NDArray[np.int16]] = []
    for damage, more in zip(damages, extra, strict=True):
        best = np.full(size + 1, np.inf)
        level = np.zeros(size + 1, np.int16)
        for place, (harm, price) in enumerate(zip(damage, more, strict=True)):
            # A quotient that is whole but for its last bits must not cost a bucket more.
            shift = math.ceil(price / width * (1 - 1e-12))
            if shift > size:
                continue
            total = least[: size + 1 - shift] + harm
            better = total < best[shift:]
            best[shift:][better] = total[better]
            level[shift:][better] = place
        taken.append(level)
        least = best
    chosen = [0] * len(damages)
    left = int(np.argmin(least))
    for layer in reversed(range(len(damages))):
        chosen[layer] = int(taken[layer][left])
        left -= math.ceil(extra[layer][chosen[layer]] / width * (1 - 1e-12))
    return _summed(_spend_rest(chosen, damages, costs, budget), damages, costs)


def allocate_uniform(
    damages: Sequence[Vector], costs: Sequence[Vector], budget: float, *, protected: Collection[int] = ()
) -> Allocation:
    """Return the same level for all layers but the protected ones, which keep their most expensive level.

    Of the levels that fit, the most expensive is taken: the damages only make the sum that is returned.

    Args:
        damages: Per layer the damage of each level; all layers have the same levels.
        costs: Per layer the cost of each level.
        budget: Largest sum of costs.
        protected: Positions of layers that stay as they are, the first and the last for example.

    Raises:
        ValueError: No level fits, layers have different numbers of levels, or an argument is not finite.
    """
    _check(damages, costs, budget)
    if len({len(each) for each in costs}) > 1:
        raise ValueError("a uniform level needs the same levels for every layer")
    found: list[Allocation] = []
    for place in range(len(costs[0]) if costs else 0):
        levels = [int(np.argmax(cost)) if layer in protected else place for layer, cost in enumerate(costs)]
        tried = _summed(levels, damages, costs)
        if tried.cost <= _ceiling(budget):
            found.append(tried)
    if not found:
        raise ValueError(f"no level for all layers costs {budget:g} or less")
    return max(found, key=lambda each: (each.cost, -each.damage))


def uniform_shares(sizes: Sequence[int], share: float, protected: Collection[int] = ()) -> list[float]:
    """Return the share of zeros of each layer: none for the protected, the same for all others.

    Args:
        sizes: Weights per layer.
        share: Share of zeros over all weights, those of protected layers included, 0..1.
        protected: Positions of layers without zeros; they get some only where the others alone cannot reach the share.
    """
    if not 0 <= share <= 1:
        raise ValueError(f"{share} is not a share from 0 to 1")
    wanted = share * sum(sizes)
    free = sum(size for layer, size in enumerate(sizes) if layer not in protected)
    common = min(1.0, wanted / free) if free else 0.0
    bound = sum(sizes) - free
    rest = min(1.0, max(0.0, wanted - free) / bound) if bound and wanted > free else 0.0
    return [rest if layer in protected else common for layer in range(len(sizes))]


def lower_hull(costs: Vector, damages: Vector) -> list[int]:
    """Return the levels on the lower convex hull of damage over cost, from the cheapest to the least damaging.

    Between them damage falls ever slower as cost rises. Of equal levels the first is taken.

    Args:
        costs: Cost of each level, [n].
        damages: Damage of each level, [n].
    """
    hull: list[int] = []
    for level in sorted(range(len(costs)), key=lambda each: (costs[each], damages[each], each)):
        if hull and damages[level] >= damages[hull[-1]]:
            continue
        while len(hull) > 1 and _above(hull[-2], hull[-1], level, costs, damages):
            hull.pop()
        hull.append(level)
    return hull


def monotone(damages: Vector, weights: Vector | None = None) -> Vector:
    """Return the nearest damages that never fall from one level to the next stronger one (isotonic regression).

    What was measured on few samples may say that a stronger level harms less; that is noise, and an allocation would
    believe it.

    Args:
        damages: Measured damages from the gentlest level to the strongest, [n].
        weights: How much each counts, 1 / variance, [n]; all the same by default.

    Source: Ayer et al. 1955, the pool-adjacent-violators algorithm.
    """
    blocks: list[tuple[float, float, int]] = []
    for value, weight in zip(damages, np.ones(len(damages)) if weights is None else weights, strict=True):
        mean, mass, count = float(value), float(weight), 1
        while blocks and blocks[-1][0] > mean:
            other, more, length = blocks.pop()
            mean = (mean * mass + other * more) / (mass + more)
            mass, count = mass + more, count + length
        blocks.append((mean, mass, count))
    return np.concatenate([np.full(count, mean) for mean, _, count in blocks]) if blocks else np.zeros(0)


def _above(a: int, b: int, c: int, costs: Vector, damages: Vector) -> bool:
    """Tell whether the middle of three levels lies on or above the line between its neighbours."""
    cross = (costs[b] - costs[a]) * (damages[c] - damages[a]) - (costs[c] - costs[a]) * (damages[b] - damages[a])
    return bool(cross <= 0)


def _spend_rest(chosen: Sequence[int], damages: Sequence[Vector], costs: Sequence[Vector], budget: float) -> list[int]:
    """Move single layers to gentler levels while the budget lasts, the most damage saved first."""
    levels = list(chosen)
    left = _ceiling(budget) - math.fsum(cost[level] for cost, level in zip(costs, levels, strict=True))
    while True:
        offers = []
        for layer, level in enumerate(levels):
            saved = damages[layer][level] - damages[layer]
            fits = (saved > 0) & (costs[layer] - costs[layer][level] <= left)
            if fits.any():
                best = int(np.argmax(np.where(fits, saved, -np.inf)))
                offers.append((float(saved[best]), -layer, best))
        if not offers:
            return levels
        _, negative, best = max(offers)
        left -= float(costs[-negative][best] - costs[-negative][levels[-negative]])
        levels[-negative] = best


def _summed(levels: Sequence[int], damages: Sequence[Vector], costs: Sequence[Vector]) -> Allocation:
    cost = math.fsum(float(each[level]) for each, level in zip(costs, levels, strict=True))
    damage = math.fsum(float(each[level]) for each, level in zip(damages, levels, strict=True))
    return Allocation(tuple(levels), cost, damage)


def _ceiling(budget: float) -> float:
    """Return the budget with room for the rounding of sums."""
    return budget + 1e-9 * abs(budget)


def _check(damages: Sequence[Vector], costs: Sequence[Vector], budget: float) -> None:
    if len(damages) != len(costs) or any(len(d) != len(c) for d, c in zip(damages, costs, strict=True)):
        raise ValueError("every level needs one damage and one cost")
    if any(not len(each) for each in costs):
        raise ValueError("a layer has no level")
    if not all(np.isfinite(each).all() for each in (*damages, *costs)) or not math.isfinite(budget):
        raise ValueError("damages, costs and the budget must be finite")
    least = math.fsum(float(each.min()) for each in costs)
    if least > _ceiling(budget):
        raise ValueError(f"the cheapest levels cost {least:g} together, more than the budget of {budget:g}")
