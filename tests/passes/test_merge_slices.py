"""merge-slices: what two ranges select of each other, with and without the size of the axis."""

# ruff: noqa: E501 - the tables hold one model per line

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from graphopt.analysis.dims import symbol
from graphopt.passes.simplify.algebra.ranges import Range
from graphopt.passes.simplify.merge_slices import MergeSlices
from graphopt.runtime import Feeds
from pass_oracle import check_pass, parse, run_pass

if TYPE_CHECKING:
    from collections.abc import Callable

HEAD = '<ir_version: 9, opset_import: ["" : 19]>\n'
BOUNDS = st.one_of(st.integers(-8, 8), st.sampled_from([2**31 - 1, 2**63 - 1, -(2**31), -(2**63)]))
STEPS = st.sampled_from([1, 1, 2, 3, -1, -2])
RANGES = st.builds(Range, BOUNDS, BOUNDS, STEPS)


def twice(first: Range, second: Range, size: int) -> list[int]:
    once = list(first.of(size))
    return [once[index] for index in second.of(len(once))]


def test_other_axes_are_merged(golden: Callable[[str], None]) -> None:
    text = "g (float[n, 6] x) => (float[a, 2] y) <int64[1] s = {1}, int64[1] e = {3}, int64[1] p = {0}, int64[1] q = {-1}> { a = Slice(x, s, e, p) y = Slice(a, s, e, q) }"
    done = check_pass(MergeSlices(), HEAD + text)
    golden(done.text)
    assert done.ops == ["Slice"]


def test_attributes_of_old_opsets() -> None:
    text = """<ir_version: 4, opset_import: ["" : 9]> g (float[5, 6] x) => (float[2, 2] y) {
      a = Slice<axes = [0], starts = [1], ends = [3]>(x) y = Slice<axes = [-1], starts = [-3], ends = [-1]>(a) }"""
    done = check_pass(MergeSlices(), text, interpreted=False)
    assert done.ops == ["Slice"]


@pytest.mark.parametrize(
    "text",
    [
        "g (float[6] x) => (float[a] y, float[b] z) <int64[1] s = {1}, int64[1] e = {5}> { z = Slice(x, s, e) y = Slice(z, s, e) }",
        "g (float[6] x, int64[1] e) => (float[a] y) <int64[1] s = {1}> { b = Slice(x, s, e) y = Slice(b, s, s) }",
        "g (float[6] x) => (float[a] y) <int64[1] s = {1}, int64[1] e = {5}> { y = Slice(x, s, e) }",
    ],
)
def test_what_another_reads_or_is_not_known_stays(text: str) -> None:
    assert run_pass(MergeSlices(), HEAD + text, verify="fast").record.patches == 0


def test_free_size_is_a_reason() -> None:
    text = "g (float[n] x) => (float[a] y) <int64[1] s = {-3}, int64[1] e = {9}, int64[1] t = {1}> { b = Slice(x, s, e) y = Slice(b, t, e) }"
    done = run_pass(MergeSlices(), HEAD + text)
    assert done.skips.popitem()[1] == "how axis 0 of size n is cut twice depends on the size"


def test_steps_backwards() -> None:
    assert list(Range(9, -9, -2).of(4)) == [3, 1]
    assert list(Range(-2, 9, 1).of(3)) == [1, 2]
    assert Range(-9, -9, -1).starts_in_front(3)
    assert Range(-9, -9, -1).then(Range(0, 1, 1), 3) is None


@settings(max_examples=400, deadline=None)
@given(RANGES, RANGES)
def test_composition_selects_the_same_elements(first: Range, second: Range) -> None:
    for size in range(12):
        expected = twice(first, second, size)
        known = first.then(second, size)
        assert (known is None) == (first.starts_in_front(size) or second.starts_in_front(len(first.of(size))))
        assert known is None or list(known.of(size)) == expected
    free = first.then(second, symbol("n"))
    if free is not None:
        for size in range(12):
            expected = twice(first, second, size)
            assert list(free.of(size)) == expected


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.integers(0, 6), RANGES, RANGES, st.booleans())
def test_generated_pairs_keep_their_outputs(size: int, first: Range, second: Range, free: bool) -> None:
    lines = []
    constants = []
    for index, part in enumerate((first, second)):
        values = {"s": part.start, "e": part.end, "w": 0, "t": part.step}
        constants += [f"int64[1] {name}{index} = {{{value}}}" for name, value in values.items()]
        lines.append(f"a{index + 1} = Slice(a{index}, s{index}, e{index}, w{index}, t{index})")
    given_ = "n" if free else str(size)
    text = f"{HEAD}g (float[{given_}] x) => (float[m] y) <{', '.join(constants)}> {{ a0 = Neg(x) {' '.join(lines)} y = Neg(a2) }}"
    feeds = Feeds.open({"x": np.arange(size, dtype=np.float32)[None]}, parse(text))
    check_pass(MergeSlices(), text, feeds, samples=1, interpreted=False)
