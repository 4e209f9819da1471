"""The rounding solvers against full search on small problems, and what they promise on any problem."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from graphopt.solve.least_squares import Statistics
from graphopt.solve.rounding import (
    BINARY,
    TERNARY,
    Grid,
    Levels,
    Problem,
    adaround,
    alternate,
    asymmetric_target,
    descend,
    descend_from,
    gptq,
    integer_levels,
    layer_error,
    min_max,
    nearest_grid,
    refit_scales,
    search,
)

ALL_LEVELS = [
    integer_levels(8, narrow=True),
    integer_levels(4),
    integer_levels(3),
    integer_levels(2),
    integer_levels(4, symmetric=False),
    TERNARY,
    BINARY,
]


def problem(
    seed: int = 0, *, groups: int = 1, rows: int = 3, columns: int = 8, masked: bool = False, spread: float = 1.0
) -> Problem:
    rng = np.random.default_rng(seed)
    inputs = rng.standard_normal((groups, 5 * columns, columns)) @ (
        np.eye(columns) + spread * rng.standard_normal((groups, columns, columns))
    )
    moment = np.swapaxes(inputs, 1, 2) @ inputs / inputs.shape[1] + 1e-2 * np.eye(columns)
    target = rng.standard_normal((groups, rows, columns)) * np.exp(rng.standard_normal((groups, rows, 1)))
    return Problem(target, moment, rng.random(target.shape) < 0.5 if masked else None)


def best_by_trying(task: Problem, grid: Grid) -> np.ndarray:
    """Return the best weights of a problem with one group: every combination of levels is tried, row by row."""
    groups, rows, columns = task.target.shape
    assert groups == 1
    scale, zero = grid.spread(columns)
    found = np.zeros_like(task.target)
    combinations = np.array(
        list(itertools.product(range(grid.levels.low, grid.levels.high + 1), repeat=columns)), np.float64
    )
    for row in range(rows):
        place = min(row, scale.shape[1] - 1)
        values = (combinations - zero[0, place]) * scale[0, place]
        if task.mask is not None:
            values = values * task.mask[0, row]
        difference = values - task.target[0, row]
        errors = np.einsum("nc,nc->n", difference @ task.moment[0], difference)
        found[0, row] = values[int(np.argmin(errors))]
    return found


def on_grid(grid: Grid, values: np.ndarray, mask: np.ndarray | None = None) -> bool:
    codes = grid.codes(values)
    back = grid.restore(codes)
    if mask is not None:
        if values[~mask].any():
            return False
        back = np.where(mask, back, 0.0)
    return bool(np.allclose(back, values, rtol=1e-12, atol=0))


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("levels", [TERNARY, BINARY, integer_levels(2)], ids=["ternary", "binary", "int2"])
def test_descent_comes_near_the_best_of_all_combinations(levels: Levels, masked: bool) -> None:
    gained, whole = 0.0, 0.0
    for seed in range(12):
        task = problem(seed, columns=6, masked=masked)
        grid = search(task, levels)
        least = layer_error(task, best_by_trying(task, grid))
        plain = layer_error(task, grid.nearest(task.target, task.mask))
        starts = [gptq(task, grid), grid.nearest(task.target, task.mask)]
        reached = layer_error(task, descend_from(task, grid, starts, sweeps=8))
        assert reached <= plain
        assert reached >= least - 1e-9
        gained += plain - reached
        whole += plain - least
    assert gained >= 0.5 * whole


def test_descent_finds_the_best_where_the_columns_do_not_depend_on_each_other() -> None:
    task = problem(3, columns=6)
    task = Problem(task.target, np.einsum("gcd,cd->gcd", task.moment, np.eye(6)))
    grid = search(task, TERNARY)
    found = descend(task, grid, np.zeros_like(task.target))
    np.testing.assert_allclose(found, best_by_trying(task, grid))


def test_gptq_is_the_textbook_loop_with_the_inverse_of_the_moments() -> None:
    task = problem(5, columns=7)
    grid = min_max(task.target, integer_levels(3))
    inverse = np.linalg.inv(task.moment[0])
    left = task.target[0].copy()
    found = np.zeros_like(left)
    order = np.argsort(-np.diag(task.moment[0]), kind="stable")
    rounded = grid.rounder(7)
    remaining = list(order)
    for column in order:
        found[:, column] = rounded(int(column), left[None, :, column])[0]
        error = (left[:, column] - found[:, column]) / inverse[column, column]
        left -= error[:, None] * inverse[column]
        remaining.remove(column)
        inverse = np.zeros_like(inverse)
        if remaining:
            inverse[np.ix_(remaining, remaining)] = np.linalg.inv(task.moment[0][np.ix_(remaining, remaining)])
    np.testing.assert_allclose(gptq(task, grid)[0], found)


@pytest.mark.parametrize("columns", [70, 130])
def test_blocks_of_columns_change_nothing(columns: int, monkeypatch: pytest.MonkeyPatch) -> None:
    from graphopt.solve.rounding import coordinate_descent
    from graphopt.solve.rounding import gptq as module

    task = problem(1, columns=columns, groups=2)
    grid = search(task, integer_levels(4))
    first = gptq(task, grid)
    second = descend(task, grid, first)
    monkeypatch.setattr("graphopt.solve.rounding.coordinate_descent.BLOCK", 1)
    assert coordinate_descent.BLOCK == 1
    np.testing.assert_allclose(descend(task, grid, first), second)
    monkeypatch.setitem(module.__globals__, "BLOCK", 1)
    np.testing.assert_allclose(gptq(task, grid), first)


def test_groups_are_solved_as_if_they_were_alone() -> None:
    task = problem(2, groups=3, rows=2, columns=9)
    grid = search(task, integer_levels(3))
    together = descend(task, grid, gptq(task, grid, by_size=False))
    for group in range(3):
        part = slice(group, group + 1)
        alone = Problem(task.target[part], task.moment[part])
        own = search(alone, integer_levels(3))
        np.testing.assert_allclose(own.scale, grid.scale[part])
        np.testing.assert_allclose(descend(alone, own, gptq(alone, own, by_size=False)), together[part])


@given(
    seed=st.integers(0, 10_000),
    levels=st.sampled_from(ALL_LEVELS),
    granularity=st.sampled_from(["tensor", "row", 3, 4]),
    groups=st.integers(1, 2),
    masked=st.booleans(),
)
@settings(max_examples=60, deadline=None)
def test_every_step_lowers_the_error_and_stays_on_the_grid(
    seed: int, levels: Levels, granularity: int | str, groups: int, masked: bool
) -> None:
    task = problem(seed, groups=groups, columns=10, masked=masked)
    grid = search(task, levels, granularity)  # type: ignore[arg-type]
    start = gptq(task, grid)
    assert on_grid(grid, start, task.mask)
    lower = descend(task, grid, start, sweeps=2)
    assert on_grid(grid, lower, task.mask)
    assert layer_error(task, lower) <= layer_error(task, start) * (1 + 1e-9)
    fitted, values = refit_scales(task, grid, lower)
    assert on_grid(fitted, values, task.mask)
    np.testing.assert_array_equal(fitted.scale, fitted.scale.astype(np.float32))
    # The scale is stored as float32: what that costs is far below the error itself.
    assert layer_error(task, values) <= layer_error(task, lower) * (1 + 1e-5)
    last, best = alternate(task, grid, start)
    assert on_grid(last, best, task.mask)
    assert layer_error(task, best) <= layer_error(task, start) * (1 + 1e-5)


@given(seed=st.integers(0, 10_000), levels=st.sampled_from(ALL_LEVELS))
@settings(max_examples=20, deadline=None)
def test_search_is_never_worse_than_min_max_in_its_own_measure(seed: int, levels: Levels) -> None:
    task = problem(seed, columns=12)
    for granularity in ("row", "tensor"):
        plain = min_max(task.target, levels, granularity)
        found = search(task, levels, granularity)
        errors = [layer_error(task, grid.nearest(task.target)) for grid in (found, plain)]
        assert errors[0] <= errors[1] * (1 + 1e-12)


def test_refitted_scale_of_a_row_is_the_least_squares_one() -> None:
    task = problem(8, rows=4, columns=9)
    grid = search(task, integer_levels(3))
    values = gptq(task, grid)
    fitted, _ = refit_scales(task, grid, values)
    for row in range(4):
        q = values[0, row] / grid.scale[0, row, 0]
        wanted = (q @ task.moment[0] @ task.target[0, row]) / (q @ task.moment[0] @ q)
        assert fitted.scale[0, row, 0] == pytest.approx(wanted, rel=1e-6)


def test_refitted_scale_of_a_tensor_is_the_least_squares_one() -> None:
    task = problem(8, rows=4, columns=9, groups=2)
    grid = search(task, integer_levels(3), "tensor")
    values = gptq(task, grid)
    fitted, _ = refit_scales(task, grid, values)
    q = values / grid.scale
    wanted = np.vdot(q @ task.moment, task.target) / np.vdot(q @ task.moment, q)
    assert fitted.scale.shape == (1, 1, 1)
    assert float(fitted.scale[0, 0, 0]) == pytest.approx(wanted, rel=1e-6)


def test_min_max_reaches_the_largest_weights() -> None:
    weight = np.array([[[-3.0, 1.0, 7.0], [0.0, 0.0, 0.0]]])
    grid = min_max(weight, integer_levels(4))
    np.testing.assert_allclose(grid.scale[0, :, 0], [1.0, 1.0])
    np.testing.assert_allclose(grid.nearest(weight), weight)
    one_sided = min_max(weight, integer_levels(4, symmetric=False))
    assert float(one_sided.scale[0, 0, 0]) == pytest.approx(10 / 15)
    assert one_sided.zero[0, 0, 0] == 4 or one_sided.zero[0, 0, 0] == 5
    assert one_sided.nearest(np.zeros_like(weight)).any() == np.False_
    ends = min_max(weight, BINARY)
    np.testing.assert_allclose(np.abs(ends.nearest(weight)[0, 0]), [7, 7, 7], rtol=1e-6)


@pytest.mark.parametrize("levels", [TERNARY, BINARY, integer_levels(2)], ids=["ternary", "binary", "int2"])
def test_few_levels_without_moments_keep_more_than_the_largest_weights(levels: Levels) -> None:
    weight = np.random.default_rng(0).standard_normal((1, 6, 64))
    errors = [np.square(grid(weight, levels).nearest(weight) - weight).sum() for grid in (nearest_grid, min_max)]
    assert errors[0] < 0.8 * errors[1]
    eight = integer_levels(8)
    np.testing.assert_array_equal(nearest_grid(weight, eight).scale, min_max(weight, eight).scale)


def test_levels_of_integer_types() -> None:
    assert (integer_levels(8).low, integer_levels(8).high) == (-128, 127)
    assert (integer_levels(8, narrow=True).low, integer_levels(2).low, integer_levels(2).high) == (-127, -2, 1)
    assert integer_levels(3, symmetric=False).count == 8
    assert TERNARY.holds_zero
    assert integer_levels(3, symmetric=False).holds_zero
    assert not BINARY.holds_zero
    for bits in (1, 9):
        with pytest.raises(ValueError, match="2 to 8 bits"):
            integer_levels(bits)


def test_adaround_beats_rounding_to_nearest_and_stays_on_its_neighbours() -> None:
    task = problem(4, rows=8, columns=24)
    grid = search(task, integer_levels(4))
    found = adaround(task, grid, iterations=400)
    assert on_grid(grid, found)
    scale, _ = grid.spread(24)
    inside = np.abs(task.target) < 7 * scale
    assert (np.abs(found - task.target) <= scale * (1 + 1e-9))[inside].all()
    assert layer_error(task, found) < 0.9 * layer_error(task, grid.nearest(task.target))


def test_adaround_keeps_zeros() -> None:
    task = problem(4, rows=4, columns=10, masked=True)
    found = adaround(task, search(task, integer_levels(4)), iterations=50)
    assert task.mask is not None
    assert not found[~task.mask].any()


def test_asymmetric_target_is_the_regression_of_dense_outputs_on_compressed_inputs() -> None:
    rng = np.random.default_rng(0)
    x = rng.standard_normal((4000, 5)) @ rng.standard_normal((5, 5))
    z = 0.7 * x + 0.2 * rng.standard_normal(x.shape)
    weight = rng.standard_normal((3, 5))
    n = len(x)
    given_ = Statistics(z.T @ z / n, x.T @ x / n, x.T @ z / n, x.mean(0), z.mean(0))
    task = asymmetric_target([weight], [given_], damping=1e-9)
    wanted = np.linalg.lstsq(z, x @ weight.T, rcond=None)[0].T
    np.testing.assert_allclose(task.target[0], wanted, atol=1e-5)
    np.testing.assert_allclose(task.moment[0], given_.inner, rtol=1e-6)


def test_shapes_that_do_not_fit_are_refused() -> None:
    task = problem()
    with pytest.raises(ValueError, match="moments of shape"):
        Problem(task.target, task.moment[:, :2, :2])
    with pytest.raises(ValueError, match="mask of shape"):
        Problem(task.target, task.moment, np.ones((1, 1, 1), np.bool_))
