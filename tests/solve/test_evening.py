"""even_channels: its estimate is what rounding really costs, and its factors lower that."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from graphopt.solve.calibrators.evening import even_channels


def rounded_inputs(x: np.ndarray) -> np.ndarray:
    low, high = min(x.min(), 0.0), max(x.max(), 0.0)
    step = (high - low) / 255 or 1.0
    zero = np.rint(-low / step)
    return np.asarray((np.clip(np.rint(x / step) + zero, 0, 255) - zero) * step)


def rounded_weight(weight: np.ndarray) -> np.ndarray:
    steps = np.abs(weight).max(axis=0) / 127
    steps = np.where(steps > 0, steps, 1.0)
    return np.asarray(np.rint(weight / steps) * steps)


def error(x: np.ndarray, weight: np.ndarray, scales: np.ndarray) -> float:
    """Return the mean squared error of the outputs, rounded on the divided inputs."""
    found = rounded_inputs(x / scales) @ rounded_weight(weight * scales[:, None])
    return float(np.square(found - x @ weight).mean())


def evened(x: np.ndarray, weight: np.ndarray) -> tuple[np.ndarray, float]:
    found = even_channels(x.min(axis=0), x.max(axis=0), np.square(x).mean(axis=0), weight)
    return found.scales, found.gain_db


@pytest.mark.parametrize("factor", [1, 10, 60])
@pytest.mark.parametrize("positive", [False, True])
def test_the_gain_that_is_expected_is_there(factor: float, *, positive: bool) -> None:
    random = np.random.default_rng(0)
    x, weight = random.standard_normal((500, 64)), random.standard_normal((64, 48))
    x[:, :3] *= factor
    x = np.abs(x) if positive else x
    scales, gain = evened(x, weight)
    real = 10 * np.log10(error(x, weight, np.ones(64)) / error(x, weight, scales))
    assert real == pytest.approx(gain, abs=1.0)
    assert gain > (10 if factor == 60 else 3 if factor == 10 else -1e-9)


def test_even_channels_are_left_alone() -> None:
    random = np.random.default_rng(0)
    x, weight = random.uniform(-1, 1, (4000, 32)), np.sign(random.standard_normal((32, 16)))
    scales, gain = evened(x, weight)
    assert gain < 0.1
    assert scales.max() / scales.min() < 1.1


@settings(max_examples=30)
@given(st.integers(0, 2**32 - 1), st.integers(1, 12), st.integers(1, 6))
def test_factors_are_positive_and_never_worse_by_the_estimate(seed: int, channels: int, outputs: int) -> None:
    random = np.random.default_rng(seed)
    x = random.standard_normal((20, channels)) * 10.0 ** random.integers(-3, 4, channels)
    weight = random.standard_normal((channels, outputs)) * random.integers(0, 2, (channels, outputs))
    scales, gain = evened(x, weight)
    assert (scales > 0).all()
    assert np.isfinite(scales).all()
    assert gain >= 0


def test_channels_that_are_always_zero_are_not_divided() -> None:
    x = np.zeros((10, 4))
    x[:, 0], x[:, 1] = np.linspace(-50, 50, 10), np.linspace(-1, 1, 10)
    scales, gain = evened(x, np.ones((4, 3)))
    assert scales[2:].tolist() == [1.0, 1.0]
    assert gain > 0
