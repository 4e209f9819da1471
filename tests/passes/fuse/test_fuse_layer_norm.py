"""fuse-layer-norm: the steps of a normalization become one LayerNormalization."""

# ruff: noqa: E501 - the tables hold one model per line

from __future__ import annotations

import numpy as np
import onnx.parser
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import numpy_helper

from graphopt.graph import Model, read_model
from graphopt.passes.fuse.fuse_layer_norm import FuseLayerNorm
from pass_oracle import check_pass, run_pass

CONSTANTS = "two = Constant<value_float = 2.0>() half = Constant<value_float = 0.5>() minus = Constant<value_float = -0.5>() one = Constant<value_float = 1.0>() e = Constant<value_float = 0.00001>()"
AXES = "ax = Constant<value_ints = [-1]>()"
FLOAT16_STEPS = "m = ReduceMean<axes = [-1]>(x) c = Sub(x, m) q = Mul(c, c) v = ReduceMean<axes = [-1]>(q) a = Add(v, e) s = Sqrt(a)"


def model_of(
    body: str, opset: int = 17, x: str = "float[N, 3, 8]", extra: str = "", y: str = "float[N, 3, 8]"
) -> Model:
    text = f'<ir_version: 8, opset_import: ["" : {opset}]> g ({x} x{extra}) => ({y} y) {{ {CONSTANTS} {body} }}'
    return read_model(onnx.parser.parse_model(text))


MEAN = "m = ReduceMean<axes = [-1]>(x) c = Sub(x, m)"
VARIANCE = f"{MEAN} q = Pow(c, two) v = ReduceMean<axes = [-1]>(q) a = Add(v, e)"

FUSED = {
    "div": f"{VARIANCE} s = Sqrt(a) y = Div(c, s)",
    "square by mul": f"{MEAN} q = Mul(c, c) v = ReduceMean<axes = [-1]>(q) a = Add(e, v) s = Sqrt(a) y = Div(c, s)",
    "reciprocal": f"{VARIANCE} s = Sqrt(a) r = Reciprocal(s) y = Mul(c, r)",
    "reciprocal first": f"{VARIANCE} s = Sqrt(a) r = Reciprocal(s) y = Mul(r, c)",
    "one over": f"{VARIANCE} s = Sqrt(a) r = Div(one, s) y = Mul(c, r)",
    "power half": f"{VARIANCE} s = Pow(a, half) y = Div(c, s)",
    "power minus half": f"{VARIANCE} s = Pow(a, minus) y = Mul(c, s)",
    "integer exponent": f"{MEAN} i = Constant<value_int = 2>() q = Pow(c, i) v = ReduceMean<axes = [-1]>(q) a = Add(v, e) s = Sqrt(a) y = Div(c, s)",
    "two differences": f"{MEAN} d = Sub(x, m) q = Mul(d, d) v = ReduceMean<axes = [-1]>(q) a = Add(v, e) s = Sqrt(a) y = Div(c, s)",
    "two means": f"{MEAN} m2 = ReduceMean<axes = [2]>(x) d = Sub(x, m2) q = Mul(d, d) v = ReduceMean<axes = [-1]>(q) a = Add(v, e) s = Sqrt(a) y = Div(c, s)",
    "two axes": "m = ReduceMean<axes = [2, 1]>(x) c = Sub(x, m) q = Mul(c, c) v = ReduceMean<axes = [1, -1]>(q) a = Add(v, e) s = Sqrt(a) y = Div(c, s)",
    "no epsilon": f"{MEAN} q = Mul(c, c) v = ReduceMean<axes = [-1]>(q) s = Sqrt(v) y = Div(c, s)",
    "moments": f"{VARIANCE} s = Sqrt(a) r = Reciprocal(s) g = Constant<value_floats = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0]>() b = Constant<value_floats = [8.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0]>() n = Mul(r, g) f = Mul(x, n) h = Mul(m, n) k = Sub(b, h) y = Add(f, k)",
    "moments, Add swapped": f"{VARIANCE} s = Sqrt(a) r = Reciprocal(s) g = Constant<value_floats = [3.0]>() b = Constant<value_floats = [8.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0]>() n = Mul(g, r) f = Mul(n, x) h = Mul(n, m) k = Sub(b, h) y = Add(k, f)",
    "moments without scale": f"{VARIANCE} s = Sqrt(a) r = Reciprocal(s) f = Mul(x, r) h = Mul(m, r) y = Sub(f, h)",
}  # fmt: skip


