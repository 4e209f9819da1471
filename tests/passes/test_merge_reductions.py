"""merge-reductions: keepdims instead of a view."""

# ruff: noqa: E501 - the tables hold one model per line

from __future__ import annotations

import pytest

from graphopt.passes.simplify.merge_reductions import REDUCTIONS, MergeReductions
from odd_numbers import check_on_odd
from pass_oracle import check_pass, run_pass

HEAD = '<ir_version: 9, opset_import: ["" : 19]>\n'

MERGED: dict[str, str] = {
    "Squeeze": "g (float[n, 3, m] x) => (float[n, m] y) <int64[1] w = {1}> { a = ReduceSum(x, w) y = Squeeze(a, w) }",
    "Unsqueeze": "g (float[n, 3, m] x) => (float[n, 1, m] y) <int64[1] w = {-2}, int64[1] v = {1}> { a = ReduceMax<keepdims = 0>(x, w) y = Unsqueeze(a, v) }",
    "Flatten": "g (float[n, 3, 4, 4] x) => (float[n, 3] y) <int64[2] w = {2, 3}> { a = ReduceMean(x, w) y = Flatten(a) }",
    "all axes": "g (float[2, 3] x) => (float y) { a = ReduceProd(x) y = Squeeze(a) }",
    "mean written out": "g (float[n, 3, m] x) => (float[n, 1, m] y) <float c = {0.25}, int64[1] w = {-2}, int64[1] v = {1}> { a = ReduceSum<keepdims = 0>(x, w) b = Mul(c, a) d = Sqrt(b) y = Unsqueeze(d, v) }",
    "bias per channel": "g (float[n, 3, m] x) => (float[n, 3] y) <float[3, 1] c = {1, 2, 3}, int64[1] w = {-1}> { a = ReduceMax(x, w) b = Add(a, c) y = Squeeze(b, w) }",
    "ArgMax": "g (float[n, 3] x) => (int64[n] y) <int64[1] w = {1}> { a = ArgMax<axis = -1>(x) y = Squeeze(a, w) }",
}  # fmt: skip

STAYS: dict[str, str] = {
    "other axis": "g (float[1, 3, m] x) => (float[3, 1] y) <int64[1] w = {2}, int64[1] v = {0}> { a = ReduceSum(x, w) y = Squeeze(a, v) }",
    "some of the axes": "g (float[n, 3, 4] x) => (float[n, 1] y) <int64[2] w = {1, 2}, int64[1] v = {1}> { a = ReduceSum(x, w) y = Squeeze(a, v) }",
    "nothing is reduced": "g (float[1, n] x) => (float[n] y) <int64[1] v = {0}> { a = ReduceSum<noop_with_empty_axes = 1>(x) y = Squeeze(a, v) }",
    "read elsewhere": "g (float[n, 3] x) => (float[n] y, float[n, 1] a) <int64[1] w = {1}> { a = ReduceSum(x, w) y = Squeeze(a, w) }",
    "axes not known": "g (float[n, 3] x, int64[1] w) => (float[n] y) <int64[1] v = {1}> { a = ReduceSum(x, w) y = Squeeze(a, v) }",
}  # fmt: skip


@pytest.mark.parametrize("case", MERGED)
def test_view_goes(case: str) -> None:
    done = (
        check_on_odd(MergeReductions(), HEAD + MERGED[case], free=3)
        if case != "ArgMax"
        else check_pass(MergeReductions(), HEAD + MERGED[case])
    )
    assert len(done.ops) == {"mean written out": 3, "bias per channel": 2}.get(case, 1), done.text


@pytest.mark.parametrize("case", STAYS)
def test_view_of_something_else_stays(case: str) -> None:
    assert run_pass(MergeReductions(), HEAD + STAYS[case], verify="fast").record.patches == 0


@pytest.mark.parametrize("op", [op for op in REDUCTIONS if op.startswith("Reduce")])
def test_all_reductions_of_old_opsets(op: str) -> None:
    text = f"""<ir_version: 4, opset_import: ["" : 11]> g (float[n, 3, 2] x) => (float[n] y) {{
      a = {op}<axes = [1, -1]>(x) y = Squeeze<axes = [1, 2]>(a) }}"""
    done = check_pass(MergeReductions(), text, interpreted=False)
    assert done.ops == [op]
