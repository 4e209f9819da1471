"""fuse-gelu: erf and tanh forms become one Gelu."""

# ruff: noqa: E501 - the tables hold one model per line

from __future__ import annotations

import numpy as np
import onnx.parser
import pytest
from onnx import numpy_helper

from graphopt.graph import Model, read_model
from graphopt.passes.fuse.fuse_gelu import FuseGelu
from pass_oracle import check_pass, run_pass

NUMBERS = {
    "half": 0.5, "one": 1.0, "two": 2.0, "three": 3.0, "root2": 1.4142135, "inv2": 0.70710677, "k": 0.044715,
    "rootpi": 0.7978845608, "kp": 0.035677408, "c17": 1.7, "mone": -1.0, "zero9": 0.9,
}  # fmt: skip
CONSTANTS = " ".join(f"{name} = Constant<value_float = {value}>()" for name, value in NUMBERS.items())


def model_of(body: str, opset: int = 20, kind: str = "float") -> Model:
    if kind == "float":
        text = f'<ir_version: 9, opset_import: ["" : {opset}]> g ({kind}[N, 8] x) => ({kind}[N, 8] y) {{ {CONSTANTS} {body} }}'
        return read_model(onnx.parser.parse_model(text))
    text = f'<ir_version: 9, opset_import: ["" : {opset}]> g ({kind}[N, 8] x) => ({kind}[N, 8] y) {{ {body} }}'
    proto = onnx.parser.parse_model(text)
    dtype = {"float16": np.float16, "double": np.float64}[kind]
    proto.graph.initializer.extend(
        numpy_helper.from_array(np.array(value, dtype), name) for name, value in NUMBERS.items()
    )
    return read_model(proto)


ERF = {
    "torch": "d = Div(x, root2) e = Erf(d) a = Add(e, one) m = Mul(x, a) y = Mul(m, half)",
    "half first": "h = Mul(x, half) d = Mul(x, inv2) e = Erf(d) a = Add(one, e) y = Mul(h, a)",
    "half on the curve": "d = Mul(inv2, x) e = Erf(d) a = Add(one, e) b = Mul(half, a) y = Mul(b, x)",
    "affine curve": "d = Mul(inv2, x) e = Erf(d) b = Mul(half, e) a = Add(half, b) y = Mul(a, x)",
    "divided by two": "d = Mul(inv2, x) e = Erf(d) a = Add(one, e) b = Mul(x, a) y = Div(b, two)",
    "x over two": "h = Div(x, two) d = Mul(x, inv2) e = Erf(d) a = Add(one, e) y = Mul(h, a)",
}  # fmt: skip
TANH = {
    "torch": "q = Pow(x, three) k3 = Mul(q, k) s = Add(x, k3) r = Mul(s, rootpi) t = Tanh(r) a = Add(t, one) h = Mul(x, half) y = Mul(h, a)",
    "products": "q = Mul(x, x) q3 = Mul(x, q) k3 = Mul(k, q3) s = Add(x, k3) r = Mul(rootpi, s) t = Tanh(r) a = Add(t, one) b = Mul(half, a) y = Mul(x, b)",
    "fast": "q = Mul(x, x) k2 = Mul(q, k) s = Add(k2, one) r = Mul(x, rootpi) z = Mul(r, s) t = Tanh(z) a = Add(t, one) h = Mul(x, half) y = Mul(h, a)",
    "two coefficients": "q = Mul(x, x) k2 = Mul(q, kp) s = Add(k2, rootpi) z = Mul(x, s) t = Tanh(z) a = Add(one, t) b = Mul(x, a) y = Mul(b, half)",
}  # fmt: skip


@pytest.mark.parametrize("name", ERF)
@pytest.mark.parametrize("kind", ["float", "float16"])
def test_erf_form(name: str, kind: str) -> None:
    done = check_pass(FuseGelu(), model_of(ERF[name], kind=kind))
    assert [op for op in done.ops if op != "Constant"] == ["Gelu"]


