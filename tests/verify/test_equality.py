"""Equality under each contract, on the values that are easy to get wrong."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest

from graphopt.verify.contract import Contract, weakest
from graphopt.verify.equality import CEILING_DB, Tolerance, compare, worst

EXACT, ROUNDING, LOSSY = Contract.EXACT, Contract.ROUNDING, Contract.LOSSY


def holds(a: Any, b: Any, contract: Contract, tolerance: Tolerance | None = None) -> bool:
    tolerances = {} if tolerance is None else {"y": tolerance}
    return compare({"y": a}, {"y": b}, contract, tolerances).equal


def f32(*values: float) -> np.ndarray:
    return np.array(values, np.float32)


@pytest.mark.parametrize(
    ("a", "b", "equal"),
    [
        (f32(1, 2), f32(1, 2), True),
        (f32(np.nan), f32(-np.nan), True),
        (f32(0.0), f32(-0.0), False),
        (f32(np.inf), f32(np.inf), True),
        (f32(np.inf), f32(-np.inf), False),
        (f32(1), np.nextafter(f32(1), f32(2)), False),
        (np.array([0, -0.0], np.float16), np.array([0, -0.0], np.float16), True),
        (np.array([1], ml_dtypes.bfloat16), np.array([1.0078125], ml_dtypes.bfloat16), False),
        (np.array([np.nan], ml_dtypes.bfloat16), np.array([np.nan], ml_dtypes.bfloat16), True),
        (np.array([1], ml_dtypes.float8_e4m3fn), np.array([1], ml_dtypes.float8_e4m3fn), True),
        (np.array([3], ml_dtypes.int4), np.array([-3], ml_dtypes.int4), False),
        (np.array([1 + 2j]), np.array([1 + 2j]), True),
        (np.array([1 + 2j]), np.array([1 - 2j]), False),
        (np.array(["a", "b"], object), np.array(["a", "b"], object), True),
        (np.array(["a"], object), np.array(["b"], object), False),
        (np.float32(1.5), np.float32(1.5), True),
        (np.zeros((0, 3)), np.zeros((0, 3)), True),
        (f32(1), np.array([1.0]), False),
        (f32(1), f32(1, 1), False),
        ([f32(1), f32(2)], [f32(1), f32(2)], True),
        ([f32(1)], [f32(1), f32(2)], False),
        ([{1: np.float32(0.5)}], [{1: np.float32(0.5)}], True),
        ([{1: np.float32(0.5)}], [{2: np.float32(0.5)}], False),
        (None, None, True),
        (None, f32(1), False),
    ],
)
def test_exact_is_bitwise(a: Any, b: Any, equal: bool) -> None:
    assert holds(a, b, EXACT) is equal
    assert holds(b, a, EXACT) is equal


def test_transposed_and_scalar_arrays_compare_by_element() -> None:
    matrix = np.arange(6, dtype=np.float32).reshape(2, 3)
    assert holds(matrix.T, np.ascontiguousarray(matrix.T), EXACT)


def test_rounding_allows_the_tolerance_and_no_more() -> None:
    reference = f32(1, 100)
    assert holds(reference, f32(1.5, 100), ROUNDING, Tolerance(0.5))
    assert not holds(reference, f32(1.51, 100), ROUNDING, Tolerance(0.5))
    assert not holds(reference, f32(1.5, 100), ROUNDING)
    assert holds(f32(0.0), f32(-0.0), ROUNDING)


def test_rounding_does_not_turn_numbers_into_nan() -> None:
    for other in (np.nan, np.inf):
        assert not holds(f32(1, 2), f32(1, other), ROUNDING, Tolerance(1e9))
        assert not holds(f32(1, other), f32(1, 2), ROUNDING, Tolerance(1e9))
        assert holds(f32(1, other), f32(1, other), ROUNDING)
    assert not holds(f32(np.inf), f32(-np.inf), ROUNDING, Tolerance(1e9))


def test_rounding_of_integers_allows_flips_only() -> None:
    a, b = np.array([1, 2, 3]), np.array([1, 2, 4])
    assert not holds(a, b, ROUNDING)
    assert holds(a, b, ROUNDING, Tolerance(flips=1))


def test_lossy_demands_types_shapes_and_finite_numbers() -> None:
    assert holds(f32(1, 2), f32(5, -7), LOSSY)
    assert holds(np.array([1]), np.array([9]), LOSSY)
    assert not holds(f32(1, 2), f32(1, np.nan), LOSSY)
    assert holds(f32(1, np.nan), f32(1, 2), LOSSY)
    assert not holds(f32(1), np.array([1.0]), LOSSY)


def test_missing_and_extra_outputs_are_named() -> None:
    missing = compare({"a": f32(1), "b": f32(1)}, {"a": f32(1)}, LOSSY)
    assert missing.reason == "output 'b': it is missing"
    extra = compare({"a": f32(1)}, {"a": f32(1), "z": f32(1)}, LOSSY)
    assert "'z': the reference has no such output" in extra.reason


def test_figures_are_those_of_the_definition() -> None:
    reference = np.array([[3.0, 4.0], [0.0, 5.0]])
    candidate = np.array([[3.0, 4.5], [6.0, 5.0]])
    (figures,) = compare({"y": reference}, {"y": candidate}, LOSSY).outputs
    assert figures.max_abs == 6.0
    assert figures.max_rel == 6.0 / 5.0
    assert figures.sqnr_db == pytest.approx(10 * np.log10(50 / 36.25))
    assert figures.agreement == 0.5
    assert figures.differing == 2
    (same,) = compare({"y": reference}, {"y": reference}, LOSSY).outputs
    assert (same.sqnr_db, same.max_abs, same.agreement) == (CEILING_DB, 0.0, 1.0)


def test_reason_names_place_and_values() -> None:
    reason = compare({"y": f32(1, 2, 3)}, {"y": f32(1, 2.5, 3)}, EXACT).reason
    assert reason == "output 'y': 1 of 3 elements differ, by at most 0.5; first at [1]: 2.5 instead of 2.0"


def test_worst_over_feeds_keeps_the_worst_of_each_figure() -> None:
    good = compare({"y": f32(1, 2)}, {"y": f32(1, 2)}, EXACT)
    bad = compare({"y": f32(1, 2)}, {"y": f32(1, 3)}, EXACT)
    merged = worst([good, bad, good])
    assert not merged.equal
    assert merged.outputs[0].max_abs == 1.0
    assert merged.sqnr_db == bad.sqnr_db < CEILING_DB


def test_weakest_contract_is_that_of_a_pipeline() -> None:
    assert weakest([]) is EXACT
    assert weakest([EXACT, ROUNDING, EXACT]) is ROUNDING
    assert weakest([LOSSY, ROUNDING]) is LOSSY
