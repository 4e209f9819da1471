"""Grids: zero is exact, rounding errs by half a step, biases fit int32."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from graphopt.errors import DataError
from graphopt.target.grid import (
    BIAS_LIMIT,
    GridKind,
    activation_grid,
    fit_bias,
    quantize_bias,
    quantize_weight,
    weight_scales,
)
from graphopt.target.numbers import FP8, INT8, INT16, NUMBERS, UINT8, UINT16, Number

FINITE = st.floats(-1e5, 1e5, width=32, allow_nan=False)


@given(FINITE, FINITE)
def test_zero_is_exact_and_the_range_is_covered(one: float, other: float) -> None:
    low, high = min(one, other), max(one, other)
    grid = activation_grid(low, high)
    assert 0 <= grid.zero_point <= 255
    assert grid.scale > 0
    assert grid.low <= 0.0 <= grid.high
    # both ends to within one step: the zero point is rounded to an integer
    assert grid.low <= min(low, 0.0) + float(grid.scale)
    assert grid.high >= max(high, 0.0) - float(grid.scale)


@given(hnp.arrays(np.float32, st.integers(1, 50), elements=FINITE))
def test_rounding_errs_by_half_a_step_inside_the_range(values: np.ndarray) -> None:
    grid = activation_grid(float(values.min()), float(values.max()))
    restored = (grid.quantize(values).astype(np.float32) - grid.zero_point) * grid.scale
    assert np.abs(restored - values).max() <= float(grid.scale) * 1.001


def test_values_after_an_activation_have_zero_point_zero() -> None:
    assert activation_grid(0.0, 6.0).zero_point == 0
    assert activation_grid(0.0, 6.0).makes_clip_redundant(0.0, 6.0)
    assert activation_grid(0.0, 5.5).makes_clip_redundant(0.0, 6.0)
    assert activation_grid(0.0, 5.5).makes_clip_redundant(0.0, np.inf)
    assert not activation_grid(0.0, 7.0).makes_clip_redundant(0.0, 6.0)
    assert not activation_grid(-1.0, 6.0).makes_clip_redundant(0.0, np.inf)
    assert activation_grid(-1.0, 6.0).makes_clip_redundant(-np.inf, np.inf)


@pytest.mark.parametrize(("low", "high"), [(np.nan, 1.0), (-np.inf, 1.0), (0.0, np.inf)])
def test_range_that_is_not_finite_is_an_error(low: float, high: float) -> None:
    with pytest.raises(DataError, match="finite"):
        activation_grid(low, high)


def test_tensor_of_zeros_has_a_grid() -> None:
    grid = activation_grid(0.0, 0.0)
    assert grid.quantize(np.zeros(3, np.float32)).tolist() == [0, 0, 0]


WEIGHTS = hnp.arrays(np.float32, hnp.array_shapes(min_dims=2, max_dims=4, max_side=6), elements=FINITE)


@given(WEIGHTS, st.booleans())
def test_weights_are_symmetric_and_err_by_half_a_step(weight: np.ndarray, per_channel: bool) -> None:
    axis = 0 if per_channel else None
    scales = weight_scales(weight, axis)
    assert scales.shape == ((weight.shape[0],) if per_channel else (1,))
    rounded = quantize_weight(weight, axis, scales)
    assert np.abs(rounded.values.astype(int)).max(initial=0) <= 127
    step = scales.reshape(-1, *[1] * (weight.ndim - 1)) if per_channel else scales
    assert (np.abs(rounded.restore() - weight) <= step * 0.5001 + 1e-30).all()


@given(
    hnp.arrays(np.float32, 5, elements=st.floats(-128, 128, width=32)),
    hnp.arrays(np.float32, 5, elements=st.floats(2.0**-64, 1, width=32)),
    st.floats(2.0**-20, 8, width=32),
)
def test_bias_fits_int32_whatever_the_scales(bias: np.ndarray, scales: np.ndarray, step: float) -> None:
    fitted = fit_bias(bias, np.float32(step), scales)
    assert (fitted >= scales).all()
    rounded, steps = quantize_bias(bias, np.float32(step), fitted)
    assert np.abs(rounded.astype(np.int64)).max() <= BIAS_LIMIT // 2 + 256
    restored = rounded.astype(np.float64) * steps
    np.testing.assert_allclose(restored, bias, rtol=1e-4, atol=float(steps.max()))


@given(FINITE, FINITE, st.sampled_from([UINT8, INT8, UINT16, INT16]), st.booleans())
def test_grids_of_every_type_hold_zero_and_the_range(one: float, other: float, number: Number, symmetric: bool) -> None:
    low, high = min(one, other), max(one, other)
    grid = activation_grid(low, high, kind=GridKind(number, symmetric))
    assert number.bottom <= grid.bottom <= grid.zero_point <= grid.top <= number.top
    step = float(grid.scale) * (1 + 1e-6)
    assert grid.low <= min(low, 0.0) + step
    assert grid.high >= max(high, 0.0) - step
    zero = np.zeros(1, np.float32)
    assert int(grid.quantize(zero)[0]) == grid.zero_point
    if symmetric and (number.signed or low < 0):
        assert grid.zero_point == (0 if number.signed else (number.top + 1) // 2)
        np.testing.assert_allclose(grid.low, -grid.high, rtol=1e-6)


@given(hnp.arrays(np.float32, st.integers(1, 50), elements=FINITE), st.sampled_from([INT8, UINT16, INT16]))
def test_rounding_to_every_type_errs_by_half_a_step(values: np.ndarray, number: Number) -> None:
    grid = activation_grid(float(values.min()), float(values.max()), kind=GridKind(number))
    codes = grid.quantize(values)
    assert codes.dtype == number.dtype
    restored = (codes.astype(np.float64) - grid.zero_point) * float(grid.scale)
    # both ends to within one step: the zero point is rounded to an integer
    assert np.abs(restored - values).max() <= float(grid.scale) * 1.01 + np.abs(values).max() * 1e-6


@given(hnp.arrays(np.float32, st.integers(1, 50), elements=FINITE))
def test_rounding_to_eight_bit_floats_errs_in_proportion(values: np.ndarray) -> None:
    grid = activation_grid(float(values.min()), float(values.max()), kind=GridKind(FP8))
    restored = grid.quantize(values).astype(np.float64) * float(grid.scale)
    smallest = float(grid.scale) * 2.0**-9  # the distance of the smallest numbers
    assert (np.abs(restored - values) <= np.abs(values) / 15 + smallest).all()


def test_signed_grid_behind_relu_ends_with_it() -> None:
    grid = activation_grid(0.0, 6.0, kind=GridKind(INT8))
    assert grid.zero_point == -128
    assert grid.makes_clip_redundant(0.0, np.inf)
    assert not activation_grid(0.0, 6.0, kind=GridKind(INT8, symmetric=True)).makes_clip_redundant(0.0, np.inf)


def test_least_range_widens_and_masks_are_replaced() -> None:
    grid = activation_grid(0.0, 1e-6, kind=GridKind(UINT8, least_range=1e-4))
    np.testing.assert_allclose(grid.high, 1e-4, rtol=1e-6)
    masked = activation_grid(-3.4e38, 8.0, kind=GridKind(UINT16, mask=-64.0))
    np.testing.assert_allclose((masked.low, masked.high), (-1024.0, 8.0), atol=0.02)
    assert activation_grid(-3.4e38, 8.0, kind=GridKind(UINT16)).low < -3e38


@given(WEIGHTS, st.sampled_from([64, 127]))
def test_weights_do_not_go_beyond_their_limit(weight: np.ndarray, limit: int) -> None:
    rounded = quantize_weight(weight, 0, weight_scales(weight, 0, limit), limit)
    assert np.abs(rounded.values.astype(int)).max(initial=0) <= limit


def test_types_have_the_names_that_options_take() -> None:
    assert set(NUMBERS) == {"uint8", "int8", "uint16", "int16", "fp8"}
    assert {number.name: number.levels for number in NUMBERS.values()} == {
        "uint8": 256,
        "int8": 256,
        "uint16": 65536,
        "int16": 65536,
        "fp8": 256,
    }
