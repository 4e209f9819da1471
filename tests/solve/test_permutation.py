"""The order of channels that a pattern of zeros suits best."""

from __future__ import annotations

from itertools import permutations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from graphopt.solve import permutation
from graphopt.solve.permutation import Panel, best_order

RULES = ((4, 0), (2, 0), (4, 2), (2, 1), (3, 1))
"""Size of a block or group, and N of N:M."""


def panel(values: np.ndarray, size: int, keep: int = 0, share: float = 0.5) -> Panel:
    return Panel(values, np.arange(len(values))[:, None], size, keep, share)


def every_order(shown: Panel) -> float:
    """Return what the best of all orders keeps."""
    return max(shown.kept(np.array(order)) for order in permutations(range(len(shown.places))))


@pytest.mark.parametrize(("size", "keep"), RULES)
def test_close_to_the_best_of_all_orders(size: int, keep: int) -> None:
    reached = []
    for seed in range(10):
        shown = panel(np.random.default_rng(seed).random((6, 5)) ** 4, size, keep)
        order, before, after = best_order([shown], starts=5)
        best = every_order(shown)
        assert shown.kept(np.arange(6)) == pytest.approx(before)
        assert shown.kept(order) == pytest.approx(after)
        assert before <= after <= best * (1 + 1e-12)
        reached.append((after - before) / max(best - before, 1e-12) if best > before * (1 + 1e-9) else 1.0)
    assert np.mean(reached) > 0.9


@pytest.mark.parametrize("shape", [(16, 40), (64, 100)])
def test_blocks_that_were_shuffled_are_found_again(shape: tuple[int, int]) -> None:
    draw = np.random.default_rng(0)
    blocks = np.repeat(draw.random((shape[0] // 4, shape[1])) < 0.3, 4, axis=0)
    values = np.where(blocks, 1 + draw.random(shape), 0.01 * draw.random(shape))
    shown = panel(values[draw.permutation(shape[0])], 4, share=0.7)
    _, before, after = best_order([shown])
    assert before < 0.7 * values.sum()
    assert after == pytest.approx(panel(values, 4, share=0.7).kept(np.arange(shape[0])))


@pytest.mark.parametrize(("size", "keep"), RULES)
@given(seed=st.integers(0, 1 << 16))
@settings(max_examples=15, deadline=None)
def test_never_keeps_less_and_a_second_search_finds_nothing(size: int, keep: int, seed: int) -> None:
    draw = np.random.default_rng(seed)
    units = int(draw.integers(2, 14))
    fixed = int(draw.integers(0, 5))
    panels = []
    for _ in range(int(draw.integers(1, 4))):
        places = np.sort(draw.permutation(units + fixed)[:units])
        values = draw.random((units + fixed, int(draw.integers(1, 9)))) ** 3
        panels.append(Panel(values, places[:, None], size, keep, 0.6))
    order, before, after = best_order(panels, starts=3)
    assert sorted(order.tolist()) == list(range(units))
    assert after >= before
    assert sum(each.kept(order) for each in panels) == pytest.approx(after)
    then = [Panel(each.arranged(order), each.places, size, keep, 0.6) for each in panels]
    _, again, more = best_order(then, starts=3)
    assert again == pytest.approx(after)
    assert more <= again * 1.02


def test_what_is_fixed_stays() -> None:
    draw = np.random.default_rng(1)
    shown = Panel(draw.random((8, 6)), np.array([[1], [3], [4], [6]]), 4, 0, 0.5)
    arranged = shown.arranged(np.array([3, 2, 1, 0]))
    assert np.array_equal(arranged[[0, 2, 5, 7]], shown.values[[0, 2, 5, 7]])
    assert np.array_equal(arranged[[1, 3, 4, 6]], shown.values[[6, 4, 3, 1]])


def test_units_that_stand_several_times_count_but_are_not_searched_on() -> None:
    values = np.random.default_rng(2).random((8, 3))
    places = np.arange(8).reshape(4, 2)
    order, before, after = best_order([Panel(values, places, 4, 0, 0.5)])
    assert np.array_equal(order, np.arange(4))
    assert before == after


def test_one_block_has_one_order() -> None:
    shown = panel(np.random.default_rng(3).random((4, 3)), 4)
    order, before, after = best_order([shown])
    assert np.array_equal(order, np.arange(4))
    assert before == after


def test_many_features_are_searched_on_some_and_judged_on_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(permutation, "TABLE_WORK", 64 * 64 * 100)
    draw = np.random.default_rng(4)
    blocks = np.repeat(draw.random((16, 1000)) < 0.3, 4, axis=0)
    values = np.where(blocks, 1.0, 0.0)[draw.permutation(64)]
    shown = panel(values, 4, share=0.7)
    _, before, after = best_order([shown], starts=2)
    assert after > 1.2 * before


def test_the_work_of_a_search_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(permutation, "MOST_WORK", 1.0)
    shown = panel(np.random.default_rng(5).random((32, 8)) ** 4, 4)
    order, before, after = best_order([shown], starts=50)
    assert sorted(order.tolist()) == list(range(32))
    assert after >= before
