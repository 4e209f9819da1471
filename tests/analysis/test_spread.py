"""Histograms and ranges merge to what one run over all the data gives."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from graphopt.analysis.layer_statistics import Histogram, Spread
from graphopt.analysis.layer_statistics.spread import BINS

NUMBERS = st.floats(width=32, allow_nan=True, allow_infinity=True)
TABLES = npst.arrays(np.float32, st.tuples(st.integers(0, 20), st.just(3)), elements=NUMBERS)


def histogram(values: np.ndarray) -> Histogram:
    found = Histogram()
    found.add(values)
    return found


def equal(a: Histogram, b: Histogram) -> bool:
    return a.exponent == b.exponent and a.left_out == b.left_out and bool(np.array_equal(a.counts, b.counts))


@given(a=TABLES, b=TABLES, c=TABLES)
def test_histograms_merge_exactly_in_any_order(a: np.ndarray, b: np.ndarray, c: np.ndarray) -> None:
    whole = histogram(np.concatenate([a, b, c]))
    x, y, z = map(histogram, (a, b, c))
    assert equal(x.merge(y).merge(z), whole)
    assert equal(z.merge(y.merge(x)), whole)
    assert whole.counts.sum() + whole.left_out == 3 * (len(a) + len(b) + len(c))


@given(values=npst.arrays(np.float32, st.integers(1, 40), elements=st.floats(-1e6, 1e6, width=32)))
def test_every_value_lies_in_its_bin(values: np.ndarray) -> None:
    found = histogram(values)
    wanted, _ = np.histogram(values.astype(np.float64), found.edges())
    np.testing.assert_array_equal(found.counts, wanted)
    assert len(found.edges()) == BINS + 1


def test_the_range_doubles_as_far_as_the_data_reach() -> None:
    found = histogram(np.array([0.3, -0.2], np.float32))
    assert found.edges()[[0, -1]].tolist() == [-0.5, 0.5]
    found.add(np.array([5.0], np.float32))
    assert found.edges()[[0, -1]].tolist() == [-8.0, 8.0]
    assert found.counts.sum() == 3


def test_a_power_of_two_lies_inside() -> None:
    found = histogram(np.array([4.0, -4.0], np.float32))
    assert found.edges()[-1] == 8.0
    assert found.counts.sum() == 2


@pytest.mark.parametrize("dtype", [np.float16, np.float64, np.int8])
def test_other_types_are_counted(dtype: type) -> None:
    assert histogram(np.array([1, 2, 3]).astype(dtype)).counts.sum() == 3


@given(a=TABLES, b=TABLES)
def test_spreads_merge_to_the_whole(a: np.ndarray, b: np.ndarray) -> None:
    def spread(*tables: np.ndarray) -> Spread:
        found = Spread(3)
        for table in tables:
            found.add(table)
        return found

    whole, merged = spread(a, b), spread(a).merge(spread(b))
    np.testing.assert_array_equal(merged.minimum, whole.minimum)
    np.testing.assert_array_equal(merged.maximum, whole.maximum)
    np.testing.assert_allclose(merged.magnitude, whole.magnitude, rtol=1e-6)
    assert merged.count == whole.count
    assert equal(merged.histogram, whole.histogram)


def test_rows_that_are_not_finite_stay_out_of_the_range() -> None:
    found = Spread(2)
    found.add(np.array([[1, np.nan], [2, 3], [np.inf, 0]], np.float32))
    assert found.minimum.tolist() == [2, 3]
    assert found.maximum.tolist() == [2, 3]
    assert found.count == 1
    assert found.histogram.left_out == 2
