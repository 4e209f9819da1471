"""Structured removal against direct solutions of the same small problems."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from graphopt.solve import structured
from graphopt.solve.structured import Reader

if TYPE_CHECKING:
    from collections.abc import Sequence


def reader(draw: np.random.Generator, rows: int, units: Sequence[int], *, samples: int = 60) -> Reader:
    columns = len(units)
    inputs = draw.standard_normal((samples, columns)) @ draw.standard_normal((columns, columns))
    return Reader(draw.standard_normal((rows, columns)), inputs.T @ inputs / samples, np.array(units, np.int64))


def best_error(each: Reader, gone: Sequence[int]) -> float:
    """Return min_V tr((W - V) H (W - V)') over V without the columns of some units, relative to the power of W."""
    stays = ~np.isin(each.units, gone)
    aim = each.weight @ each.inner[:, stays]
    best = np.linalg.solve(each.inner[np.ix_(stays, stays)], aim.T).T
    return (each.power() - float(np.einsum("rc,rc->", best, aim))) / each.power()


@given(seed=st.integers(0, 1 << 16))
@settings(max_examples=25, deadline=None)
def test_losses_add_up_to_the_error_of_the_solved_layer(seed: int) -> None:
    draw = np.random.default_rng(seed)
    readers = [reader(draw, 3, [0, 0, 1, 1, 2, 2, -1, 3, 3]), reader(draw, 2, [3, 1, 2, 0])]
    found = structured.block_obs(readers, 4, steps=3)
    for steps in range(1, 4):
        wanted = sum(best_error(each, found.order[:steps].tolist()) for each in readers)
        assert found.losses[:steps].sum() == pytest.approx(wanted, rel=1e-6, abs=1e-9)


@given(seed=st.integers(0, 1 << 16))
@settings(max_examples=25, deadline=None)
def test_each_step_takes_the_unit_that_costs_least(seed: int) -> None:
    draw = np.random.default_rng(seed)
    each = reader(draw, 3, [0, 1, 1, 2, 2, 2, 3])
    found = structured.block_obs([each], 4)
    gone: list[int] = []
    for unit in found.order.tolist():
        others = [other for other in range(4) if other not in gone]
        errors = {other: best_error(each, [*gone, other]) for other in others}
        assert errors[unit] <= min(errors.values()) + 1e-9
        gone.append(unit)


def test_a_unit_that_nobody_reads_goes_first_and_a_copy_next() -> None:
    draw = np.random.default_rng(0)
    inputs = draw.standard_normal((200, 4))
    inputs[:, 3] = inputs[:, 1]
    each = Reader(draw.standard_normal((5, 4)), inputs.T @ inputs / 200 + 1e-9 * np.eye(4), np.array([0, 1, 2, 3]))
    for ranking in (structured.block_obs, structured.merging):
        found = ranking([each], 5)
        assert found.order[0] == 4
        assert found.order[1] in {1, 3}
        assert found.losses[:2].sum() < 1e-6


def test_several_at_once_takes_the_least_of_one_look() -> None:
    draw = np.random.default_rng(1)
    each = reader(draw, 4, list(range(12)))
    single = structured.block_obs([each], 12, steps=1)
    found = structured.block_obs([each], 12, steps=6, at_once=3)
    assert len(set(found.order.tolist())) == 6
    assert found.order[0] == single.order[0]


@pytest.mark.parametrize("keep", [1, 3, 5])
def test_lasso_keeps_what_the_output_needs(keep: int) -> None:
    draw = np.random.default_rng(2)
    inputs = draw.standard_normal((400, 6))
    weight = draw.standard_normal((8, 6)) * np.array([1e-2, 1e-2, 1e-2, 1.0, 2.0, 3.0])
    each = Reader(weight, inputs.T @ inputs / 400, np.arange(6))
    found = structured.lasso([each], 6, keep)
    assert sorted(found.order.tolist()) == list(range(6))
    power = (weight**2).sum(axis=0)
    assert set(found.order[-keep:].tolist()) == set(np.argsort(power)[-keep:].tolist()) or keep == 5


def test_norms_of_the_rows_that_make_a_unit() -> None:
    rows = np.array([[1.0, -2.0], [3.0, 4.0], [0.5, 0.5]])
    places = np.array([1, 0, 1])
    assert structured.norms([(rows, places)], 2, power=1) == pytest.approx([7.0, 4.0])
    assert structured.norms([(rows, places), (rows, -np.ones(3, np.int64))], 2, power=2) == pytest.approx(
        [5.0, np.sqrt(5.5)]
    )


def test_entropy_of_a_constant_is_zero_and_of_a_ramp_five_bits() -> None:
    values = np.stack([np.zeros(3200), np.arange(3200.0), np.arange(3200.0)], axis=1)
    found = structured.entropies(values, np.array([0, 1, 0]), 2)
    assert found == pytest.approx([2.5, 5.0], abs=0.01)
