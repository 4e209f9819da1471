"""merge-splits: Slices that cut a tensor into parts become one Split."""

# ruff: noqa: E501 - the tables hold one model per line

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from graphopt.passes.simplify.merge_splits import MergeSplits
from pass_oracle import check_pass, run_pass

if TYPE_CHECKING:
    from collections.abc import Callable

HEAD = '<ir_version: 9, opset_import: ["" : 19]>\n'

CUT: dict[str, str] = {
    "halves": "g (float[n, 6] x) => (float[n, 3] y, float[n, 3] z) <int64[1] s = {0}, int64[1] m = {3}, int64[1] e = {9223372036854775807}, int64[1] w = {-1}> { y = Slice(x, s, m, w) z = Slice(x, m, e, w) }",
    "backwards written": "g (float[n, 6] x) => (float[n, 3] y, float[n, 3] z) <int64[1] s = {-6}, int64[1] m = {-3}, int64[1] e = {6}, int64[1] w = {1}> { z = Slice(x, m, e, w) y = Slice(x, s, m, w) }",
    "three of different sizes, and a reader": "g (float[6] x) => (float[6] n, float[1] y, float[3] z, float[2] u) <int64[1] s = {0}, int64[1] m = {1}, int64[1] k = {4}, int64[1] e = {6}> { n = Neg(x) y = Slice(x, s, m) z = Slice(x, m, k) u = Slice(x, k, e) }",
    "halves and a whole run across": "g (float[6] x) => (float[3] y, float[3] z, float[2] u) <int64[1] s = {0}, int64[1] m = {3}, int64[1] k = {2}, int64[1] l = {4}, int64[1] e = {6}> { y = Slice(x, s, m) z = Slice(x, m, e) u = Slice(x, k, l) }",
}  # fmt: skip

STAYS: dict[str, str] = {
    "gap": "g (float[6] x) => (float[2] y, float[3] z) <int64[1] s = {0}, int64[1] m = {2}, int64[1] k = {3}, int64[1] e = {6}> { y = Slice(x, s, m) z = Slice(x, k, e) }",
    "end missing": "g (float[6] x) => (float[2] y, float[2] z) <int64[1] s = {0}, int64[1] m = {2}, int64[1] e = {4}> { y = Slice(x, s, m) z = Slice(x, m, e) }",
    "overlap": "g (float[6] x) => (float[4] y, float[3] z) <int64[1] s = {0}, int64[1] m = {4}, int64[1] k = {3}, int64[1] e = {6}> { y = Slice(x, s, m) z = Slice(x, k, e) }",
    "free size": "g (float[n] x) => (float[3] y, float[k] z) <int64[1] s = {0}, int64[1] m = {3}, int64[1] e = {9223372036854775807}> { y = Slice(x, s, m) z = Slice(x, m, e) }",
    "steps": "g (float[6] x) => (float[3] y, float[3] z) <int64[1] s = {0}, int64[1] m = {1}, int64[1] e = {6}, int64[1] w = {0}, int64[1] t = {2}> { y = Slice(x, s, e, w, t) z = Slice(x, m, e, w, t) }",
    "other axes": "g (float[6, 6] x) => (float[3, 6] y, float[6, 3] z) <int64[1] s = {0}, int64[1] m = {3}, int64[1] e = {6}, int64[1] w = {0}, int64[1] v = {1}> { y = Slice(x, s, m, w) z = Slice(x, m, e, v) }",
    "only one": "g (float[6] x) => (float[6] y) <int64[1] s = {0}, int64[1] e = {6}> { y = Slice(x, s, e) }",
}  # fmt: skip


@pytest.mark.parametrize("case", CUT)
def test_parts_become_one_split(case: str) -> None:
    done = check_pass(MergeSplits(), HEAD + CUT[case])
    assert done.ops.count("Split") == 1, done.text
    assert done.ops.count("Slice") == ("across" in case)


@pytest.mark.parametrize("case", STAYS)
def test_what_is_no_partition_stays(case: str) -> None:
    assert run_pass(MergeSplits(), HEAD + STAYS[case]).record.patches == 0


def test_old_opset_has_the_sizes_as_attribute(golden: Callable[[str], None]) -> None:
    text = """<ir_version: 4, opset_import: ["" : 9]> g (float[6] x) => (float[2] y, float[4] z) {
      y = Slice<starts = [0], ends = [2]>(x) z = Slice<starts = [2], ends = [100]>(x) }"""
    golden(check_pass(MergeSplits(), text, interpreted=False).text)


def test_slices_in_a_body_are_apart() -> None:
    text = """g (bool c, float[6] x) => (float[3] y) <int64[1] s = {0}, int64[1] m = {3}, int64[1] e = {6}> { a = Slice(x, s, m)
      y = If (c) <then_branch = t () => (float[3] u) { u = Slice(x, m, e) }, else_branch = f () => (float[3] v) { v = Neg(a) }> }"""
    assert run_pass(MergeSplits(), HEAD + text).record.patches == 0
