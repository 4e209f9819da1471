"""Equalization and smoothing: what they promise about ranges, bounds and errors, on random layers."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from graphopt.solve import rounding
from graphopt.solve.equalization import MOST, absorbed, equalize, lower_bounds, unevenness
from graphopt.solve.smoothing import protect, smooth

SEEDS = st.integers(0, 10**6)


@given(SEEDS)
def test_one_link_makes_what_writes_and_what_reads_equal(seed: int) -> None:
    rng = np.random.default_rng(seed)
    first, second = rng.uniform(0.1, 3, (5, 4)), rng.uniform(0.1, 3, (6, 5))
    (scale,) = equalize([first, second], [(0, (1,))])
    np.testing.assert_allclose((first / scale[:, None]).max(axis=1), (second * scale).max(axis=0), rtol=1e-9)


@given(SEEDS)
def test_chains_settle_where_every_link_is_equal(seed: int) -> None:
    rng = np.random.default_rng(seed)
    layers = [rng.uniform(0.1, 3, shape) for shape in ((5, 4), (6, 5), (3, 6))]
    one, two = equalize(layers, [(0, (1,)), (1, (2,))], iterations=200)
    middle = layers[1] * one / two[:, None]
    np.testing.assert_allclose((layers[0] / one[:, None]).max(axis=1), middle.max(axis=0), rtol=5e-3)
    np.testing.assert_allclose(middle.max(axis=1), (layers[2] * two).max(axis=0), rtol=5e-3)


@given(SEEDS)
def test_several_readers_count_by_the_largest(seed: int) -> None:
    rng = np.random.default_rng(seed)
    first, *readers = (rng.uniform(0.1, 3, (5, 5)) for _ in range(3))
    (scale,) = equalize([first, *readers], [(0, (1, 2))])
    read = np.maximum(*[(each * scale).max(axis=0) for each in readers])
    np.testing.assert_allclose((first / scale[:, None]).max(axis=1), read, rtol=1e-9)


def test_a_second_round_finds_nothing_and_layers_are_left_alone() -> None:
    rng = np.random.default_rng(1)
    layers = [rng.uniform(0.1, 3, (5, 4)), rng.uniform(0.1, 3, (6, 5))]
    copies = [each.copy() for each in layers]
    (scale,) = equalize(layers, [(0, (1,))])
    for layer, copy in zip(layers, copies, strict=True):
        np.testing.assert_array_equal(layer, copy)
    (again,) = equalize([layers[0] / scale[:, None], layers[1] * scale], [(0, (1,))])
    np.testing.assert_allclose(again, 1.0, rtol=1e-3)


def test_dead_channels_keep_their_scale_and_extreme_ones_are_bounded() -> None:
    first = np.array([[0.0], [1e-9], [1e9], [1.0]])
    second = np.array([[1.0, 1.0, 1.0, 0.0]])
    (scale,) = equalize([first, second], [(0, (1,))])
    np.testing.assert_allclose(scale, [1.0, 1 / MOST, MOST, 1.0])


def test_unevenness_is_none_for_equal_channels() -> None:
    assert unevenness(np.array([2.0, 2.0, 2.0])) == 0.0
    assert unevenness(np.array([4.0, 1.0])) == pytest.approx(0.375)
    assert unevenness(np.zeros(3)) == 0.0


@given(SEEDS, st.booleans(), st.booleans())
def test_no_output_falls_below_its_bound(seed: int, below: bool, above: bool) -> None:
    rng = np.random.default_rng(seed)
    weight, bias = rng.standard_normal((4, 6)), rng.standard_normal(4)
    weight[0] = np.abs(weight[0])
    low, high = (-np.inf if below else -0.5), (np.inf if above else 2.0)
    inputs = rng.uniform(max(low, -9), min(high, 9), (200, 6))
    bounds = lower_bounds(weight, bias, low, high)
    assert (inputs @ weight.T + bias >= bounds - 1e-9).all()
    assert np.isfinite(bounds[0]) == (not below)
    if not below and not above:
        worst = np.where(weight > 0, low, high)
        np.testing.assert_allclose((weight * worst).sum(axis=1) + bias, bounds)


@given(SEEDS)
def test_what_is_absorbed_passes_relu_unchanged(seed: int) -> None:
    rng = np.random.default_rng(seed)
    weight, bias = rng.standard_normal((4, 6)), 4 * rng.standard_normal(4)
    bounds = lower_bounds(weight, bias, 0.0, 0.5)
    part = absorbed(bias, bounds)
    outputs = rng.uniform(0, 0.5, (100, 6)) @ weight.T + bias
    np.testing.assert_allclose(np.maximum(outputs - part, 0), np.maximum(outputs, 0) - part, atol=1e-9)
    assert (np.abs(bias - part) <= np.abs(bias) + 1e-12).all()
    np.testing.assert_array_equal(absorbed(bias, None), bias)
    np.testing.assert_array_equal(absorbed(bias, np.full(4, -np.inf)), 0.0)


@given(SEEDS, st.floats(0, 1))
def test_smoothing_twice_is_smoothing_once(seed: int, alpha: float) -> None:
    rng = np.random.default_rng(seed)
    inputs, weights = rng.uniform(0.1, 30, 8), rng.uniform(0.1, 3, 8)
    inputs[0] = weights[1] = 0.0
    scale = smooth(inputs, weights, alpha)
    np.testing.assert_array_equal(scale[:2], 1.0)
    np.testing.assert_allclose(smooth(inputs / scale, weights * scale, alpha), 1.0, rtol=1e-9)


def test_half_makes_inputs_and_weights_equally_wide() -> None:
    scale = smooth(np.array([16.0, 1.0]), np.array([1.0, 4.0]), 0.5)
    np.testing.assert_allclose(scale, [4.0, 0.5])


def nearest(bits: int) -> object:
    levels = rounding.integer_levels(bits)

    def rounded(weight: np.ndarray) -> np.ndarray:
        return np.asarray(rounding.min_max(weight[None], levels, "row").nearest(weight[None])[0])

    return rounded


@settings(deadline=None, max_examples=15)
@given(SEEDS)
def test_protection_is_the_best_of_its_exponents_and_never_worse_than_none(seed: int) -> None:
    rng = np.random.default_rng(seed)
    sizes = np.exp(rng.normal(0, 1.5, 16))
    inputs = rng.standard_normal((300, 16)) * sizes
    moment = inputs.T @ inputs / 300
    weights = [rng.standard_normal((6, 16)) for _ in range(2)]
    rounded = nearest(3)
    assert callable(rounded)
    found = protect(weights, moment, np.abs(inputs).mean(axis=0), rounded)
    assert found.after <= found.before

    def error(scales: np.ndarray) -> float:
        changes = [rounded(w * scales) / scales - w for w in weights]
        return float(sum(np.square(inputs @ change.T).sum() / 300 for change in changes))

    assert bool(found.exponents) == (found.after < found.before)
    assert found.before == pytest.approx(error(np.ones(16)))
    assert found.after == pytest.approx(error(found.scales))


def test_protection_helps_where_few_inputs_are_large() -> None:
    rng = np.random.default_rng(0)
    sizes = np.ones(32)
    sizes[:2] = 50.0
    inputs = rng.standard_normal((500, 32)) * sizes
    rounded = nearest(3)
    assert callable(rounded)
    found = protect([rng.standard_normal((16, 32))], inputs.T @ inputs / 500, np.abs(inputs).mean(axis=0), rounded)
    assert found.exponents[0] > 0
    assert found.after < 0.5 * found.before
    dead = protect([np.ones((2, 3))], np.zeros((3, 3)), np.zeros(3), rounded)
    np.testing.assert_array_equal(dead.scales, 1.0)
    again = protect([np.ones((2, 3))], np.eye(3), np.ones(3), rounded)
    assert again.exponents == ()


def test_protection_ends_where_nothing_is_lost_any_more() -> None:
    weights = [np.eye(4)]
    found = protect(weights, np.zeros((4, 4)), np.array([1.0, 9.0, 0.1, 3.0]), nearest(4))  # type: ignore[arg-type]
    assert not found.exponents
    assert found.before == found.after == 0.0
    np.testing.assert_array_equal(found.scales, 1.0)


def test_scales_beyond_the_bounds_even_out_as_much_as_those_inside() -> None:
    inputs = np.array([3174.0, 2828.0, 6080.0, 941.0, 0.0])
    scale = smooth(inputs, np.ones(5), 1.0)
    even = (inputs / scale)[:4]
    np.testing.assert_allclose(even, even[0], rtol=1e-12)
    assert scale[4] == 1.0
