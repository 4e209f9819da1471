"""Activations spelled out in elementwise operators."""

from __future__ import annotations

import pytest

from graphopt.passes.lower.curves import match_curve
from pass_oracle import parse

CONSTANTS = (
    "float q = {1.4142135}, float u = {0.70710677}, float i = {1}, float s = {0.5}, float[1] v = {0.5}, "
    "float t = {3}, float c = {0.044715}, float p = {0.7978846}, float d = {0.044716}, float o = {1.702}, "
    "float[2] w = {0.5, 0.5}"
)
ERF_FRONT = "a = Mul(x, s)  b = Div(x, q)  e = Erf(b)  f = Add(e, i)  y = Mul(a, f)"
ERF_END = "b = Mul(x, u)  e = Erf(b)  f = Add(i, e)  g = Mul(x, f)  y = Mul(g, s)"
ERF_MIDDLE = "b = Div(x, q)  e = Erf(b)  f = Add(e, i)  g = Mul(f, v)  y = Mul(x, g)"
TANH = "h = Mul(c, b)  j = Add(x, h)  k = Mul(j, p)  l = Tanh(k)  m = Add(l, i)"
CASES = {
    "silu": [("a = Sigmoid(x)  y = Mul(x, a)", "silu"), ("a = Sigmoid(x)  y = Mul(a, x)", "silu")],
    "gelu": [(ERF_FRONT, "gelu"), (ERF_END, "gelu"), (ERF_MIDDLE, "gelu")],
    "gelu_tanh": [
        (f"b = Pow(x, t)  {TANH}  n = Mul(x, m)  y = Mul(n, s)", "gelu_tanh"),
        (f"a = Mul(x, x)  b = Mul(a, x)  {TANH}  n = Mul(s, m)  y = Mul(x, n)", "gelu_tanh"),
        (f"z = Mul(s, x)  a = Mul(x, x)  b = Mul(x, a)  {TANH}  y = Mul(z, m)", "gelu_tanh"),
    ],
}


def found(body: str, outputs: str = "float[B, 2] y") -> tuple[list[str], str] | None:
    model = parse(
        f"""<ir_version: 8, opset_import: ["" : 17]>
        g (float[B, 2] z0) => ({outputs}) <{CONSTANTS}> {{ x = Relu(z0)  {body} }}"""
    )
    relu = next(node for _, node in model.walk() if node.op == "Relu")
    match = match_curve(relu.outputs[0])
    return None if match is None else ([node.op for node in match[0]], match[1])


@pytest.mark.parametrize(("body", "name"), [case for cases in CASES.values() for case in cases])
def test_curve_every_spelling_is_found_whole(body: str, name: str) -> None:
    match = found(body)
    assert match is not None
    assert match[1] == name
    assert len(match[0]) == body.count("=")


@pytest.mark.parametrize(
    "body",
    [
        "a = Sigmoid(x)  y = Mul(a, a)",
        "a = Mul(x, o)  b = Sigmoid(a)  y = Mul(x, b)",
        "y = Mul(x, s)",
        "y = Sigmoid(x)",
        ERF_END.replace("Mul(g, s)", "Mul(g, q)"),
        ERF_END.replace("Mul(x, u)", "Mul(x, s)"),
        ERF_END.replace("Mul(g, s)", "Mul(g, w)"),
        ERF_END.replace("Erf(b)", "Tanh(b)"),
        f"b = Pow(x, t)  {TANH}  n = Mul(x, m)  y = Mul(n, s)".replace("Mul(c, b)", "Mul(d, b)").replace("p)", "u)"),
        "a = Mul(x, z0)  y = Mul(a, x)",
    ],
)
def test_curve_other_formulas_are_none(body: str) -> None:
    assert found(body) is None


def test_curve_value_that_is_read_elsewhere_keeps_its_nodes() -> None:
    assert found("a = Sigmoid(x)  y = Mul(x, a)", "float[B, 2] y, float[B, 2] a") is None
    assert found("a = Sigmoid(x)  y = Mul(x, a)", "float[B, 2] y, float[B, 2] x") is None
    assert found("a = Sigmoid(x)  y0 = Mul(x, a)  b = Neg(a)  y = Add(y0, b)") is None
    assert found("a = Sigmoid(x)  y0 = Mul(x, a)  y = Add(y0, y0)") == (["Sigmoid", "Mul"], "silu")
