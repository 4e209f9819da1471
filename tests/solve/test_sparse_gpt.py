"""SparseGPT against the same elimination with an inverse of its own at every column."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from graphopt.solve.least_squares import Statistics, solve_rows
from graphopt.solve.obs import damped
from graphopt.solve.patterns import Pattern
from graphopt.solve.sparse_gpt import sparse_gpt

Matrix = NDArray[np.float64]


def problem(rows: int, columns: int, seed: int) -> tuple[Matrix, Matrix]:
    draw = np.random.default_rng(seed)
    inputs = draw.standard_normal((3 * columns, columns)) @ draw.standard_normal((columns, columns))
    return draw.standard_normal((rows, columns)), damped(inputs.T @ inputs / len(inputs), 0.01)


def eliminated(weight: Matrix, inner: Matrix, kept: NDArray[np.bool_]) -> Matrix:
    """Take the columns from left to right; those to the right of one that goes move to where they are best."""
    found = weight.copy()
    for column in range(weight.shape[1]):
        inverse = np.linalg.inv(inner[column:, column:])
        for row in np.flatnonzero(~kept[:, column]):
            found[row, column:] -= found[row, column] / inverse[0, 0] * inverse[0]
            found[row, column] = 0
    return found


def error(weight: Matrix, found: Matrix, inner: Matrix) -> float:
    return float(np.sum(((found - weight) @ inner) * (found - weight)))


@pytest.mark.parametrize("name", ["unstructured", "2:4", "4x1", "1x4", "4x4"])
@pytest.mark.parametrize("block", [4, 8, 128])
@pytest.mark.parametrize("columns", [16, 21])
def test_weights_are_those_of_eliminating_column_by_column(name: str, block: int, columns: int) -> None:
    weight, inner = problem(6, columns, seed=columns)
    found, kept = sparse_gpt(weight, inner, Pattern.parse(name), 0.5, block=block)
    np.testing.assert_allclose(found, eliminated(weight, inner, kept), rtol=1e-7, atol=1e-9)
    assert Pattern.parse(name).holds(kept)
    assert (found[~kept] == 0).all()


def test_the_first_mask_is_by_weight_over_pivot() -> None:
    weight, inner = problem(5, 12, seed=1)
    _, kept = sparse_gpt(weight, inner, Pattern.parse("unstructured"), 0.4, block=12)
    pivots = [np.linalg.inv(inner[column:, column:])[0, 0] for column in range(12)]
    scores = weight**2 / pivots
    assert scores[kept].min() > scores[~kept].max()
    assert (~kept).sum() == 24


@settings(max_examples=30, deadline=None)
@given(
    seed=st.integers(0, 999),
    share=st.floats(0, 1),
    columns=st.integers(1, 30),
    block=st.integers(1, 16),
    name=st.sampled_from(["unstructured", "4x1", "1x4"]),
)
def test_the_share_is_exact_over_the_matrix(seed: int, share: float, columns: int, block: int, name: str) -> None:
    weight, inner = problem(7, columns, seed)
    pattern = Pattern.parse(name)
    _, kept = sparse_gpt(weight, inner, pattern, share, block=block)
    assert abs(int((~kept).sum()) - share * kept.size) <= pattern.rows * pattern.columns / 2 + 1e-6


@pytest.mark.parametrize("seed", range(5))
def test_error_lies_between_the_mask_alone_and_least_squares(seed: int) -> None:
    weight, inner = problem(40, 24, seed)
    found, kept = sparse_gpt(weight, inner, Pattern.parse("unstructured"), 0.5, block=8)
    given = Statistics(inner, inner, inner, np.zeros(24), np.zeros(24))
    best = solve_rows(weight, kept, given, damping=1e-12)
    alone = np.where(kept, weight, 0.0)
    assert error(weight, best, inner) <= error(weight, found, inner) * (1 + 1e-9)
    assert error(weight, found, inner) < error(weight, alone, inner)


@pytest.mark.parametrize("name", ["unstructured", "2:4"])
def test_zeros_stay_zeros_and_count(name: str) -> None:
    weight, inner = problem(6, 16, seed=4)
    first, kept = sparse_gpt(weight, inner, Pattern.parse(name), 0.5, block=8)
    found, again = sparse_gpt(first, inner, Pattern.parse(name), 0.5, block=8)
    np.testing.assert_array_equal(again, kept)
    np.testing.assert_allclose(found, first, rtol=1e-9, atol=1e-9)


def test_nothing_goes_at_share_zero_and_the_input_is_left_alone() -> None:
    weight, inner = problem(3, 10, seed=2)
    before = weight.copy()
    found, kept = sparse_gpt(weight, inner, Pattern.parse("unstructured"), 0.0)
    assert kept.all()
    np.testing.assert_array_equal(found, weight)
    sparse_gpt(weight, inner, Pattern.parse("2:4"), 0.5)
    np.testing.assert_array_equal(weight, before)
