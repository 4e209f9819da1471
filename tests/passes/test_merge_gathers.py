"""merge-gathers: indices of indices, and one index with or without its axis."""

# ruff: noqa: E501 - the tables hold one model per line

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from graphopt.passes.simplify.merge_gathers import MergeGathers
from pass_oracle import check_pass, run_pass

if TYPE_CHECKING:
    from collections.abc import Callable

HEAD = '<ir_version: 9, opset_import: ["" : 19]>\n'

MERGED: dict[str, str] = {
    "vector of vector": "g (float[n, 5] x) => (float[n, 2] y) <int64[3] i = {4, 0, -2}, int64[2] j = {-1, 0}> { a = Gather<axis = 1>(x, i) y = Gather<axis = -1>(a, j) }",
    "scalar of vector": "g (float[5] x) => (float y) <int64[3] i = {4, 0, 2}, int64 j = {1}> { a = Gather(x, i) y = Gather(a, j) }",
    "matrix of vector": "g (float[5] x) => (float[1, 2] y) <int32[3] i = {4, 0, 2}, int64[1, 2] j = {1, 1}> { a = Gather(x, i) y = Gather(a, j) }",
    "Unsqueeze": "g (float[n, 5, m] x) => (float[n, 1, m] y) <int64 i = {3}, int64[1] w = {1}> { a = Gather<axis = 1>(x, i) y = Unsqueeze(a, w) }",
    "Reshape": "g (float[2, 5] x) => (float[2, 1] y) <int64 i = {-1}, int64[2] s = {2, 1}> { a = Gather<axis = 1>(x, i) y = Reshape(a, s) }",
    "Squeeze": "g (float[n, 5, m] x) => (float[n, m] y) <int64[1] i = {-5}, int64[1] w = {1}> { a = Gather<axis = 1>(x, i) y = Squeeze(a, w) }",
    "Squeeze of Slice": "g (float[n, 5] x) => (float[n] y) <int64[1] s = {-2}, int64[1] e = {-1}, int64[1] w = {1}> { a = Slice(x, s, e, w) y = Squeeze(a, w) }",
    "size": "g (float[n, 5] x) => (int64[1] y) <int64 i = {0}, int64[1] w = {0}> { s = Shape(x) a = Gather(s, i) y = Unsqueeze(a, w) }",
}  # fmt: skip

STAYS: dict[str, str] = {
    "other axes": "g (float[n, 5] x) => (float[1, 2] y) <int64[2] i = {4, 0}, int64[1] j = {0}> { a = Gather<axis = 1>(x, i) y = Gather<axis = 0>(a, j) }",
    "matrix first": "g (float[5] x) => (float[1, 2] y) <int64[2, 2] i = {4, 0, 1, 1}, int64[1] j = {0}> { a = Gather(x, i) y = Gather(a, j) }",
    "read elsewhere": "g (float[5] x) => (float y, float[3] a) <int64[3] i = {4, 0, 2}, int64 j = {1}> { a = Gather(x, i) y = Gather(a, j) }",
    "index not constant": "g (float[5] x, int64 j) => (float y) <int64[3] i = {4, 0, 2}> { a = Gather(x, i) y = Gather(a, j) }",
    "other reader of one element": "g (float[n, 5] x) => (float[n, 1] y, float[n] z) <int64 i = {3}, int64[1] w = {1}> { a = Gather<axis = 1>(x, i) y = Unsqueeze(a, w) z = Neg(a) }",
    "axis elsewhere": "g (float[2, 5] x) => (float[1, 2] y) <int64 i = {3}, int64[1] w = {0}> { a = Gather<axis = 1>(x, i) y = Unsqueeze(a, w) }",
    "Slice of a free axis": "g (float[n] x) => (float y) <int64[1] s = {0}, int64[1] e = {1}> { a = Slice(x, s, e) y = Squeeze(a) }",
    "Slice of two": "g (float[4, 1] x) => (float[2] y) <int64[1] s = {0}, int64[1] e = {2}, int64[1] w = {1}> { a = Slice(x, s, e) y = Squeeze(a, w) }",
}  # fmt: skip


@pytest.mark.parametrize("case", MERGED)
def test_one_gather_is_left(case: str) -> None:
    done = check_pass(MergeGathers(), HEAD + MERGED[case])
    assert [op for op in done.ops if op != "Shape"] == ["Gather"], done.text


@pytest.mark.parametrize("case", STAYS)
def test_what_saves_nothing_or_is_not_known_stays(case: str) -> None:
    assert run_pass(MergeGathers(), HEAD + STAYS[case], verify="fast").record.patches == 0


def test_every_view_of_one_element_gathers_it_itself(golden: Callable[[str], None]) -> None:
    text = "g (float[n, 5] x) => (float[n, 1] y, float[n, 1] z) <int64 i = {3}, int64[1] w = {1}> { a = Gather<axis = 1>(x, i) b = Unsqueeze(a, w) c = Unsqueeze(a, w) y = Neg(b) z = Abs(c) }"
    done = check_pass(MergeGathers(), HEAD + text)
    golden(done.text)
    assert sorted(done.ops) == ["Abs", "Gather", "Gather", "Neg"]


def test_index_outside_is_a_reason() -> None:
    text = "g (float[5] x) => (float[2] y) <int64[2] i = {4, 0}, int64[2] j = {0, 2}> { a = Gather(x, i) y = Gather(a, j) }"
    done = run_pass(MergeGathers(), HEAD + text, verify="fast")
    assert "outside of the 2 elements" in done.skips.popitem()[1]


@settings(max_examples=50, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.lists(st.integers(-4, 3), min_size=1, max_size=5), st.data())
def test_generated_pairs_keep_their_outputs(first: list[int], data: st.DataObject) -> None:
    inside = st.integers(-len(first), len(first) - 1)
    shape = data.draw(st.sampled_from([(), (1,), (2,), (0,), (2, 2)]))
    second = data.draw(st.lists(inside, min_size=int(np.prod(shape)), max_size=int(np.prod(shape))))
    kind = f"[{', '.join(map(str, shape))}]" if shape else ""
    made = "".join(f", o{axis}" for axis in range(len(shape)))
    text = (
        f"{HEAD}g (float[n, 4] x) => (float[n{made}] y) <int64[{len(first)}] i = {{{', '.join(map(str, first))}}}, "
        f"int64{kind} j = {{{', '.join(map(str, second))}}}> {{ a = Gather<axis = 1>(x, i) y = Gather<axis = 1>(a, j) }}"
    )
    assert check_pass(MergeGathers(), text, samples=1).ops == ["Gather"]