@pytest.mark.parametrize("name", FUSED)
def test_steps_become_one_node(name: str) -> None:
    done = check_pass(FuseLayerNorm(), model_of(FUSED[name]))
    assert [op for op in done.ops if op != "Constant"] == ["LayerNormalization"]


APART = {
    "exponent 4": f"{MEAN} four = Constant<value_float = 4.0>() q = Pow(c, four) v = ReduceMean<axes = [-1]>(q) a = Add(v, e) s = Sqrt(a) y = Div(c, s)",
    "vector exponent": f"{MEAN} w = Constant<value_floats = [2.0, 2.0, 2.0, 2.0, 2.0, 2.0, 2.0, 3.0]>() q = Pow(c, w) v = ReduceMean<axes = [-1]>(q) a = Add(v, e) s = Sqrt(a) y = Div(c, s)",
    "first axis": "m = ReduceMean<axes = [1]>(x) c = Sub(x, m) q = Mul(c, c) v = ReduceMean<axes = [1]>(q) a = Add(v, e) s = Sqrt(a) y = Div(c, s)",
    "other axes": "m = ReduceMean<axes = [-1]>(x) c = Sub(x, m) q = Mul(c, c) v = ReduceMean<axes = [1, 2]>(q) a = Add(v, e) s = Sqrt(a) y = Div(c, s)",
    "epsilon behind the root": f"{MEAN} q = Mul(c, c) v = ReduceMean<axes = [-1]>(q) s = Sqrt(v) a = Add(s, e) y = Div(c, a)",
    "negative epsilon": f"{MEAN} q = Mul(c, c) v = ReduceMean<axes = [-1]>(q) a = Add(v, minus) s = Sqrt(a) y = Div(c, s)",
    "vector epsilon": f"{MEAN} q = Mul(c, c) v = ReduceMean<axes = [-1]>(q) w = Constant<value_floats = [1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0]>() a = Add(v, w) s = Sqrt(a) y = Div(c, s)",
    "reversed difference": "m = ReduceMean<axes = [-1]>(x) c = Sub(m, x) q = Mul(c, c) v = ReduceMean<axes = [-1]>(q) a = Add(v, e) s = Sqrt(a) y = Div(c, s)",
    "root over difference": f"{VARIANCE} s = Sqrt(a) y = Div(s, c)",
    "square of another": f"{MEAN} q = Mul(x, x) v = ReduceMean<axes = [-1]>(q) a = Add(v, e) s = Sqrt(a) y = Div(c, s)",
    "other mean": "m = ReduceMax<axes = [-1]>(x) c = Sub(x, m) q = Mul(c, c) v = ReduceMean<axes = [-1]>(q) a = Add(v, e) s = Sqrt(a) y = Div(c, s)",
}  # fmt: skip


@pytest.mark.parametrize("name", APART)
def test_what_is_another_function_stays(name: str) -> None:
    done = run_pass(FuseLayerNorm(), model_of(APART[name]))
    assert done.record.patches == 0


def test_dropped_dimension_stays() -> None:
    body = "m = ReduceMean<axes = [-1], keepdims = 0>(x) c = Sub(x, m) q = Mul(c, c) v = ReduceMean<axes = [-1], keepdims = 0>(q) a = Add(v, e) s = Sqrt(a) y = Div(c, s)"
    assert run_pass(FuseLayerNorm(), model_of(body, x="float[8, 8]", y="float[8, 8]")).record.patches == 0


def test_old_opset_stays() -> None:
    assert run_pass(FuseLayerNorm(), model_of(FUSED["div"], opset=16)).record.patches == 0


