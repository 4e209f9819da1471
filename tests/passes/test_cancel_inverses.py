"""cancel-inverses: what undoes or repeats the node before it goes."""

# ruff: noqa: E501 - the tables hold one model per line

from __future__ import annotations

import pytest

from graphopt.passes.simplify.cancel_inverses import CancelInverses
from odd_numbers import check_on_odd
from pass_oracle import run_pass

HEAD = '<ir_version: 9, opset_import: ["" : 19]>\n'

CANCELLED: dict[str, tuple[str, list[str]]] = {
    "Neg of Neg": ("g (float[n] x) => (float[n] y) { a = Neg(x) b = Neg(a) y = Abs(b) }", ["Abs"]),
    "Neg of Neg of integers": ("g (int8[n] x) => (int8[n] y) { a = Neg(x) b = Neg(a) y = Abs(b) }", ["Abs"]),
    "Not of Not": ("g (bool[n] x) => (float[n] y) { a = Not(x) b = Not(a) y = Cast<to = 1>(b) }", ["Cast"]),
    "three": ("g (bool[n] x) => (bool[n] y) { a = Not(x) b = Not(a) y = Not(b) }", ["Not"]),
    "BitwiseNot": ("g (int32[n] x) => (int32[n] y) { a = BitwiseNot(x) b = BitwiseNot(a) y = Abs(b) }", ["Abs"]),
    "Abs of Abs": ("g (float[n] x) => (float[n] y) { a = Abs(x) y = Abs(a) }", ["Abs"]),
    "Abs of Neg": ("g (float[n] x) => (float[n] y) { a = Neg(x) y = Abs(a) }", ["Abs"]),
    "Round of Floor": ("g (float[n] x) => (float[n] y) { a = Floor(x) b = Round(a) y = Ceil(b) }", ["Floor"]),
    "Sign of Sign": ("g (float[n] x) => (float[n] y) { a = Sign(x) y = Sign(a) }", ["Sign"]),
    "And of itself": ("g (bool[n] x) => (bool[n] y) { a = And(x, x) y = Not(a) }", ["Not"]),
    "blocks there and back": ("g (float[1, 4, 2, 2] x) => (float[1, 4, 2, 2] y) { a = DepthToSpace<blocksize = 2>(x) b = SpaceToDepth<blocksize = 2>(a) y = Neg(b) }", ["Neg"]),
    "blocks back and there": ("g (float[1, 1, 4, 4] x) => (float[1, 1, 4, 4] y) { a = SpaceToDepth<blocksize = 2>(x) b = DepthToSpace<blocksize = 2>(a) y = Neg(b) }", ["Neg"]),
    "Concat of Split": ("g (float[n, 6] x) => (float[n, 6] y) <int64[3] s = {1, 2, 3}> { a, b, c = Split<axis = -1>(x, s) d = Concat<axis = 1>(a, b, c) y = Neg(d) }", ["Neg"]),
    "Split of Concat": ("g (float[n, 2] p, float[n, 3] q) => (float[n, 2] y, float[n, 3] z) <int64[2] s = {2, 3}> { a = Concat<axis = 1>(p, q) b, c = Split<axis = 1>(a, s) y = Neg(b) z = Abs(c) }", ["Neg", "Abs"]),
    "x + -z": ("g (float[n] x, float[n] z) => (float[n] y) { a = Neg(z) y = Add(x, a) }", ["Sub"]),
    "-x + z": ("g (float[n] x, float[1] z) => (float[n] y) { a = Neg(x) y = Add(a, z) }", ["Sub"]),
    "x - -z": ("g (int32[n] x, int32[n] z) => (int32[n] y) { a = Neg(z) y = Sub(x, a) }", ["Add"]),
    "not less": ("g (int32[n] x, int32[n] z) => (bool[n] y) { a = Less(x, z) y = Not(a) }", ["GreaterOrEqual"]),
    "not greater or equal": ("g (int64[n] x, int64[n] z) => (bool[n] y) { a = GreaterOrEqual(x, z) y = Not(a) }", ["Less"]),
}  # fmt: skip

STAYS: dict[str, str] = {
    "Reciprocal of Reciprocal": "g (float[n] x) => (float[n] y) { a = Reciprocal(x) y = Reciprocal(a) }",
    "not less of floats": "g (float[n] x, float[n] z) => (bool[n] y) { a = Less(x, z) y = Not(a) }",
    "Neg is read elsewhere": "g (float[n] x, float[n] z) => (float[n] y, float[n] u) { a = Neg(z) y = Add(x, a) u = Abs(x) v = Exp(a) w = Add(u, v) }",
    "blocks of other order": "g (float[1, 4, 2, 2] x) => (float[1, 4, 2, 2] y) { a = DepthToSpace<blocksize = 2, mode = \"CRD\">(x) b = SpaceToDepth<blocksize = 2>(a) y = Neg(b) }",
    "parts out of order": "g (float[n, 6] x) => (float[n, 6] y) { a, b = Split<axis = 1, num_outputs = 2>(x) y = Concat<axis = 1>(b, a) }",
    "part is missing": "g (float[n, 6] x) => (float[n, 4] y) { a, b, c = Split<axis = 1, num_outputs = 3>(x) y = Concat<axis = 1>(a, b) }",
    "parts along another axis": "g (float[2, 2] x) => (float[1, 4] y) { a, b = Split<axis = 0, num_outputs = 2>(x) y = Concat<axis = 1>(a, b) }",
    "other sizes": "g (float[n, 2] p, float[n, 3] q) => (float[n, 3] y, float[n, 2] z) <int64[2] s = {3, 2}> { a = Concat<axis = 1>(p, q) b, c = Split<axis = 1>(a, s) y = Neg(b) z = Abs(c) }",
    "free sizes": "g (float[n] p, float[m] q) => (float[k] y, float[l] z) { a = Concat<axis = 0>(p, q) b, c = Split<axis = 0, num_outputs = 2>(a) y = Neg(b) z = Abs(c) }",
}  # fmt: skip


@pytest.mark.parametrize("case", CANCELLED)
def test_pair_goes(case: str) -> None:
    text, ops = CANCELLED[case]
    done = check_on_odd(CancelInverses(), HEAD + text, interpreted="blocks" not in case and "int8" not in text)
    assert done.ops == ops, done.text


@pytest.mark.parametrize("case", STAYS)
def test_what_differs_stays(case: str) -> None:
    assert run_pass(CancelInverses(), HEAD + STAYS[case], verify="fast").record.patches == 0


def test_parts_that_are_public_keep_their_names() -> None:
    text = "g (float[n, 2] p, float[n, 3] q) => (float[n, 2] y, float[n, 3] z) <int64[2] s = {2, 3}> { a = Concat<axis = 1>(p, q) y, z = Split<axis = 1>(a, s) }"
    done = run_pass(CancelInverses(), HEAD + text)
    assert "output of the graph" in done.skips.popitem()[1]
