"""Allocation of a budget: against every combination of levels, and against what a price can reach."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from graphopt.solve.allocation import (
    Allocation,
    allocate,
    allocate_exact,
    allocate_lagrangian,
    allocate_uniform,
    lower_hull,
    monotone,
    uniform_shares,
)

Tables = tuple[list[np.ndarray], list[np.ndarray], float]


def brute_force(damages: list[np.ndarray], costs: list[np.ndarray], budget: float) -> float:
    """The least damage of all combinations that fit."""
    sums = [
        (sum(c[x] for c, x in zip(costs, levels, strict=True)), sum(d[x] for d, x in zip(damages, levels, strict=True)))
        for levels in itertools.product(*[range(len(each)) for each in costs])
    ]
    return float(min(damage for cost, damage in sums if cost <= budget + 1e-9))


@st.composite
def tables(draw: st.DrawFn, whole: bool = True) -> Tables:
    """Up to five layers of up to four levels, and a budget that at least the cheapest levels fit."""
    seed = draw(st.integers(0, 10**6))
    counts = draw(st.lists(st.integers(1, 4), min_size=1, max_size=5))
    rng = np.random.default_rng(seed)
    costs = [rng.integers(0, 20, count).astype(float) for count in counts]
    if not whole:
        costs = [each + rng.random(len(each)) for each in costs]
    damages = [np.round(rng.exponential(1.0, count), 2) for count in counts]
    least, most = (float(sum(f(each) for each in costs)) for f in (np.min, np.max))
    return damages, costs, least + draw(st.floats(0, 1)) * (most - least)


def within(found: Allocation, given: Tables) -> None:
    damages, costs, budget = given
    assert found.cost <= budget + 1e-6
    assert found.cost == pytest.approx(sum(c[x] for c, x in zip(costs, found.levels, strict=True)))
    assert found.damage == pytest.approx(sum(d[x] for d, x in zip(damages, found.levels, strict=True)))


@given(tables())
def test_dynamic_programming_is_exact_for_whole_costs(given: Tables) -> None:
    found = allocate_exact(*given)
    within(found, given)
    assert found.damage == pytest.approx(brute_force(*given), abs=1e-9)


@given(tables(whole=False))
def test_dynamic_programming_loses_at_most_a_bucket_per_layer(given: Tables) -> None:
    damages, costs, budget = given
    found = allocate_exact(damages, costs, budget, buckets=50)
    within(found, given)
    least = sum(float(each.min()) for each in costs)
    smaller = budget - len(costs) * (budget - least) / 50
    if smaller >= least:
        assert found.damage <= brute_force(damages, costs, smaller) + 1e-9
    assert found.damage >= brute_force(*given) - 1e-9


@given(tables(whole=False))
def test_lagrangian_is_within_one_step_of_the_optimum(given: Tables) -> None:
    damages, costs, budget = given
    found = allocate_lagrangian(damages, costs, budget)
    within(found, given)
    step = 0.0
    for damage, cost in zip(damages, costs, strict=True):
        hull = lower_hull(cost, damage)
        step = max([step, *(damage[a] - damage[b] for a, b in itertools.pairwise(hull))])
    best = brute_force(*given)
    assert best - 1e-9 <= found.damage <= best + step + 1e-9


@given(tables(whole=False), st.floats(0, 2))
def test_lagrangian_is_exact_where_a_price_spends_the_budget(given: Tables, price: float) -> None:
    damages, costs, _ = given
    levels = [int(np.argmin(d + price * c)) for d, c in zip(damages, costs, strict=True)]
    budget = float(sum(c[x] for c, x in zip(costs, levels, strict=True)))
    found = allocate_lagrangian(damages, costs, budget)
    assert found.damage == pytest.approx(brute_force(damages, costs, budget), abs=1e-9)


@given(tables())
def test_the_best_method_is_never_worse_than_either(given: Tables) -> None:
    assert allocate(*given).damage == pytest.approx(brute_force(*given), abs=1e-9)


def test_many_layers_go_to_the_fast_method() -> None:
    rng = np.random.default_rng(0)
    damages = [np.sort(rng.random(40)) for _ in range(600)]
    costs = [np.sort(rng.random(40))[::-1].copy() for _ in range(600)]
    found = allocate(damages, costs, 300.0)
    assert found == allocate_lagrangian(damages, costs, 300.0)
    assert 290.0 < found.cost <= 300.0


@pytest.mark.parametrize("method", [allocate, allocate_lagrangian, allocate_exact, allocate_uniform])
def test_what_cannot_be_allocated_is_refused(method: object) -> None:
    assert callable(method)
    one = [np.array([1.0, 2.0])]
    with pytest.raises(ValueError, match="more than the budget"):
        method(one, [np.array([3.0, 4.0])], 2.0)
    with pytest.raises(ValueError, match="finite"):
        method([np.array([np.nan, 2.0])], one, 9.0)
    with pytest.raises(ValueError, match="one damage and one cost"):
        method(one, [np.array([3.0])], 9.0)
    with pytest.raises(ValueError, match="no level"):
        method([np.array([])], [np.array([])], 9.0)


def test_uniform_takes_the_most_expensive_level_that_fits_and_keeps_the_protected() -> None:
    costs = [np.array([8.0, 4.0, 2.0])] * 4
    damages = [np.array([0.0, 1.0, 5.0])] * 4
    assert allocate_uniform(damages, costs, 16.0).levels == (1, 1, 1, 1)
    assert allocate_uniform(damages, costs, 20.0, protected=(0, 3)).levels == (0, 2, 2, 0)
    with pytest.raises(ValueError, match="no level for all layers"):
        allocate_uniform(damages, costs, 19.0, protected=(0, 3))
    with pytest.raises(ValueError, match="same levels"):
        allocate_uniform([*damages, np.zeros(1)], [*costs, np.ones(1)], 90.0)


@given(st.lists(st.integers(1, 1000), min_size=1, max_size=6), st.floats(0, 1), st.sets(st.integers(0, 5)))
def test_uniform_shares_reach_the_share(sizes: list[int], share: float, protected: set[int]) -> None:
    found = uniform_shares(sizes, share, protected)
    reached = sum(each * size for each, size in zip(found, sizes, strict=True)) / sum(sizes)
    assert reached == pytest.approx(share, abs=1e-9)
    assert all(0 <= each <= 1 for each in found)
    free = [each for layer, each in enumerate(found) if layer not in protected]
    assert len(set(free)) <= 1
    if any(each < 1 for each in free):
        assert not any(found[layer] for layer in protected if layer < len(sizes))


def test_a_share_is_a_share() -> None:
    with pytest.raises(ValueError, match="share"):
        uniform_shares([1, 2], 1.5)


@given(st.lists(st.tuples(st.integers(0, 8), st.integers(0, 8)), min_size=1, max_size=8))
def test_hull_is_what_some_price_prefers(points: list[tuple[int, int]]) -> None:
    costs, damages = (np.array(each, float) for each in zip(*points, strict=True))
    hull = lower_hull(costs, damages)
    assert costs[hull[0]] == costs.min()
    assert damages[hull[-1]] == damages.min()
    slopes = [(damages[a] - damages[b]) / (costs[b] - costs[a]) for a, b in itertools.pairwise(hull)]
    assert all(a > b > 0 for a, b in itertools.pairwise([*slopes, 0.0][: len(slopes)]))
    for price in (0.01, 0.3, 1.0, 3.0, 50.0):
        assert (damages + price * costs).min() == pytest.approx((damages + price * costs)[hull].min())


@given(st.lists(st.floats(0, 10), min_size=1, max_size=12), st.integers(0, 10**6))
def test_monotone_never_falls_and_is_the_nearest(values: list[float], seed: int) -> None:
    given = np.array(values)
    found = monotone(given)
    assert (np.diff(found) >= -1e-12).all()
    assert found.sum() == pytest.approx(given.sum())
    other = np.sort(np.random.default_rng(seed).random(len(values)) * 10)
    assert ((found - given) ** 2).sum() <= ((other - given) ** 2).sum() + 1e-9
    np.testing.assert_array_equal(monotone(np.sort(given)), np.sort(given))


def test_monotone_weighs_what_is_known_better() -> None:
    found = monotone(np.array([2.0, 1.0]), np.array([3.0, 1.0]))
    np.testing.assert_allclose(found, [1.75, 1.75])
    assert monotone(np.zeros(0)).shape == (0,)