@pytest.mark.parametrize("name", TANH)
@pytest.mark.parametrize("kind", ["float", "float16"])
def test_tanh_form(name: str, kind: str) -> None:
    done = check_pass(FuseGelu(), model_of(TANH[name], kind=kind))
    gelu = [node for _, node in done.model.walk() if node.op != "Constant"]
    assert [node.op for node in gelu] == ["Gelu"]
    assert gelu[0].attrs["approximate"] == "tanh"


def test_missing_half_becomes_a_factor() -> None:
    done = check_pass(FuseGelu(), model_of("d = Div(x, root2) e = Erf(d) a = Add(e, one) y = Mul(x, a)"))
    assert [op for op in done.ops if op != "Constant"] == ["Gelu", "Mul"]


APART = {
    "other slope": "d = Mul(x, half) e = Erf(d) a = Add(e, one) m = Mul(x, a) y = Mul(m, half)",
    "other shift": "d = Div(x, root2) e = Erf(d) a = Add(e, zero9) m = Mul(x, a) y = Mul(m, half)",
    "negative shift": "d = Div(x, root2) e = Erf(d) a = Add(e, mone) m = Mul(x, a) y = Mul(m, half)",
    "complement": "d = Div(x, root2) e = Erf(d) a = Sub(one, e) m = Mul(x, a) y = Mul(m, half)",
    "other partner": "n = Neg(x) d = Div(x, root2) e = Erf(d) a = Add(e, one) m = Mul(n, a) y = Mul(m, half)",
    "root over x": "d = Div(root2, x) e = Erf(d) a = Add(e, one) m = Mul(x, a) y = Mul(m, half)",
    "square of the curve": "d = Div(x, root2) e = Erf(d) a = Add(e, one) y = Mul(a, a)",
    "shared curve": "d = Div(x, root2) e = Erf(d) a = Add(e, one) m = Mul(x, a) n = Mul(m, half) y = Add(n, e)",
    "other cubic": "q = Pow(x, three) k3 = Mul(q, half) s = Add(x, k3) r = Mul(s, rootpi) t = Tanh(r) a = Add(t, one) h = Mul(x, half) y = Mul(h, a)",
    "fourth power": "q = Pow(x, two) q4 = Pow(q, two) k3 = Mul(q4, k) s = Add(x, k3) r = Mul(s, rootpi) t = Tanh(r) a = Add(t, one) h = Mul(x, half) y = Mul(h, a)",
}  # fmt: skip


@pytest.mark.parametrize("name", APART)
def test_what_is_another_function_stays(name: str) -> None:
    assert run_pass(FuseGelu(), model_of(APART[name])).record.patches == 0


def test_old_opset_stays() -> None:
    assert run_pass(FuseGelu(), model_of(ERF["torch"], opset=19)).record.patches == 0


@pytest.mark.parametrize("form", [ERF["torch"], TANH["torch"]], ids=["erf", "tanh"])
def test_double_has_no_right_kernel(form: str) -> None:
    """There is none of Erf, and that of Gelu takes its constants from float32: it is off by 6e-9."""
    done = run_pass(FuseGelu(), model_of(form, kind="double"), verify="fast")
    assert "no Gelu" in next(iter(done.skips.values()))


def test_constants_that_add_axes_stay() -> None:
    text = '<ir_version: 9, opset_import: ["" : 20]> g (float[8] x) => (float[1, 8] y) <float[1, 1] r = {0.70710677}, float o = {1}, float h = {0.5}> { d = Mul(x, r) e = Erf(d) a = Add(e, o) m = Mul(x, a) y = Mul(m, h) }'
    assert run_pass(FuseGelu(), text).record.patches == 0


def test_golden(golden) -> None:  # type: ignore[no-untyped-def]
    golden(check_pass(FuseGelu(), model_of(TANH["torch"])).text)
