"""Calibrators: each against a direct computation on the values or on every candidate."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from graphopt.solve.calibrators import (
    Distribution,
    entropy,
    error,
    least_divergence,
    least_error,
    percentile,
    power,
    rounding_noise,
    weight_scales,
)
from graphopt.solve.histogram import Histogram
from graphopt.solve.rounding import Levels, Problem, min_max, row_errors

VALUES = hnp.arrays(np.float32, st.integers(1, 300), elements=st.floats(-1e6, 1e6, width=32))
KINDS = ("normal", "relu", "laplace", "negative", "shifted", "outlier", "two-sided outliers")


def seen(values: np.ndarray, bins: int = 8192) -> Distribution:
    histogram = Histogram.of_bins(bins)
    histogram.add(values)
    return Distribution(float(values.min()), float(values.max()), histogram, int((values == 0).sum()))


def values_of(kind: str, size: int = 60_000, seed: int = 0) -> np.ndarray:
    random = np.random.default_rng(seed)
    plain = random.standard_normal(size).astype(np.float32)
    if kind == "relu":
        return np.maximum(plain, 0)
    if kind == "laplace":
        return random.laplace(size=size).astype(np.float32)
    if kind == "negative":
        return -np.abs(plain)
    if kind == "shifted":
        return plain + np.float32(2)
    if kind == "outlier":
        plain[0] = 30
    if kind == "two-sided outliers":
        plain[:2] = 20, -12
    return plain


def grid_error(values: np.ndarray, low: float, high: float, levels: int, weight: float) -> float:
    """Round values to the grid and return the error, cut-off values weighted."""
    low, high = min(low, 0.0), max(high, 0.0)
    step = (high - low) / (levels - 1)
    zero = np.rint(-low / step)
    rounded = (np.clip(np.rint(values / step) + zero, 0, levels - 1) - zero) * step
    outside = (values < low) | (values > high)
    return float(np.mean(np.square(rounded - values, dtype=np.float64) * np.where(outside, weight, 1.0)))


@settings(max_examples=40)
@given(VALUES)
def test_every_range_lies_inside_what_was_seen(values: np.ndarray) -> None:
    given_values = seen(values)
    for low, high in (percentile(given_values, 99), least_error(given_values), least_divergence(given_values)):
        assert given_values.low <= low <= high <= given_values.high


@given(st.lists(VALUES, min_size=1, max_size=4), st.floats(60, 100))
def test_percentile_lies_within_a_bin_of_numpy(arrays: list[np.ndarray], share: float) -> None:
    values = np.concatenate(arrays).astype(np.float64)
    found = seen(values.astype(np.float32))
    low, high = percentile(found, share)
    tail = 100 - share if values.min() >= 0 or values.max() <= 0 else (100 - share) / 2
    if values.min() < 0:
        assert low <= np.percentile(values, tail, method="higher") + found.histogram.width
    if values.max() > 0:
        assert high >= np.percentile(values, 100 - tail, method="lower") - found.histogram.width


def test_percentile_keeps_the_zero_end_of_an_activation_function() -> None:
    values = values_of("relu")
    found = seen(values)
    low, high = percentile(found, 99)
    assert low == 0.0
    assert high == pytest.approx(np.percentile(values, 99), abs=2 * found.histogram.width)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("levels", [16, 256])
def test_noise_is_that_of_the_rounded_values(kind: str, levels: int) -> None:
    values = values_of(kind)
    found = seen(values)
    for share in (1.0, 0.7, 0.4):
        low, high = share * found.low, share * found.high
        expected = grid_error(values, low, high, levels, error.CUT_OFF_WEIGHT)
        # Within a step of 16 levels the values are spread less evenly than the estimate assumes.
        assert rounding_noise(found, low, high, levels) == pytest.approx(expected, rel=0.06 if levels == 256 else 0.1)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("levels", [16, 256])
@pytest.mark.parametrize("symmetric", [False, True])
def test_least_error_beats_every_pair_of_ends_tried_on_the_values(kind: str, levels: int, *, symmetric: bool) -> None:
    values = values_of(kind, 20_000)
    found = seen(values)
    low, high = least_error(found, levels, symmetric=symmetric)
    reached = grid_error(values, low, high, levels, error.CUT_OFF_WEIGHT)
    shares = np.linspace(1, 0.1, 19)
    ends = (
        [(-max(-found.low, found.high) * a, max(-found.low, found.high) * a) for a in shares]
        if symmetric
        else [(found.low * a, found.high * b) for a in shares for b in shares]
    )
    best = min(grid_error(values, *span, levels, error.CUT_OFF_WEIGHT) for span in ends)
    assert reached <= 1.06 * best


def test_least_error_cuts_off_a_lone_outlier_and_no_more() -> None:
    values = values_of("outlier", 2_000_000)
    low, high = least_error(seen(values))
    assert 3.0 < high < 25.0
    assert low < -3.0


def test_exact_zeros_do_not_narrow_the_range() -> None:
    values = np.abs(values_of("normal"))
    with_zeros = np.concatenate([values, np.zeros(500_000, np.float32)])
    for calibrate in (least_error, least_divergence):
        assert calibrate(seen(with_zeros)) == pytest.approx(calibrate(seen(values)), rel=0.02, abs=1e-4)


@given(VALUES)
def test_power_is_the_mean_square(values: np.ndarray) -> None:
    found = seen(values)
    width = found.histogram.width
    expected = float(np.mean(np.square(values, dtype=np.float64)))
    assert abs(power(found) - expected) <= width * float(np.abs(values).max()) + width**2


# --------------------------------------------------------------------------------------------------------- entropy


def divergence(counts: np.ndarray, first: int, last: int, levels: int) -> float:
    """Return KL(P || Q) bin by bin, as the definition says."""
    p = counts[first:last].copy()
    p[0] += counts[:first].sum()
    p[-1] += counts[last:].sum()
    inside = counts[first:last]
    q = np.zeros(last - first)
    places = [((last - first) * j + levels // 2) // levels for j in range(levels + 1)]
    for begin, end in itertools.pairwise(places):
        used = (inside[begin:end] > 0) | (p[begin:end] > 0)
        if used.any():
            q[begin:end][used] = inside[begin:end].sum() / used.sum()
    p, q = p / p.sum(), q / max(q.sum(), 1e-300)
    here = p > 0
    if (q[here] == 0).any():
        return float("inf")
    return float((p[here] * np.log(p[here] / q[here])).sum())


@pytest.mark.parametrize("kind", KINDS)
def test_divergences_are_those_of_the_definition(kind: str) -> None:
    counts, edges = seen(values_of(kind, 5_000), 256).rounded_counts()
    middle = int(np.searchsorted(edges, 0.0))
    random = np.random.default_rng(1)
    first = random.integers(0, middle + 1, 40)
    last = random.integers(middle, len(counts) + 1, 40)
    wide = last - first >= 16
    found = entropy.divergences(entropy.Sums(counts), first[wide], last[wide], 8)
    expected = [divergence(counts, int(a), int(b), 8) for a, b in zip(first[wide], last[wide], strict=True)]
    np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("kind", ["relu", "negative"])
def test_entropy_takes_the_best_of_all_thresholds(kind: str) -> None:
    found = seen(values_of(kind, 20_000), 512)
    counts, edges = found.rounded_counts()
    low, high = least_divergence(found, 16)
    whole = len(counts)
    if kind == "relu":
        tried = {float(edges[last]): divergence(counts, 0, last, 16) for last in range(32, whole + 1)}
        reached = tried[high if high in tried else float(edges[-1])]
    else:
        tried = {float(edges[first]): divergence(counts, first, whole, 16) for first in range(whole - 32 + 1)}
        reached = tried[low if low in tried else float(edges[0])]
    assert reached <= min(tried.values()) + 1e-12


def test_entropy_tries_many_thresholds_and_cuts_off_outliers() -> None:
    values = values_of("outlier")
    low, high = least_divergence(seen(values))
    assert high < 15
    assert low == pytest.approx(values.min(), abs=1.5)


def test_a_grid_of_more_levels_than_bins_takes_everything() -> None:
    values = values_of("normal")
    found = seen(values)
    assert least_divergence(found, 65_536) == found.span


# --------------------------------------------------------------------------------------------------------- weights


def row_error(weight: np.ndarray, scales: np.ndarray, moment: np.ndarray) -> np.ndarray:
    steps = scales[:, None]
    difference = np.clip(np.rint(weight / steps), -127, 127) * steps - weight
    return np.asarray(np.einsum("rc,cd,rd->r", difference, moment, difference))


@pytest.mark.parametrize("form", ["none", "diagonal", "full"])
def test_weight_scales_are_the_best_of_the_shares(form: str) -> None:
    random = np.random.default_rng(0)
    weight = random.standard_t(3, (6, 40))
    inputs = random.standard_normal((200, 40)) * random.uniform(0.1, 5, 40)
    full = inputs.T @ inputs / 200
    importance = np.diag(full).copy() if form == "diagonal" else None
    dense = {"none": np.eye(40), "diagonal": np.diag(np.diag(full)), "full": full}[form]
    found = weight_scales(weight, importance, moment=full if form == "full" else None)
    reached = row_error(weight, found, dense)
    for share in np.linspace(1, 0.5, 41):
        scales = (np.abs(weight).max(axis=1) * share / 127).astype(np.float32).astype(np.float64)
        assert (reached <= row_error(weight, scales, dense) * (1 + 1e-9)).all()
    assert (reached <= row_error(weight, np.abs(weight).max(axis=1) / 127, dense) * (1 + 1e-5)).all()


def test_one_scale_for_all_rows_minimises_the_sum() -> None:
    random = np.random.default_rng(0)
    weight = random.standard_normal((5, 30)) * np.array([[0.1], [1], [1], [2], [0.3]])
    (scale,) = weight_scales(weight, np.ones(30), per_row=False)
    errors = [
        row_error(weight, np.full(5, np.float32(np.abs(weight).max() * share / 127), np.float64), np.eye(30)).sum()
        for share in np.linspace(1, 0.5, 41)
    ]
    assert row_error(weight, np.full(5, scale), np.eye(30)).sum() == pytest.approx(min(errors))


def test_weight_scales_agree_with_the_error_that_rounding_is_judged_by() -> None:
    random = np.random.default_rng(2)
    weight = random.standard_t(3, (4, 24))
    inputs = random.standard_normal((100, 24))
    problem = Problem(weight[None], (inputs.T @ inputs / 100)[None])
    scales = weight_scales(weight, moment=problem.moment[0])
    values = np.clip(np.rint(weight / scales[:, None]), -127, 127) * scales[:, None]
    widest = min_max(problem.target, Levels(-127, 127)).nearest(problem.target)
    assert (row_errors(problem, values[None]) <= row_errors(problem, widest) + 1e-12).all()


def test_rows_of_zeros_have_no_scale() -> None:
    assert weight_scales(np.zeros((3, 4))).tolist() == [0.0, 0.0, 0.0]
