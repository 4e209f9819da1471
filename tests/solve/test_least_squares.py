"""The solver against numpy.linalg.lstsq and against direct sums over samples."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from graphopt.solve import least_squares
from graphopt.solve.least_squares import (
    Moments,
    Squares,
    bias_shift,
    damped,
    row_errors,
    rows_improved,
    solve_flops,
    solve_rows,
    variance_gain,
)


def samples(seed: int = 0, rows: int = 5000, columns: int = 8) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    mix = rng.standard_normal((columns, columns))
    x = rng.standard_normal((rows, columns)) @ mix + rng.standard_normal(columns)
    z = x * 0.8 + 0.3 * rng.standard_normal((rows, columns)) + 0.1
    return x.astype(np.float32), z.astype(np.float32)


def moments(x: np.ndarray, z: np.ndarray) -> Moments:
    found = Moments(x.shape[1])
    for start in range(0, len(x), 300):
        found.add(x[start : start + 300], z[start : start + 300])
    assert found.finite()
    return found


def problem(seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    x, z = samples(seed)
    rng = np.random.default_rng(seed + 1)
    weight = rng.standard_normal((4, 8))
    support = rng.random((4, 8)) < 0.6
    support[3] = False
    return x, z, weight, support


def test_solution_is_the_least_squares_fit_on_the_support() -> None:
    x, z, weight, support = problem()
    found = solve_rows(weight, support, moments(x, z).mean(centred=False), damping=1e-9)
    for row in range(4):
        wanted = np.zeros(8)
        kept = support[row]
        wanted[kept] = np.linalg.lstsq(z[:, kept].astype(np.float64), x @ weight[row], rcond=None)[0]
        np.testing.assert_allclose(found[row], wanted, rtol=1e-3, atol=1e-4)


def test_centred_solution_with_shifted_bias_is_the_fit_with_an_intercept() -> None:
    x, z, weight, support = problem(3)
    seen = moments(x, z)
    found = solve_rows(weight, support, seen.mean(centred=True), damping=1e-9)
    shift = bias_shift(weight, found, seen.mean(centred=False))
    for row in range(3):
        kept = support[row]
        table = np.column_stack([z[:, kept], np.ones(len(z))]).astype(np.float64)
        wanted = np.linalg.lstsq(table, x @ weight[row], rcond=None)[0]
        np.testing.assert_allclose(found[row][kept], wanted[:-1], rtol=1e-3, atol=1e-4)
        assert shift[row] == pytest.approx(wanted[-1], rel=1e-2, abs=1e-2)


def test_row_errors_are_the_mean_squares_of_the_difference() -> None:
    x, z, weight, support = problem(5)
    candidate = np.where(support, weight * 1.1, 0)
    errors = row_errors(weight, candidate, moments(x, z).mean(centred=False))
    np.testing.assert_allclose(errors, ((x @ weight.T - z @ candidate.T) ** 2).mean(axis=0), rtol=1e-3)


def test_gain_brings_the_variance_back() -> None:
    x, z, weight, support = problem(7)
    given = moments(x, z).mean(centred=True)
    found = solve_rows(weight, support, given)
    gained = found * variance_gain(weight, found, given)[:, None]
    np.testing.assert_allclose((z @ gained[:3].T).var(axis=0), (x @ weight[:3].T).var(axis=0), rtol=1e-2)
    assert (gained[3] == 0).all()


def test_dead_and_repeated_columns_stay_finite() -> None:
    x, z, weight, _ = problem(9)
    x[:, 2] = z[:, 2] = 0
    z[:, 4] = z[:, 5]
    found = solve_rows(weight, np.ones((4, 8), bool), moments(x, z).mean(centred=False))
    assert np.isfinite(found).all()
    assert np.abs(found).max() < 10 * np.abs(weight).max()


def test_strong_damping_keeps_the_dense_weights() -> None:
    x, z, weight, support = problem(11)
    found = solve_rows(weight, support, moments(x, z).mean(centred=False), damping=1e5)
    np.testing.assert_allclose(found, np.where(support, weight, 0), rtol=1e-3, atol=1e-4)


def test_infinite_samples_are_told() -> None:
    seen = Moments(2)
    seen.add(np.array([[np.inf, 1]]), np.array([[1.0, 1]]))
    assert not seen.finite()
    assert not Moments(2).finite()


def test_cost_counts_each_distinct_support_once() -> None:
    full = np.ones((10, 6), bool)
    assert solve_flops(full) < solve_flops(np.tril(np.ones((10, 6), bool))) + 2 * 10 * 36


def test_rows_improved_are_those_whose_error_falls() -> None:
    x, z, weight, support = problem(13)
    given = moments(x, z).mean(centred=False)
    present = np.where(support, weight, 0)
    candidate = solve_rows(weight, support, given)
    candidate[1] *= 3
    wanted = row_errors(weight, candidate, given) < row_errors(weight, present, given)
    assert wanted.tolist() == [True, False, True, False]
    np.testing.assert_array_equal(rows_improved(weight, candidate, present, given), wanted)


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    columns=st.integers(1, 24),
    share=st.floats(0, 1),
    damping=st.sampled_from([1e-4, 1e-2, 1.0]),
)
def test_rows_are_the_direct_solutions_of_their_systems(seed: int, columns: int, share: float, damping: float) -> None:
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((3 * columns, columns)) @ rng.standard_normal((columns, columns))
    z = x + 0.1 * rng.standard_normal(x.shape)
    given_moments = moments(x.astype(np.float32), z.astype(np.float32)).mean(centred=False)
    weight = rng.standard_normal((7, columns))
    support = rng.random((7, columns)) >= share
    found = solve_rows(weight, support, given_moments, damping=damping)
    strength = damping * np.mean(np.diag(given_moments.inner))
    for row, kept in enumerate(support):
        system = given_moments.inner[np.ix_(kept, kept)] + strength * np.eye(int(kept.sum()))
        wanted = (weight[row] @ given_moments.cross + strength * weight[row])[kept]
        np.testing.assert_allclose(found[row, kept], np.linalg.solve(system, wanted), rtol=1e-6, atol=1e-8)
        assert (found[row, ~kept] == 0).all()


def test_several_threads_solve_like_one(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    x = rng.standard_normal((600, 40)).astype(np.float32)
    seen = moments(x, x).mean(centred=False)
    weight, support = rng.standard_normal((50, 40)), rng.random((50, 40)) < 0.6
    alone = solve_rows(weight, support, seen)
    monkeypatch.setattr(least_squares, "_WORTH_THREADS", 0)
    monkeypatch.setattr(least_squares, "cores", lambda: 3)
    np.testing.assert_array_equal(solve_rows(weight, support, seen), alone)


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10**6), rows=st.integers(2, 40), share=st.floats(0.1, 0.9))
def test_rows_taken_by_held_back_samples_never_raise_their_error(seed: int, rows: int, share: float) -> None:
    rng = np.random.default_rng(seed)
    x = (rng.standard_normal((2 * rows, 6)) @ rng.standard_normal((6, 6))).astype(np.float32)
    z = (x + 0.5 * rng.standard_normal(x.shape)).astype(np.float32)
    fit, judge = moments(x[::2], z[::2]).mean(centred=False), moments(x[1::2], z[1::2]).mean(centred=False)
    weight = rng.standard_normal((5, 6))
    masked = np.where(rng.random((5, 6)) >= share, weight, 0)
    solved = solve_rows(weight, masked != 0, fit)
    chosen = np.where(rows_improved(weight, solved, masked, judge)[:, None], solved, masked)
    before, after = row_errors(weight, masked, judge), row_errors(weight, chosen, judge)
    assert (after <= before + 1e-9 * (1 + np.abs(before))).all()


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10**6), cuts=st.lists(st.integers(0, 60), min_size=1, max_size=4), symmetric=st.booleans())
def test_moments_of_parts_merge_to_the_whole(seed: int, cuts: list[int], symmetric: bool) -> None:
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((60, 3)).astype(np.float32)
    z = x if symmetric else rng.standard_normal((60, 3)).astype(np.float32)

    def summed(start: int, end: int) -> Moments:
        found = Moments(3, symmetric=symmetric)
        found.add(x[start:end], z[start:end])
        return found

    places = [0, *sorted(cuts), 60]
    parts = [summed(start, end) for start, end in itertools.pairwise(places)]
    left, right = parts[0], parts[-1]
    for part in parts[1:]:
        left = left.merge(part)
    for part in parts[-2::-1]:
        right = part.merge(right)
    for merged in (left, right):
        assert merged.count == 60
        for centred in (False, True):
            mine, wanted = merged.mean(centred=centred), summed(0, 60).mean(centred=centred)
            for name in ("inner", "outer", "cross", "dense_mean", "compressed_mean"):
                np.testing.assert_allclose(getattr(mine, name), getattr(wanted, name), rtol=1e-4, atol=1e-5)


def test_squares_are_the_diagonal_of_the_moments() -> None:
    x, z = samples()
    one, other = Squares(8), Squares(8)
    one.add(z[:2000])
    other.add(z[2000:])
    found = one.merge(other)
    assert found.finite()
    assert not Squares(2).finite()
    np.testing.assert_allclose(found.inner / found.count, np.diag(moments(x, z).mean(centred=False).inner), rtol=1e-5)
    np.testing.assert_allclose(found.compressed / found.count, z.mean(axis=0), rtol=1e-5)


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("centred", [False, True])
def test_the_last_mean_takes_the_memory_of_the_sums(*, symmetric: bool, centred: bool) -> None:
    x, z = samples(columns=300, rows=400)
    seen = Moments(300, symmetric=symmetric)
    seen.add(x, z)
    wanted, sums = seen.mean(centred=centred), seen.inner
    found = seen.mean(centred=centred, last=True)
    assert found.inner is sums
    assert wanted.inner is not sums
    for name in ("inner", "outer", "cross", "dense_mean", "compressed_mean"):
        np.testing.assert_array_equal(getattr(found, name), getattr(wanted, name))
    x = z if symmetric else x
    mean = np.outer(x.mean(axis=0, dtype=float), z.mean(axis=0, dtype=float)) if centred else 0
    np.testing.assert_allclose(found.cross, x.T.astype(float) @ z / 400 - mean, rtol=1e-3, atol=1e-3)


def test_means_that_outweigh_what_varies_do_not_drown_it() -> None:
    draw = np.random.default_rng(3)
    varies = draw.standard_normal((4000, 6)) @ draw.standard_normal((6, 6))
    x = (varies + 20000).astype(np.float32)
    exact = np.cov(x.astype(np.float64), rowvar=False, bias=True)
    np.testing.assert_allclose(moments(x, x).mean(centred=True).inner, exact, rtol=1e-3, atol=1e-4)


def test_inputs_that_never_change_have_no_moments_at_all() -> None:
    draw = np.random.default_rng(4)
    x = draw.standard_normal((500, 4)).astype(np.float32)
    x[:, 1] = 300.3
    found = moments(x, x).mean(centred=True)
    assert not found.inner[1].any()
    assert not found.cross[:, 1].any()
    assert (np.diag(found.inner)[[0, 2, 3]] > 0.5).all()


@pytest.mark.parametrize("damping", [1e-15, 1e-9, 0.01])
@pytest.mark.parametrize("kind", ["zero", "low rank", "indefinite"])
def test_damped_moments_are_positive_definite(kind: str, damping: float) -> None:
    draw = np.random.default_rng(5)
    low = draw.standard_normal((3, 8))
    inner = {"zero": np.zeros((8, 8)), "low rank": low.T @ low, "indefinite": low.T @ low - 1e-9 * np.eye(8)}[kind]
    system, strength = damped(inner, damping)
    assert strength > 0
    np.testing.assert_array_equal(system, inner + strength * np.eye(8))
    inverse = np.linalg.inv(system)
    np.linalg.cholesky((inverse + inverse.T) / 2)
