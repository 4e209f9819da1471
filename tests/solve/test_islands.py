"""Integer islands: the cut against all assignments, budgets that hold, and who pays for a conversion."""

from __future__ import annotations

import itertools
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from graphopt.solve.islands import OUTSIDE, Division, Handover, Islands, Option, Prices, divide, divide_within, evaluate


def everything(problem: Islands) -> list[Division]:
    return [evaluate(problem, choice) for choice in itertools.product(*(range(len(each)) for each in problem.options))]


def price_of(division: Division, prices: Prices) -> float:
    return prices.seconds * division.seconds + prices.damage * division.damage + prices.size * division.size


COSTS = st.integers(0, 40).map(lambda value: value / 8)


@st.composite
def problems(draw: st.DrawFn) -> Islands:
    count = draw(st.integers(1, 6))
    options = []
    for _ in range(count):
        sides = draw(st.lists(st.booleans(), min_size=1, max_size=3))
        options.append(tuple(Option(str(i), s, draw(COSTS), draw(COSTS), draw(COSTS)) for i, s in enumerate(sides)))
    tensors = []
    for maker in range(-1, count):
        later = [*range(maker + 1, count), OUTSIDE]
        readers = draw(st.lists(st.sampled_from(later), min_size=1, max_size=3, unique=True))
        tensors.append(Handover(maker, tuple(readers), draw(COSTS), draw(COSTS)))
    return Islands(tuple(options), tuple(tensors))


@given(problem=problems(), prices=st.builds(Prices, COSTS, COSTS, COSTS))
@settings(max_examples=100, deadline=None)
def test_no_assignment_is_cheaper_than_the_cut(problem: Islands, prices: Prices) -> None:
    found = divide(problem, prices)
    least = min(price_of(each, prices) for each in everything(problem))
    assert price_of(found, prices) == pytest.approx(least, abs=1e-9)
    assert found == evaluate(problem, found.choice)


@given(problem=problems(), goal=st.sampled_from(("seconds", "damage")), share=st.floats(0.0, 1.2))
@settings(max_examples=60, deadline=None)
def test_a_budget_holds_and_no_point_of_the_hull_is_better(problem: Islands, goal: str, share: float) -> None:
    other = "damage" if goal == "seconds" else "seconds"
    known = everything(problem)
    low, high = (bound(each.amount(other) for each in known) for bound in (min, max))
    budget = low + share * (high - low)
    found = divide_within(problem, goal, {other: budget})
    assert found is not None
    assert found.amount(other) <= budget + 1e-6
    # what any price would give is a point of the convex hull: those within the budget are no better
    hull = [divide(problem, Prices(**{goal: 1.0, other: 2.0**power})) for power in range(-12, 13)]
    within = [each.amount(goal) for each in hull if each.amount(other) <= budget]
    assert found.amount(goal) <= min(within, default=math.inf) + 1e-6


@given(problem=problems())
@settings(max_examples=40, deadline=None)
def test_the_same_problem_gives_the_same_choice(problem: Islands) -> None:
    prices = Prices(1.0, 0.5, 0.1)
    assert divide(problem, prices) == divide(problem, prices)


def two(seconds: float, integer: float) -> tuple[Option, Option]:
    return Option("float", False, seconds), Option("int8", True, integer)


def test_conversions_keep_a_small_gain_from_being_taken() -> None:
    chain = (Handover(OUTSIDE, (0,), 1.0, 1.0), Handover(0, (1,), 1.0, 1.0), Handover(1, (OUTSIDE,), 1.0, 1.0))
    assert divide(Islands((two(2, 1.5), two(2, 1.5)), chain), Prices(seconds=1)).choice == (0, 0)
    assert divide(Islands((two(3, 1.5), two(3, 1.5)), chain), Prices(seconds=1)).choice == (1, 1)


def test_a_node_that_is_slower_in_integers_joins_where_leaving_costs_more() -> None:
    chain = tuple(Handover(maker, (maker + 1,), 1.0, 1.0) for maker in range(2))
    problem = Islands((two(5, 1), two(1, 1.5), two(5, 1)), chain)
    assert divide(problem, Prices(seconds=1)).choice == (1, 1, 1)
    cheap = tuple(Handover(maker, (maker + 1,), 0.1, 0.1) for maker in range(2))
    assert divide(Islands(problem.options, cheap), Prices(seconds=1)).choice == (1, 0, 1)


def test_several_readers_pay_for_one_rounding() -> None:
    options = (two(1, 9), two(2, 1), two(2, 1), two(2, 1))
    shared = Islands(options, (Handover(0, (1, 2, 3), 2.0, 2.0),))
    assert divide(shared, Prices(seconds=1)).choice == (0, 1, 1, 1)
    assert evaluate(shared, (0, 1, 1, 0)).seconds == 1 + 1 + 1 + 2 + 2.0
    apart = Islands(options, tuple(Handover(0, (reader,), 2.0, 2.0) for reader in (1, 2, 3)))
    assert divide(apart, Prices(seconds=1)).choice == (0, 0, 0, 0)


def test_weights_alone_in_few_bits_save_bytes_and_no_conversion() -> None:
    options = (
        Option("float", False, 2.0, 0.0, 40.0),
        Option("int8", True, 1.0, 0.3, 10.0),
        Option("weights8", False, 2.1, 0.1, 10.0),
        Option("weights4", False, 2.2, 0.9, 5.0),
    )
    problem = Islands((options, options), (Handover(OUTSIDE, (0,), 5.0, 5.0), Handover(0, (1,), 5.0, 5.0)))
    eighth = divide_within(problem, "damage", {"size": 20.0})
    assert eighth is not None
    assert eighth.choice == (2, 2)
    fourth = divide_within(problem, "damage", {"size": 15.0})
    assert fourth is not None
    assert sorted(fourth.choice) == [2, 3]
    assert divide_within(problem, "damage", {"size": 9.0}) is None


def test_two_budgets_hold_at_once() -> None:
    options = (Option("float", False, 3.0, 0.0, 40.0), Option("int8", True, 1.0, 1.0, 10.0))
    problem = Islands((options,) * 4)
    found = divide_within(problem, "damage", {"seconds": 8.0, "size": 130.0})
    assert found is not None
    assert found.seconds <= 8.0
    assert found.size <= 130.0
    assert found.damage == 2.0