def test_shared_step_stays() -> None:
    text = f'<ir_version: 8, opset_import: ["" : 17]> g (float[2, 8] x) => (float[2, 8] y, float[2, 8] z) {{ {CONSTANTS} {FUSED["div"]} z = Neg(c) }}'
    assert run_pass(FuseLayerNorm(), text).record.patches == 0


def test_axes_as_an_input() -> None:
    body = f"{AXES} m = ReduceMean(x, ax) c = Sub(x, m) q = Mul(c, c) v = ReduceMean(q, ax) a = Add(v, e) s = Sqrt(a) y = Div(c, s)"
    done = check_pass(FuseLayerNorm(), model_of(body, opset=18))
    assert "LayerNormalization" in done.ops


def test_all_axes() -> None:
    body = "m = ReduceMean(x) c = Sub(x, m) q = Mul(c, c) v = ReduceMean(q) a = Add(v, e) s = Sqrt(a) y = Div(c, s)"
    done = check_pass(FuseLayerNorm(), model_of(body, x="float[3, 8]", y="float[3, 8]"))
    assert done.ops.count("LayerNormalization") == 1


def test_dynamic_axis_is_refused() -> None:
    done = run_pass(FuseLayerNorm(), model_of(FUSED["div"], x="float[N, 3, D]", y="float[N, 3, D]"))
    assert "sizes of the last 1 axes" in next(iter(done.skips.values()))


def test_float16_is_refused_and_said() -> None:
    text = f'<ir_version: 8, opset_import: ["" : 17]> g (float16[2, 8] x, float16 e) => (float16[2, 8] y) {{ {FLOAT16_STEPS} y = Div(c, s) }}'
    proto = onnx.parser.parse_model(text)
    proto.graph.input.pop()
    proto.graph.initializer.append(numpy_helper.from_array(np.array(1e-3, np.float16), "e"))
    done = run_pass(FuseLayerNorm(), read_model(proto))
    assert "16 bits" in next(iter(done.skips.values()))


def test_double_sums_in_double() -> None:
    text = f'<ir_version: 8, opset_import: ["" : 17]> g (double[2, 8] x) => (double[2, 8] y) <double e = {{0.0009765625}}> {{ {FLOAT16_STEPS} y = Div(c, s) }}'
    done = check_pass(FuseLayerNorm(), text)
    norm = next(node for _, node in done.model.walk() if node.op == "LayerNormalization")
    assert norm.attrs["stash_type"] == 11


def test_double_epsilon_that_is_no_float_stays() -> None:
    text = f'<ir_version: 8, opset_import: ["" : 17]> g (double[2, 8] x) => (double[2, 8] y) <double e = {{0.00001}}> {{ {FLOAT16_STEPS} y = Div(c, s) }}'
    assert run_pass(FuseLayerNorm(), text).record.patches == 0


def test_casts_around() -> None:
    text = f'<ir_version: 8, opset_import: ["" : 17]> g (float16[2, 8] h) => (float16[2, 8] y) {{ {CONSTANTS} x = Cast<to = 1>(h) {FUSED["div"].replace("y = Div", "z = Div")} y = Cast<to = 10>(z) }}'
    done = check_pass(FuseLayerNorm(), text)
    assert [op for op in done.ops if op != "Constant"] == ["LayerNormalization"]


AFFINE = {
    "scale": ("y = Mul(n, w)", 2),
    "scale first": ("y = Mul(w, n)", 2),
    "scale and bias": ("u = Mul(n, w) y = Add(u, b)", 3),
    "bias": ("y = Add(b, n)", 3),
    "scalar": ("y = Mul(n, half)", 2),
    "scalar then bias then scale": ("u = Mul(n, half) t = Add(u, b) y = Mul(t, w)", 3),
}


