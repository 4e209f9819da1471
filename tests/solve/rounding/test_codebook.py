"""Code books: weighted k-means against plain means, and descent on their values."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from graphopt.solve.rounding import Codebook, Problem, alternate_codebook, layer_error, lloyd


def problem(seed: int = 0, rows: int = 6, columns: int = 12, *, masked: bool = False) -> Problem:
    rng = np.random.default_rng(seed)
    inputs = rng.standard_normal((200, columns)) @ (np.eye(columns) + 0.5 * rng.standard_normal((columns, columns)))
    target = rng.standard_normal((1, rows, columns))
    moment = (inputs.T @ inputs / len(inputs) + 1e-2 * np.eye(columns))[None]
    return Problem(target, moment, rng.random(target.shape) < 0.4 if masked else None)


def test_as_many_values_as_weights_leave_no_error() -> None:
    weights = np.array([[[-1.0, -1.0, 0.5, 2.0, 0.5, 2.0]]])
    book = lloyd(Problem(weights, np.eye(6)[None]), 3)
    np.testing.assert_allclose(book.values, [-1.0, 0.5, 2.0])
    np.testing.assert_array_equal(book.codes(weights), [[[0, 0, 1, 2, 1, 2]]])


def test_values_are_means_weighted_by_the_inputs() -> None:
    task = problem(1)
    book = lloyd(task, 4, iterations=200)
    codes = book.codes(task.target)
    importance = np.broadcast_to(np.einsum("gcc->gc", task.moment)[:, None], task.target.shape)
    for place, value in enumerate(book.values):
        inside = codes == place
        assert inside.any()
        wanted = float((task.target * importance)[inside].sum() / importance[inside].sum())
        assert value == pytest.approx(wanted, rel=1e-5)


@given(seed=st.integers(0, 10_000), count=st.sampled_from([2, 3, 4, 8]), masked=st.booleans())
@settings(max_examples=30, deadline=None)
def test_descent_on_a_code_book_lowers_the_error_and_uses_its_values_only(seed: int, count: int, masked: bool) -> None:
    task = problem(seed, masked=masked)
    book = lloyd(task, count)
    start = book.nearest(task.target, task.mask)
    fitted, values = alternate_codebook(task, book)
    assert np.isin(values, fitted.values).all() or masked
    if task.mask is not None:
        assert not values[~task.mask].any()
        assert np.isin(values[task.mask], fitted.values).all()
        assert 0.0 in fitted.values
    assert len(fitted.values) == count
    assert (np.diff(fitted.values) >= 0).all()
    assert layer_error(task, values) <= layer_error(task, start) * (1 + 1e-6)


def test_codes_name_the_nearest_value() -> None:
    book = Codebook(np.array([-1.0, 0.0, 4.0]))
    np.testing.assert_array_equal(book.codes(np.array([-9.0, -0.6, -0.4, 1.9, 2.1])), [0, 0, 1, 1, 2])


def test_a_book_has_two_values_or_more() -> None:
    with pytest.raises(ValueError, match="2 or more"):
        lloyd(problem(), 1)
