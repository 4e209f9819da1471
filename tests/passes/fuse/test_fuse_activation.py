"""fuse-activation: the steps of an activation function become one node."""

# ruff: noqa: E501 - the tables hold one model per line

from __future__ import annotations

import numpy as np
import onnx.parser
import pytest

from graphopt.graph import Model, read_model
from graphopt.passes.fuse.fuse_activation import FuseActivation
from pass_oracle import check_pass, run_pass

NUMBERS = {
    "zero": 0.0,
    "one": 1.0,
    "three": 3.0,
    "six": 6.0,
    "sixth": 1 / 6,
    "fifth": 0.2,
    "half": 0.5,
    "minus": -0.5,
    "four": 4.0,
}
CONSTANTS = " ".join(f"{name} = Constant<value_float = {value}>()" for name, value in NUMBERS.items())


def model_of(body: str, opset: int = 18) -> Model:
    text = (
        f'<ir_version: 8, opset_import: ["" : {opset}]> g (float[N, 9] x) => (float[N, 9] y) {{ {CONSTANTS} {body} }}'
    )
    return read_model(onnx.parser.parse_model(text))


FUSED: dict[str, tuple[str, str]] = {
    "relu6 over 6": ("a = Add(x, three) c = Clip(a, zero, six) y = Div(c, six)", "HardSigmoid"),
    "relu6 times a sixth": ("a = Add(three, x) c = Clip(a, zero, six) y = Mul(sixth, c)", "HardSigmoid"),
    "keras": ("m = Mul(x, fifth) a = Add(m, half) y = Clip(a, zero, one)", "HardSigmoid"),
    "gate over 6": ("a = Add(x, three) c = Clip(a, zero, six) d = Div(c, six) y = Mul(x, d)", "HardSwish"),
    "product over 6": ("a = Add(x, three) c = Clip(a, zero, six) m = Mul(c, x) y = Div(m, six)", "HardSwish"),
    "product times a sixth": ("a = Add(x, three) c = Clip(a, zero, six) m = Mul(x, c) y = Mul(m, sixth)", "HardSwish"),
    "x times HardSigmoid": ("s = HardSigmoid<alpha = 0.16666667, beta = 0.5>(x) y = Mul(s, x)", "HardSwish"),
    "logistic": ("n = Neg(x) e = Exp(n) a = Add(one, e) y = Div(one, a)", "Sigmoid"),
    "reciprocal": ("n = Neg(x) e = Exp(n) a = Add(e, one) y = Reciprocal(a)", "Sigmoid"),
    "softsign": ("b = Abs(x) a = Add(b, one) y = Div(x, a)", "Softsign"),
    "mish": ("s = Softplus(x) t = Tanh(s) y = Mul(x, t)", "Mish"),
    "Greater": ("p = Greater(x, zero) a = Mul(x, half) y = Where(p, x, a)", "LeakyRelu"),
    "GreaterOrEqual, steep": ("p = GreaterOrEqual(x, zero) a = Mul(x, three) y = Where(p, x, a)", "LeakyRelu"),
    "Less": ("p = Less(x, zero) a = Mul(x, half) y = Where(p, a, x)", "LeakyRelu"),
    "two sides": ("r = Relu(x) n = Neg(x) m = Relu(n) q = Mul(m, half) y = Sub(r, q)", "LeakyRelu"),
    "two sides, added": ("r = Relu(x) n = Neg(x) m = Relu(n) q = Mul(minus, m) y = Add(q, r)", "LeakyRelu"),
}  # fmt: skip


@pytest.mark.parametrize("name", FUSED)
def test_steps_become_one_node(name: str) -> None:
    body, op = FUSED[name]
    random = np.random.default_rng(0)
    feeds = [
        {"x": (4 * random.standard_normal((5, 9))).astype(np.float32)},
        {"x": np.linspace(-4, 4, 9, dtype=np.float32)[None]},
    ]
    done = check_pass(FuseActivation(), model_of(body), feeds)  # type: ignore[arg-type]
    assert [each for each in done.ops if each != "Constant"] == [op]


APART: dict[str, str] = {
    "lower bound": "a = Add(x, three) c = Clip(a, half, six) y = Div(c, six)",
    "no upper bound": "a = Add(x, three) c = Clip(a, zero) y = Div(c, six)",
    "other divisor": "a = Add(x, three) c = Clip(a, zero, six) y = Div(c, three)",
    "divided by it": "a = Add(x, three) c = Clip(a, zero, six) y = Div(six, c)",
    "bare Clip": "y = Clip(x, zero, one)",
    "two": "n = Neg(x) e = Exp(n) a = Add(e, half) y = Div(one, a)",
    "not negated": "e = Exp(x) a = Add(e, one) y = Div(one, a)",
    "softsign of another": "n = Neg(x) b = Abs(n) a = Add(b, one) y = Div(x, a)",
    "mish of another": "n = Neg(x) s = Softplus(n) t = Tanh(s) y = Mul(x, t)",
    "two sides of two": "r = Relu(x) n = Neg(r) m = Relu(n) q = Mul(m, half) y = Sub(r, q)",
    "two sides, negative slope": "r = Relu(x) n = Neg(x) m = Relu(n) q = Mul(m, half) y = Add(r, q)",
    "other bound": "p = Greater(x, half) a = Mul(x, half) y = Where(p, x, a)",
    "other way round": "p = Greater(x, zero) a = Mul(x, half) y = Where(p, a, x)",
    "negative slope": "p = Greater(x, zero) a = Mul(x, minus) y = Where(p, x, a)",
    "test of another": "n = Neg(x) p = Greater(n, zero) a = Mul(x, half) y = Where(p, x, a)",
    "multiple is read": "p = Greater(x, zero) a = Mul(x, half) w = Where(p, x, a) y = Add(w, a)",
    "gate is read": "a = Add(x, three) c = Clip(a, zero, six) d = Mul(x, c) e = Div(d, six) y = Add(e, c)",
}  # fmt: skip


@pytest.mark.parametrize("name", APART)
def test_what_is_another_function_stays(name: str) -> None:
    assert run_pass(FuseActivation(), model_of(APART[name])).record.patches == 0


def test_gate_of_another_slope_is_a_hard_sigmoid_only() -> None:
    done = check_pass(
        FuseActivation(), model_of("a = Add(x, three) c = Clip(a, zero, four) d = Div(c, four) y = Mul(x, d)")
    )
    assert [op for op in done.ops if op != "Constant"] == ["HardSigmoid", "Mul"]


def test_old_opsets() -> None:
    clip = "g (float[2, 9] x) => (float[2, 9] y) <float three = {3}, float six = {6}> { a = Add(x, three) c = Clip<min = 0.0, max = 6.0>(a) d = Div(c, six) y = Mul(x, d) }"
    done = check_pass(FuseActivation(), f'<ir_version: 6, opset_import: ["" : 9]> {clip}')
    assert done.ops == ["HardSigmoid", "Mul"]
    assert run_pass(FuseActivation(), model_of(FUSED["mish"][0], opset=17)).record.patches == 0
