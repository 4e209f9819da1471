"""Levels: what they are called, what they leave, and that statistics make them better."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from graphopt.solve import level_kinds
from graphopt.solve.least_squares import Moments, Statistics, row_errors
from graphopt.solve.level_kinds import KINDS, Level, compress, parse_levels


def layer(seed: int, groups: int = 1, rows: int = 6, columns: int = 12) -> tuple[list[np.ndarray], list[Statistics]]:
    """Weights and statistics of correlated inputs."""
    rng = np.random.default_rng(seed)
    weights = [rng.standard_normal((rows, columns)) for _ in range(groups)]
    given = []
    for _ in range(groups):
        inputs = rng.standard_normal((400, columns)) @ rng.standard_normal((columns, columns))
        moments = Moments(columns)
        moments.add(inputs, inputs)
        given.append(moments.mean(centred=False))
    return weights, given


def error(weights: list[np.ndarray], found: list[np.ndarray], given: list[Statistics]) -> float:
    return float(sum(row_errors(w, v, g).sum() for w, v, g in zip(weights, found, given, strict=True)))


def test_levels_are_read_in_order_and_once() -> None:
    assert parse_levels("bits=8,4,8,ternary") == [Level("bits", "8"), Level("bits", "4"), Level("bits", "ternary")]
    assert [str(level) for level in parse_levels("pattern=2:4,1:4")] == ["pattern=2:4", "pattern=1:4"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("bit=8", "is no level.*Kinds: bits="),
        ("bits", "is no level"),
        ("bits=", "whole number"),
        ("bits=1", "1 bits"),
        ("bits=4.5", "whole number"),
        ("bits=9", "9 bits"),
        ("sparsity=80", "share of zeros"),
        ("sparsity=1", "share of zeros"),
        ("sparsity=half", "share of zeros"),
        ("pattern=4x1", "N:M"),
        ("pattern=4:2", "N:M"),
    ],
)
def test_what_is_no_level_is_refused_with_what_is(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_levels(text)


@pytest.mark.parametrize(
    ("text", "size"),
    [("bits=8", 0.25), ("bits=binary", 1 / 32), ("sparsity=0.9", 0.1), ("pattern=2:4", 0.5), ("pattern=1:4", 0.25)],
)
def test_size_is_what_is_left(text: str, size: float) -> None:
    (level,) = parse_levels(text)
    assert level.size == pytest.approx(size)
    assert level.scales_rows == (level.kind != "bits")


@settings(deadline=None, max_examples=25)
@given(st.integers(0, 10**6), st.integers(1, 3), st.booleans(), st.sampled_from([0.0, 0.3, 0.5, 0.9]))
def test_shares_of_zeros_are_exact(seed: int, groups: int, solved: bool, share: float) -> None:
    weights, given = layer(seed, groups)
    ((*found,),) = [compress(weights, given if solved else None, [Level("sparsity", str(share))])[0]]
    zeros = sum(int((each == 0).sum()) for each in found)
    assert abs(zeros - share * groups * 72) <= 0.5


@settings(deadline=None, max_examples=25)
@given(st.integers(0, 10**6), st.booleans(), st.sampled_from(["2:4", "1:4", "4:8"]))
def test_patterns_hold(seed: int, solved: bool, pattern: str) -> None:
    weights, given = layer(seed, 2, columns=16)
    found = compress(weights, given if solved else None, [Level("pattern", pattern)])[0]
    keep, of = map(int, pattern.split(":"))
    for each in found:
        assert ((each.reshape(len(each), -1, of) != 0).sum(axis=2) == keep).all()


@settings(deadline=None, max_examples=25)
@given(st.integers(0, 10**6), st.booleans(), st.sampled_from(["2", "3", "4", "8", "ternary", "binary"]))
def test_bits_bound_the_distinct_values_of_a_row(seed: int, solved: bool, bits: str) -> None:
    weights, given = layer(seed, 2, columns=40)
    found = compress(weights, given if solved else None, [Level("bits", bits)])[0]
    most = {"ternary": 3, "binary": 2}.get(bits) or 2 ** int(bits)
    assert all(len(np.unique(np.round(row, 12))) <= most for each in found for row in each)


@settings(deadline=None, max_examples=25)
@given(st.integers(0, 10**6), st.sampled_from(["bits=3", "bits=ternary", "sparsity=0.6", "pattern=2:4"]))
def test_statistics_lower_the_error_of_the_layer(seed: int, text: str) -> None:
    weights, given = layer(seed)
    levels = parse_levels(text)
    solved = compress(weights, given, levels)[0]
    plain = compress(weights, None, levels)[0]
    assert error(weights, solved, given) <= error(weights, plain, given) * 1.05


def test_levels_of_one_kind_get_worse_and_come_back_in_order() -> None:
    weights, given = layer(3)
    levels = [*parse_levels("sparsity=0.9,0.3"), *parse_levels("bits=2,8"), *parse_levels("sparsity=0.6")]
    errors = [error(weights, found, given) for found in compress(weights, given, levels)]
    assert errors[1] < errors[4] < errors[0]
    assert errors[3] < errors[2]


def test_every_kind_says_what_its_values_are() -> None:
    for name, kind in KINDS.items():
        first = kind.help.split(",")[0].split(":")[0] if name != "pattern" else "2:4"
        assert parse_levels(f"{name}={first.split(' ')[0]}")


@pytest.mark.parametrize("most", [2e10, 3e4, 1.0], ids=["exact", "columns from left to right", "sizes alone"])
@pytest.mark.parametrize("text", ["sparsity=0.5", "pattern=2:4", "bits=3"])
def test_layers_too_large_for_one_solver_go_to_the_next(
    monkeypatch: pytest.MonkeyPatch, most: float, text: str
) -> None:
    weights, given = layer(5, groups=2, columns=16)
    monkeypatch.setattr(level_kinds, "MOST_FLOPS", most)
    monkeypatch.setattr(level_kinds, "MOST_ROUNDING_FLOPS", most)
    levels = parse_levels(text)
    found = compress(weights, given, levels)[0]
    if levels[0].kind != "bits":
        assert sum(int((each == 0).sum()) for each in found) == pytest.approx(0.5 * 2 * 96, abs=2)
    least = error(weights, compress(weights, None, levels)[0], given)
    assert error(weights, found, given) <= least * 1.3
    if most > 1e9:
        assert error(weights, found, given) < 0.8 * least
