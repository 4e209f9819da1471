"""absorb-unary: a product by a reciprocal is a quotient, and Where needs no Not."""

# ruff: noqa: E501 - the tables hold one model per line

from __future__ import annotations

import pytest

from graphopt.passes.simplify.absorb_unary import AbsorbUnary
from pass_oracle import check_pass, run_pass

HEAD = '<ir_version: 9, opset_import: ["" : 19]>\n'

ABSORBED: dict[str, tuple[str, list[str]]] = {
    "x * (1 / z)": ("g (float[n] x, float[n] z) => (float[n] y) { a = Reciprocal(z) y = Mul(x, a) }", ["Div"]),
    "(1 / z) * x, written out": ("g (float[9] x, float[1] z) => (float[9] y) <float o = {1}> { a = Div(o, z) y = Mul(a, x) }", ["Div"]),
    "x / (1 / z)": ("g (float[n] x, float[n] z) => (float[n] y) { a = Reciprocal(z) y = Div(x, a) }", ["Mul"]),
    "float16": ("g (float16[n] x, float16[n] z) => (float16[n] y) { a = Reciprocal(z) y = Mul(x, a) }", ["Div"]),
    "Where of Not": ("g (bool[n] c, float[n] x, float[n] z) => (float[n] y, float[n] u) { a = Not(c) y = Where(a, x, z) u = Where(a, z, z) }", ["Where", "Where"]),
}  # fmt: skip

STAYS: dict[str, str] = {
    "reciprocal is read elsewhere": "g (float[n] x, float[n] z) => (float[n] y, float[n] a) { a = Reciprocal(z) y = Mul(x, a) }",
    "2 / z": "g (float[n] x, float[n] z) => (float[n] y) <float o = {2}> { a = Div(o, z) y = Mul(x, a) }",
    "ones that enlarge": "g (float[n] x, float[1] z) => (float[n] y) <float[3] o = {1, 1, 1}> { a = Div(o, z) y = Mul(x, a) }",
    "one of higher rank": "g (float[n] x, float[n] z) => (float[1, n] y) <float[1, 1] o = {1}> { a = Div(o, z) y = Mul(x, a) }",
    "more quotients than reciprocals": "g (float[n, 9] x, float[n, 1] z) => (float[n, 9] y) { a = Reciprocal(z) y = Mul(x, a) }",
    "integers": "g (int32[n] x, int32[n] z) => (int32[n] y) <int32 o = {1}> { b = Abs(z) c = Add(b, o) a = Div(o, c) y = Mul(x, a) }",
    "square of a reciprocal": "g (float[n] z) => (float[n] y) { a = Reciprocal(z) y = Mul(a, a) }",
    "Not is read elsewhere": "g (bool[n] c, float[n] x, float[n] z) => (float[n] y, float[n] u) { a = Not(c) y = Where(a, x, z) u = Cast<to = 1>(a) }",
    "Not is a branch too": "g (bool[n] c, bool[n] x) => (bool[n] y) { a = Not(c) y = Where(a, a, x) }",
}  # fmt: skip


@pytest.mark.parametrize("case", ABSORBED)
def test_node_in_front_goes(case: str) -> None:
    text, ops = ABSORBED[case]
    assert check_pass(AbsorbUnary(), HEAD + text).ops == ops


@pytest.mark.parametrize("case", STAYS)
def test_what_saves_nothing_or_differs_stays(case: str) -> None:
    assert run_pass(AbsorbUnary(), HEAD + STAYS[case], verify="fast").record.patches == 0
