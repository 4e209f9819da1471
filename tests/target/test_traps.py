"""What keeps the installed ONNX Runtime from fusing a quantized model, or makes it compute wrongly.

Each trap is a model that falls into it, run by the runtime, beside one that does not; the validator has to tell them
apart without running them.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnx.parser
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from graphopt.errors import GraphoptError
from graphopt.graph import Model, read_model
from graphopt.runtime import run, session
from graphopt.target import audit, find_target, validate

HEAD = '<ir_version: 10, opset_import: ["" : {opset}, "com.microsoft" : 1]> '
GRIDS = (
    "float s = {0.05}, float s2 = {0.1}, uint8 z = {0}, uint8 z9 = {128}, int8 i0 = {0}, int8 low = {-128}, "
    "float ws = {0.01}, float bs = {0.0005}, float unit = {0.00392157}"
)


def model(body: str, inputs: str, output: str, weights: dict[str, np.ndarray[Any, Any]], opset: int = 17) -> Model:
    """Parse a graph whose named weights become initializers."""
    proto = onnx.parser.parse_model(f"{HEAD.format(opset=opset)} g ({inputs}) => ({output}) <{GRIDS}> {{ {body} }}")
    for name, values in weights.items():
        proto.graph.initializer.append(numpy_helper.from_array(values, name))
    return read_model(proto)


def integers(*shape: int, kind: type = np.int8, seed: int = 0) -> np.ndarray[Any, Any]:
    ends = np.iinfo(kind)
    return np.random.default_rng(seed).integers(max(ends.min, -127), min(ends.max, 255), shape).astype(kind)


def rules(found: Model, target: str = "ort-cpu") -> set[str]:
    return {each.rule for each in validate(found, find_target(target))}


def image(body: str, opset: int = 17, **weights: Any) -> Model:
    """Return a model of an image x, its rounded form xq and restored form xd, and a restored weight wd."""
    head = "xq = QuantizeLinear(x, s, z9) xd = DequantizeLinear(xq, s, z9) wd = DequantizeLinear(w, ws, i0) "
    given: dict[str, Any] = {"w": integers(8, 8, 1, 1), **weights}
    return model(head + body, "float[1, 8, 8, 8] x", "float[1, 8, p, q] y", given, opset)


def matrices(body: str, rows: str = "b", **weights: Any) -> Model:
    """Return a model of rows x, their restored form xd, and weights."""
    head = "xq = QuantizeLinear(x, s, z9) xd = DequantizeLinear(xq, s, z9) "
    return model(head + body, f"float[{rows}, 32] x", "float[p, q] y", weights)


ROUNDED = "a = Conv(xd, wd) aq = QuantizeLinear(a, s, z9) b = DequantizeLinear(aq, s, z9) "
END = " q = QuantizeLinear(c, s, z9) y = DequantizeLinear(q, s, z9)"

# ------------------------------------------------------------------------------------------- signed activations


def residual(number: str) -> Model:
    zero = {"uint8": "z9", "int8": "i0"}[number]
    body = (
        f"xq = QuantizeLinear(x, s, {zero}) xd = DequantizeLinear(xq, s, {zero}) wd = DequantizeLinear(w, ws, i0) "
        f"c = Conv(xd, wd) cq = QuantizeLinear(c, s, {zero}) cd = DequantizeLinear(cq, s, {zero}) "
        f"a = Add(cd, xd) aq = QuantizeLinear(a, s, {zero}) y = DequantizeLinear(aq, s, {zero})"
    )
    return model(body, "float[1, 8, 8, 8] x", "float[1, 8, 8, 8] y", {"w": integers(8, 8, 1, 1)})


def test_shared_signed_rounding_never_fuses() -> None:
    trap, right = residual("int8"), residual("uint8")
    assert audit(trap, compare=False).integer_count == 0
    assert dict(audit(right, compare=False).integer) == {"QLinearAdd": 1, "QLinearConv": 1}
    assert rules(trap) == {"shared-signed"}
    assert rules(right) == set()


def test_shared_signed_rounding_fuses_where_the_runtime_keeps_signed_activations() -> None:
    trap = residual("int8")
    assert dict(audit(trap, "ort-cpu-arm64", compare=False).integer) == {"QLinearAdd": 1, "QLinearConv": 1}
    assert rules(trap, "ort-cpu-arm64") == set()


# -------------------------------------------------------------------------------------- scales along the wrong axis


@pytest.mark.parametrize("outputs", [32, 24])
def test_scales_along_the_inputs_of_a_matrix_are_wrong_numbers_or_no_numbers(outputs: int) -> None:
    weight, rng = integers(32, outputs), np.random.default_rng(1)
    given: dict[str, Any] = {
        "w": weight,
        "steps": rng.uniform(0.001, 0.05, 32).astype(np.float32),
        "zeros": np.zeros(32, np.int8),
    }
    body = "wd = DequantizeLinear<axis = 0>(w, steps, zeros) c = MatMul(xd, wd)" + END
    trap = matrices(body, **given)
    broken = {each.rule: each for each in validate(trap, find_target("ort-cpu"))}
    assert set(broken) == {"weight-axis"}
    assert broken["weight-axis"].serious
    feed = {"x": rng.standard_normal((4, 32)).astype(np.float32) * 3}
    plain = run(session(trap, optimize="off"), feed)["y"]
    if tuple(map(int, onnxruntime.__version__.split(".")[:2])) >= (1, 32):  # it leaves such products float
        np.testing.assert_allclose(run(session(trap), feed)["y"], plain, atol=1e-4)
    elif outputs == 32:
        assert np.abs(run(session(trap), feed)["y"] - plain).max() > 0.2
    else:
        with pytest.raises(GraphoptError):
            run(session(trap), feed)
    given |= {"steps": rng.uniform(0.001, 0.01, outputs).astype(np.float32), "zeros": np.zeros(outputs, np.int8)}
    right = matrices(body.replace("axis = 0", "axis = 1"), **given)
    assert rules(right) == set()
    error = audit(right, feeds=[feed]).optimization_error
    assert error is not None
    assert error < 0.02


# ----------------------------------------------------------------------------------- Relu and Clip before rounding


@pytest.mark.parametrize(
    ("activation", "zero", "fuses"),
    [
        ("r = Relu(c)", "z", True),
        ("r = Relu(c)", "z9", False),
        ("r = Clip(c, lo, hi)", "z", False),
        ("r = Clip(c, lo, wide)", "z", True),
    ],
)
def test_activation_before_rounding_fuses_where_the_grid_ends_with_it(activation: str, zero: str, fuses: bool) -> None:
    bounds: dict[str, Any] = {"lo": np.float32(0), "hi": np.float32(6), "wide": np.float32(255 * 0.05)}
    body = f"c = Conv(xd, wd) {activation} q = QuantizeLinear(r, s, {zero}) y = DequantizeLinear(q, s, {zero})"
    found = image(body, 17, **{name: np.asarray(each) for name, each in bounds.items()})
    assert audit(found, compare=False).integer.get("QLinearConv", 0) == int(fuses)
    assert rules(found) == (set() if fuses else {"cut-off"})


def test_zero_points_must_be_written_out() -> None:
    body = (
        "p = Reshape(xd, shape) c = Identity(p) q = QuantizeLinear(c, s) r = DequantizeLinear(q, s) "
        "y = Reshape(r, back)"
    )
    shapes: dict[str, Any] = {"shape": np.array([1, 8, 64]), "back": np.array([1, 8, 8, 8])}
    assert "written-zero" in rules(image(body, **shapes))
    assert "written-zero" not in rules(
        image(body.replace("(c, s)", "(c, s, z)").replace("(q, s)", "(q, s, z)"), **shapes)
    )


# ----------------------------------------------------------------------------------------------- scale unification


def pooled(behind: str) -> Model:
    body = (
        f"p = MaxPool<kernel_shape = [2, 2]>(xd) pq = QuantizeLinear(p, {behind}, z9) "
        f"d = DequantizeLinear(pq, {behind}, z9) c = Conv(d, wd)" + END
    )
    return image(body)


def test_data_movement_fuses_on_equal_grids_alone() -> None:
    assert audit(pooled("s"), compare=False).conversions == 2
    assert audit(pooled("s2"), compare=False).conversions == 4
    assert rules(pooled("s")) == set()
    assert rules(pooled("s2")) == {"equal-grids"}


def test_residual_add_needs_both_inputs_rounded() -> None:
    body = (
        "t = Tanh(x) cd = Conv(xd, wd) cq = QuantizeLinear(cd, s, z9) d = DequantizeLinear(cq, s, z9) c = Add(d, {0})"
        + END
    )
    assert audit(image(body.format("xd")), compare=False).integer.get("QLinearAdd") == 1
    assert "QLinearAdd" not in audit(image(body.format("t")), compare=False).integer
    assert rules(image(body.format("xd"))) == set()
    assert rules(image(body.format("t"))) == {"all-inputs"}


# ---------------------------------------------------------------------------------------------------------- biases


def test_bias_on_another_scale_stays_float() -> None:
    bias = integers(8, kind=np.int8, seed=3).astype(np.int32) * 40
    body = "bd = DequantizeLinear(b, {0}) c = Conv(xd, wd, bd)" + END
    right, wrong = image(body.format("bs"), b=bias), image(body.format("ws"), b=bias)
    assert audit(right, compare=False).integer_count == 1
    assert audit(wrong, compare=False).integer_count == 0
    assert rules(right) == set()
    assert rules(wrong) == {"bias-scale"}


@pytest.mark.parametrize("tail", ["y = Gemm(xd, wd, bd)", "c = Gemm(xd, wd, bd)" + END])
def test_bias_of_a_gemm_on_another_scale_is_added_wrongly(tail: str) -> None:
    """Other than a convolution it is fused, as if the integers lay on the product of the scales."""
    given: dict[str, Any] = {"w": integers(32, 32), "b": np.arange(32, dtype=np.int32) * 100}
    head = "wd = DequantizeLinear(w, ws, i0) bd = DequantizeLinear(b, {0}) "
    right, wrong = (matrices(head.format(scale) + tail, **given) for scale in ("bs", "ws"))
    feed = {"x": np.random.default_rng(1).standard_normal((4, 32)).astype(np.float32)}
    errors = [audit(each, feeds=[feed]).optimization_error or 0.0 for each in (right, wrong)]
    assert errors[0] < 0.02
    assert errors[1] > 0.3
    assert rules(right) == set()
    broken = validate(wrong, find_target("ort-cpu"))
    assert [(each.rule, each.serious) for each in broken] == [("gemm-bias", True)]


# --------------------------------------------------------------------------------------------------- linear layers


def dynamic(count: int, *, shared: bool) -> Model:
    weights: dict[str, np.ndarray[Any, Any]] = {f"w{each}": integers(32, 32, seed=each) for each in range(count)}
    weights |= {f"u{each}": np.asarray(0.01 * (each + 1), np.float32) for each in range(count)}
    parts, results = [], []
    for each in range(count):
        source = 0 if shared else each
        if each == source:
            parts.append(f"x{each}, s{each}, z{each} = DynamicQuantizeLinear(x)")
        parts.append(
            f"m{each} = MatMulInteger(x{source}, w{each}, z{source}, i0) f{each} = Cast<to = 1>(m{each}) "
            f"k{each} = Mul(s{source}, u{each}) r{each} = Mul(f{each}, k{each})"
        )
        results.append(f"r{each}")
    body = " ".join(parts) + f" y = Concat<axis = 1>({', '.join(results)})"
    grids = GRIDS
    text = f"{HEAD.format(opset=17)} g (float[b, 32] x) => (float[p, q] y) <{grids}> {{ {body} }}"
    proto = onnx.parser.parse_model(text.replace("float s2 = {0.1}, ", ""))
    for name, values in weights.items():
        proto.graph.initializer.append(numpy_helper.from_array(values, name))
    return read_model(proto)


@pytest.mark.parametrize("shared", [True, False])
def test_dynamic_rounding_of_one_tensor_is_merged_by_the_runtime_and_its_readers_fuse(shared: bool) -> None:
    """One rounding per reader or one for all: the runtime makes the first the second, and computes on integers."""
    found = audit(dynamic(3, shared=shared), compare=False)
    assert dict(found.integer) == {"MatMulIntegerToFloat": 3}
    assert found.floating_count == 0
    assert dict(audit(dynamic(1, shared=shared), compare=False).integer) == {"DynamicQuantizeMatMul": 1}


@pytest.mark.parametrize("rows", ["4", "b"])
def test_float_bias_behind_a_matrix_makes_a_float_gemm_where_sizes_are_known(rows: str) -> None:
    given: dict[str, Any] = {"w": integers(32, 16), "b": np.ones(16, np.float32), "bi": np.full(16, 2000, np.int32)}
    head = "wd = DequantizeLinear(w, ws, i0) p = MatMul(xd, wd) "
    trap = matrices(head + "y = Add(p, b)", rows, **given)
    right = matrices(head + "bd = DequantizeLinear(bi, bs) y = Add(p, bd)", rows, **given)
    assert "Gemm" in audit(trap, compare=False).floating
    assert audit(right, compare=False).integer_count == 1
    assert rules(trap) == {"float-sum"}
    assert rules(right) == set()


def test_table_that_is_restored_before_the_lookup_is_restored_whole() -> None:
    given: dict[str, Any] = {"t": integers(512, 32)}
    trap = model("d = DequantizeLinear(t, ws, i0) y = Gather(d, i)", "int64[n] i", "float[n, 32] y", given)
    body = "r = Gather(t, i) y = DequantizeLinear(r, ws, i0)"
    right = model(body, "int64[n] i", "float[n, 32] y", given)
    assert rules(trap) == {"whole-table"}
    assert rules(right) == set()


# ------------------------------------------------------------------------------------------------- convolutions


def depthwise(*, joined: bool) -> Model:
    given: dict[str, Any] = {"w": integers(8, 8, 1, 1), "d": integers(8, 1, 3, 3)}
    pair = "q{0} = QuantizeLinear({1}, s, z9) d{0} = DequantizeLinear(q{0}, s, z9) "
    body = "dd = DequantizeLinear(d, ws, i0) "
    if joined:
        body += "c0 = Conv(xd, wd) " + pair.format(0, "c0") + "c1 = Conv<group = 8>(d0, dd) " + pair.format(1, "c1")
        body += "c = Conv(d1, wd)" + END
    else:
        body += (
            "t = Tanh(x) "
            + pair.format(0, "t")
            + "c1 = Conv<group = 8>(d0, dd) "
            + pair.format(1, "c1")
            + "y = Tanh(d1)"
        )
    return image(body, **given)


def test_depthwise_convolution_between_float_operators_is_named() -> None:
    assert rules(depthwise(joined=False)) == {"lonely-depthwise"}
    assert rules(depthwise(joined=True)) == set()


def test_silu_fuses_with_pairs_inside_alone() -> None:
    open_gate = image("a = Conv(xd, wd) g = Sigmoid(a) c = Mul(a, g)" + END)
    body = (
        "a = Conv(xd, wd) aq = QuantizeLinear(a, s, z9) ad = DequantizeLinear(aq, s, z9) g = Sigmoid(ad) "
        "gq = QuantizeLinear(g, unit, z) gd = DequantizeLinear(gq, unit, z) c = Mul(ad, gd)"
    )
    closed = image(body + END)
    assert audit(open_gate, compare=False).integer_count == 0
    assert dict(audit(closed, compare=False).integer) == {"QLinearConv": 1, "QLinearMul": 1, "QLinearSigmoid": 1}
    assert rules(open_gate) == {"open-gate"}
    assert rules(closed) == set()


def test_float_weight_between_pairs_is_rounded_by_the_runtime_with_one_scale() -> None:
    weight = np.random.default_rng(0).standard_normal((8, 8, 1, 1)).astype(np.float32)
    weight *= np.geomspace(0.001, 1, 8, dtype=np.float32).reshape(8, 1, 1, 1)
    found = image("c = Conv(xd, f)" + END, f=weight)
    assert audit(found, compare=False).integer.get("QLinearConv") == 1
    assert rules(found) == {"float-weight"}


def test_weight_zero_points_other_than_zero_are_named() -> None:
    given: dict[str, Any] = {
        "v": integers(8, 8, 1, 1),
        "vs": np.full(8, 0.01, np.float32),
        "vz": np.arange(8, dtype=np.int8),
    }
    found = image("vd = DequantizeLinear<axis = 0>(v, vs, vz) c = Conv(xd, vd)" + END, **given)
    assert rules(found) == {"weight-zeros"}
    given["vz"] = np.zeros(8, np.int8)
    assert rules(image("vd = DequantizeLinear<axis = 0>(v, vs, vz) c = Conv(xd, vd)" + END, **given)) == set()


def test_signed_activations_by_unsigned_weights_have_no_kernel() -> None:
    body = (
        "xs = QuantizeLinear(x, s, i0) xr = DequantizeLinear(xs, s, i0) vd = DequantizeLinear(v, ws, z9) "
        "c = Conv(xr, vd) q = QuantizeLinear(c, s, i0) y = DequantizeLinear(q, s, i0)"
    )
    found = image(body, v=integers(8, 8, 1, 1, kind=np.uint8))
    assert rules(found, "ort-cpu-arm64") == {"number-pair", "weight-zeros"}


def test_sixteen_bits_stay_float() -> None:
    body = (
        "xs = QuantizeLinear(x, s, wide) xr = DequantizeLinear(xs, s, wide) c = Conv(xr, wd) "
        "q = QuantizeLinear(c, s, wide) y = DequantizeLinear(q, s, wide)"
    )
    found = image(body, opset=21, wide=np.asarray(32768, np.uint16))
    assert audit(found, compare=False).integer_count == 0
    assert rules(found) == {"eight-bits"}


@pytest.mark.parametrize(
    ("body", "fused"),
    [
        ("y = Conv(xd, wd)", 0),  # no rounding behind it
        ("a = Conv(xd, wd) c = LeakyRelu(a)" + END, 0),
        ("a = Conv(xd, wd) c = HardSwish(a)" + END, 0),
        (ROUNDED + "c = LeakyRelu(b)" + END, 2),
        (ROUNDED + "c = HardSwish(b)" + END, 1),
        (
            ROUNDED + "c = Conv(b, wd) t = Tanh(a)" + END.replace("y =", "e =") + " y = Sub(t, e)",
            1,
        ),  # two kinds of readers
        ("y = Concat<axis = 1>(xd, xd)", 0),
        ("c = Concat<axis = 1>(xd, xd)" + END, 1),
    ],
)
def test_what_stands_between_an_operator_and_its_rounding(body: str, fused: int) -> None:
    assert audit(image(body), compare=False).integer_count == fused


@pytest.mark.parametrize(
    ("body", "fused"),
    [
        ("y = Gemm(xd, wd, fb)", 0),  # a float bias, and nothing rounds the result
        ("y = Gemm(xd, wd, bd)", 1),
        ("y = Gemm<alpha = 0.5>(xd, wd, bd)", 0),
        ("y = Gemm<beta = 2.0>(xd, wd, bd)", 0),
        ("c = Gemm(xd, wd, fb)" + END, 1),
    ],
)
def test_gemm_is_fused_with_an_integer_bias_or_rounded_behind(body: str, fused: int) -> None:
    given: dict[str, Any] = {"w": integers(32, 16), "fb": np.ones(16, np.float32), "bi": np.full(16, 2000, np.int32)}
    head = "wd = DequantizeLinear(w, ws, i0) bd = DequantizeLinear(bi, bs) "
    assert audit(matrices(head + body, **given), compare=False).integer_count == fused


# --------------------------------------------------------------------------------------------------- few bits


def few_bits(level: int | None, bits: int = 2) -> Model:
    attrs: dict[str, Any] = {"K": 32, "N": 16, "bits": bits, "block_size": 32}
    if level is not None:
        attrs["accuracy_level"] = level
    node = helper.make_node("MatMulNBits", ["x", "w", "s"], ["y"], name="few", domain="com.microsoft", **attrs)
    ends = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", size]) for name, size in (("x", 32), ("y", 16))
    ]
    given: dict[str, Any] = {"w": integers(16, 1, 4 * bits, kind=np.uint8), "s": np.full(16, 0.1, np.float32)}
    constants = [numpy_helper.from_array(each, name) for name, each in given.items()]
    graph = helper.make_graph([node], "g", ends[:1], ends[1:], constants)
    imports = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)]
    return read_model(helper.make_model(graph, opset_imports=imports, ir_version=9))


def test_two_bits_without_an_accuracy_level_are_named() -> None:
    assert rules(few_bits(None)) == {"accuracy-level"}
    assert rules(few_bits(0)) == {"accuracy-level"}
    assert rules(few_bits(4)) == set()
    assert rules(few_bits(None, bits=4)) == set()


@pytest.mark.parametrize(
    ("axis", "turned", "rule"), [(0, False, None), (1, False, "block-axis"), (1, True, "turned-weight")]
)
def test_blocks_lie_along_the_inputs_of_the_matrix_itself(axis: int, turned: bool, rule: str | None) -> None:
    size = (32, 64) if turned else (64, 32)
    scales = np.full((2, 32) if axis == 0 else (size[0], size[1] // 32), 0.01, np.float32)
    body = f"d = DequantizeLinear<axis = {axis}, block_size = 32>(w, steps) "
    body += "t = Transpose<perm = [1, 0]>(d) y = MatMul(x, t)" if turned else "y = MatMul(x, d)"
    given: dict[str, Any] = {"w": integers(*size), "steps": scales}
    found = model(body, "float[n, 64] x", "float[n, 32] y", given, opset=21)
    assert rules(found) == ({rule} if rule else set())
    fused = audit(found, compare=False).integer.get("MatMulNBits", 0)
    assert fused == int(rule is None)