@pytest.mark.parametrize("name", AFFINE)
def test_factors_and_summands_become_scale_and_bias(name: str) -> None:
    body, inputs = AFFINE[name]
    weights = "w = Constant<value_floats = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0]>() b = Constant<value_floats = [8.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0]>()"
    done = check_pass(FuseLayerNorm(), model_of(f"{weights} {FUSED['div'].replace('y = Div', 'n = Div')} {body}"))
    norms = [node for _, node in done.model.walk() if node.op != "Constant"]
    assert [node.op for node in norms] == ["LayerNormalization"]
    assert len(norms[0].inputs) == inputs


def test_computed_scale_of_the_normalized_shape() -> None:
    body = f"{FUSED['div'].replace('y = Div', 'n = Div')} p = Neg(w) u = Mul(n, p) y = Add(u, w)"
    done = check_pass(FuseLayerNorm(), model_of(body, extra=", float[8] w"))
    assert sorted(op for op in done.ops if op != "Constant") == ["LayerNormalization", "Neg"]


@pytest.mark.parametrize(
    "extra", [", float[3, 8] w", ", float[1, 8] w", ", float[1] w", ", float[N, 3, 8] w", ", float[N, 3, 1] w"]
)
def test_computed_scale_of_another_shape_stays(extra: str) -> None:
    done = check_pass(
        FuseLayerNorm(), model_of(FUSED["div"].replace("y = Div", "n = Div") + " y = Mul(n, w)", extra=extra)
    )
    assert done.ops.count("Mul") == 1


def test_wider_constant_stays() -> None:
    norm = FUSED["div"].replace("y = Div", "n = Div")
    text = f'<ir_version: 8, opset_import: ["" : 17]> g (float[8] x) => (float[1, 8] y) <float[1, 8] w = {{1, 2, 3, 4, 5, 6, 7, 8}}> {{ {CONSTANTS} {norm} y = Mul(n, w) }}'
    done = check_pass(FuseLayerNorm(), text)
    assert done.ops.count("Mul") == 1


def test_overflowing_product_stays() -> None:
    norm = FUSED["div"].replace("y = Div", "n = Div")
    body = f"big = Constant<value_float = 1e30>() {norm} u = Mul(n, big) y = Mul(u, big)"
    done = run_pass(FuseLayerNorm(), model_of(body))
    assert done.ops.count("Mul") == 1


def test_graph_output_keeps_its_value() -> None:
    norm = FUSED["div"].replace("y = Div", "n = Div")
    text = f'<ir_version: 8, opset_import: ["" : 17]> g (float[2, 8] x) => (float[2, 8] y, float[2, 8] n) {{ {CONSTANTS} {norm} y = Mul(n, two) }}'
    done = check_pass(FuseLayerNorm(), text)
    assert done.ops.count("LayerNormalization") == 1
    assert done.ops.count("Mul") == 1


def test_golden(golden) -> None:  # type: ignore[no-untyped-def]
    body = f"{FUSED['div'].replace('y = Div', 'n = Div')} u = Mul(n, w) y = Add(u, b)"
    golden(check_pass(FuseLayerNorm(), model_of(body, extra=", float[8] w, float[8] b")).text)


@settings(max_examples=25, deadline=None)
@given(
    st.lists(st.integers(0, 4), min_size=0, max_size=3),
    st.lists(st.integers(1, 5), min_size=1, max_size=2),
    st.sampled_from([name for name in FUSED if name != "two axes" and not name.startswith("moments")]),
    st.integers(0, 2**32 - 1),
)
def test_any_shape(outer: list[int], inner: list[int], name: str, seed: int) -> None:
    shape = ", ".join(map(str, [*outer, *inner]))
    axes = list(range(-len(inner), 0))
    body = FUSED[name].replace("[-1]", str(axes)).replace("[2]", str(axes))
    model = model_of(body, x=f"float[{shape}]", y=f"float[{shape}]")
    random = np.random.default_rng(seed)
    feeds = [{"x": (random.standard_normal((*outer, *inner)) * 3 + 1).astype(np.float32)} for _ in range(2)]
    if name == "no epsilon":  # one element has no variance
        return
    done = check_pass(FuseLayerNorm(), model, feeds)  # type: ignore[arg-type]
    assert done.record.patches == 1
