"""fuse-rms-norm: the steps of a normalization by the root mean square become one RMSNormalization."""

# ruff: noqa: E501 - the tables hold one model per line

from __future__ import annotations

import numpy as np
import onnx.parser
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import numpy_helper

from graphopt.graph import Model, read_model
from graphopt.passes.fuse.fuse_rms_norm import FuseRmsNorm
from pass_oracle import check_pass, run_pass

CONSTANTS = (
    "two = Constant<value_float = 2.0>() half = Constant<value_float = 0.5>() minus = Constant<value_float = -0.5>() "
    "one = Constant<value_float = 1.0>() e = Constant<value_float = 0.000001>() ax = Constant<value_ints = [-1]>()"
)


def model_of(
    body: str, opset: int = 23, x: str = "float[N, 3, 8]", extra: str = "", y: str = "float[N, 3, 8]"
) -> Model:
    text = f'<ir_version: 10, opset_import: ["" : {opset}]> g ({x} x{extra}) => ({y} y) {{ {CONSTANTS} {body} }}'
    return read_model(onnx.parser.parse_model(text))


MEAN = "q = Pow(x, two) v = ReduceMean(q, ax) a = Add(v, e)"
FUSED = {
    "div": f"{MEAN} s = Sqrt(a) y = Div(x, s)",
    "one over": f"{MEAN} s = Sqrt(a) r = Div(one, s) y = Mul(x, r)",
    "reciprocal": f"{MEAN} s = Sqrt(a) r = Reciprocal(s) y = Mul(r, x)",
    "power": f"{MEAN} r = Pow(a, minus) y = Mul(x, r)",
    "square by mul": "q = Mul(x, x) v = ReduceMean(q, ax) a = Add(e, v) s = Sqrt(a) y = Div(x, s)",
    "no epsilon": "q = Mul(x, x) v = ReduceMean(q, ax) s = Sqrt(v) y = Div(x, s)",
}  # fmt: skip


@pytest.mark.parametrize("name", FUSED)
def test_steps_become_one_node(name: str) -> None:
    done = check_pass(FuseRmsNorm(), model_of(FUSED[name]))
    assert [op for op in done.ops if op != "Constant"] == ["RMSNormalization"]


@pytest.mark.parametrize("order", ["n, w", "w, n"])
def test_fed_scale(order: str) -> None:
    done = check_pass(
        FuseRmsNorm(), model_of(f"{FUSED['div'].replace('y =', 'n =')} y = Mul({order})", extra=", float[8] w")
    )
    assert [op for op in done.ops if op != "Constant"] == ["RMSNormalization"]


def test_constant_factors_are_multiplied() -> None:
    body = f"w = Constant<value_floats = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0]>() {FUSED['div'].replace('y =', 'n =')} u = Mul(n, half) y = Mul(w, u)"
    done = check_pass(FuseRmsNorm(), model_of(body))
    assert [op for op in done.ops if op != "Constant"] == ["RMSNormalization"]


APART = {
    "exponent 3": "t = Constant<value_float = 3.0>() q = Pow(x, t) v = ReduceMean(q, ax) a = Add(v, e) s = Sqrt(a) y = Div(x, s)",
    "numerator of another": f"{MEAN} s = Sqrt(a) n = Neg(x) y = Div(n, s)",
    "first axis": "f = Constant<value_ints = [0]>() q = Mul(x, x) v = ReduceMean(q, f) a = Add(v, e) s = Sqrt(a) y = Div(x, s)",
    "sum": "q = Mul(x, x) v = ReduceSum(q, ax) a = Add(v, e) s = Sqrt(a) y = Div(x, s)",
    "negative epsilon": "q = Mul(x, x) v = ReduceMean(q, ax) a = Add(v, minus) s = Sqrt(a) y = Div(x, s)",
    "two over": f"{MEAN} s = Sqrt(a) r = Div(two, s) y = Mul(x, r)",
    "shared root": f"{MEAN} s = Sqrt(a) d = Div(x, s) y = Add(d, s)",
}  # fmt: skip


@pytest.mark.parametrize("name", APART)
def test_what_is_another_function_stays(name: str) -> None:
    assert run_pass(FuseRmsNorm(), model_of(APART[name])).record.patches == 0


def test_old_opset_stays() -> None:
    assert run_pass(FuseRmsNorm(), model_of(FUSED["div"], opset=22)).record.patches == 0


def test_dynamic_axis_is_refused() -> None:
    done = run_pass(FuseRmsNorm(), model_of(FUSED["div"], x="float[N, D]", y="float[N, D]"))
    assert "sizes of the last 1 axes" in next(iter(done.skips.values()))


def test_float16_is_refused_and_said() -> None:
    text = '<ir_version: 10, opset_import: ["" : 23]> g (float16[2, 8] x, float16 e) => (float16[2, 8] y) { ax = Constant<value_ints = [-1]>() q = Mul(x, x) v = ReduceMean(q, ax) a = Add(v, e) s = Sqrt(a) y = Div(x, s) }'
    proto = onnx.parser.parse_model(text)
    proto.graph.input.pop()
    proto.graph.initializer.append(numpy_helper.from_array(np.array(1e-3, np.float16), "e"))
    assert "16 bits" in next(iter(run_pass(FuseRmsNorm(), read_model(proto)).skips.values()))


def test_casts_around() -> None:
    text = f'<ir_version: 10, opset_import: ["" : 23]> g (float16[2, 8] h, float16[8] w) => (float16[2, 8] y) {{ {CONSTANTS} x = Cast<to = 1>(h) {FUSED["div"].replace("y =", "z =")} n = Cast<to = 10>(z) y = Mul(w, n) }}'
    done = check_pass(FuseRmsNorm(), text)
    assert [op for op in done.ops if op != "Constant"] == ["RMSNormalization"]


def test_golden(golden) -> None:  # type: ignore[no-untyped-def]
    golden(check_pass(FuseRmsNorm(), model_of(FUSED["one over"])).text)


@settings(max_examples=20, deadline=None)
@given(
    st.lists(st.integers(0, 4), max_size=3),
    st.integers(1, 9),
    st.sampled_from([name for name in FUSED if name != "no epsilon"]),
    st.integers(0, 2**32 - 1),
)
def test_any_shape(outer: list[int], inner: int, name: str, seed: int) -> None:
    shape = ", ".join(map(str, [*outer, inner]))
    random = np.random.default_rng(seed)
    feeds = [{"x": (random.standard_normal((*outer, inner)) * 3).astype(np.float32)} for _ in range(2)]
    done = check_pass(FuseRmsNorm(), model_of(FUSED[name], x=f"float[{shape}]", y=f"float[{shape}]"), feeds)  # type: ignore[arg-type]
    assert done.record.patches == 1
