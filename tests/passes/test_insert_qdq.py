"""insert-qdq: what it writes, what it leaves alone and why, and that the result computes what the float model did."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import onnx.parser
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from graph_strategies import small_models
from graphopt.errors import RecipeError
from graphopt.graph import Constant, Model, read_model, uses
from graphopt.passes.quantize import insert_qdq
from graphopt.passes.quantize.insert_qdq import InsertQdq
from graphopt.rewrite.manager import PassManager, PassRecord
from graphopt.rewrite.registry import create
from graphopt.runtime import Feeds, random_feeds, run, session
from graphopt.target import audit, placement
from pass_oracle import check_pass

if TYPE_CHECKING:
    from collections.abc import Callable

HEAD = '<ir_version: 8, opset_import: ["" : {opset}]>'
CONV = "g (float[1, 8, 8, 8] x, float[8, 8, 1, 1] w) => (float[1, 8, 8, 8] y) { y = Conv(x, w) }"
NET = (
    "g (float[n, 3, 16, 16] x, float[16, 3, 3, 3] w0, float[16] b0, float[16, 16, 3, 3] w1, float[10, 16] w2, "
    "float[10] b2) => (float[n, 10] y) "
    "{ c0 = Conv<pads = [1, 1, 1, 1]>(x, w0, b0) r0 = Relu(c0) c1 = Conv<pads = [1, 1, 1, 1]>(r0, w1) "
    "s = Add(c1, r0) r1 = Relu(s) p = GlobalAveragePool(r1) f = Flatten(p) y = Gemm<transB = 1>(f, w2, b2) }"
)


@pytest.fixture
def however_small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let layers be quantized that are too small to gain from it."""
    monkeypatch.setattr(placement, "PRODUCTS_PER_CONVERSION", 0)
    monkeypatch.setattr(insert_qdq, "PRODUCTS_PER_ROUNDING", 0)


def float_model(graph: str, opset: int = 17, seed: int = 0) -> Model:
    """Parse a graph whose inputs named w... and b... become random initializers."""
    proto = onnx.parser.parse_model(HEAD.format(opset=opset) + graph)
    random = np.random.default_rng(seed)
    for value in [each for each in proto.graph.input if each.name[0] in "wb"]:
        shape = [dim.dim_value for dim in value.type.tensor_type.shape.dim]
        array = random.standard_normal(shape) / np.sqrt(max(int(np.prod(shape[1:])), 1))
        proto.graph.initializer.append(numpy_helper.from_array(array.astype(np.float32), value.name))
        proto.graph.input.remove(value)
    for number, node in enumerate(proto.graph.node):
        node.name = f"{node.op_type}{number}"
    return read_model(proto)


def quantize(model: Model, *, data: bool = True, **options: Any) -> tuple[Model, PassRecord]:
    result = model.copy()
    feeds = random_feeds(model, count=8, seed=1) if data else None
    outcome = PassManager([InsertQdq(**options)], verify="full").run(result, feeds)
    return result, outcome.records[0]


def sqnr_db(model: Model, other: Model, data: Feeds) -> float:
    one, two = session(model), session(other)
    signal = noise = 0.0
    for feed in data:
        for left, right in zip(run(one, feed).values(), run(two, feed).values(), strict=True):
            signal += float(np.square(left, dtype=np.float64).sum())
            noise += float(np.square(left.astype(np.float64) - right).sum())
    return float(10 * np.log10(signal / noise)) if noise else 200.0


# ------------------------------------------------------------------------------------------------------ what it writes


@pytest.mark.usefixtures("however_small")
def test_residual_network(golden: Callable[[str], None]) -> None:
    model = float_model(NET)
    done = check_pass(InsertQdq(), model, random_feeds(model, count=8, seed=1))
    golden(done.text)


@pytest.mark.usefixtures("however_small")
def test_dynamic_layers_and_table(golden: Callable[[str], None]) -> None:
    model = float_model(
        "g (int64[n, s] i, float[256, 32] w0, float[32, 32] w1, float[32] b1) => (float[n, s, 32] y) "
        "{ e = Gather(w0, i) m = MatMul(e, w1) y = Add(m, b1) }"
    )
    golden(check_pass(InsertQdq(), model).text)


def test_file_shrinks_fourfold() -> None:
    model = float_model("g (float[n, 512] x, float[512, 512] w) => (float[n, 512] y) { y = MatMul(x, w) }")
    result, _ = quantize(model)
    assert len(result.to_bytes()) < len(model.to_bytes()) / 3.8


def test_every_weighted_layer_has_a_record() -> None:
    _, record = quantize(float_model(NET))
    assert [(layer.name, layer.op, layer.kept, layer.reverted) for layer in record.layers] == [
        ("Conv0", "Conv", True, False),
        ("Conv2", "Conv", True, False),
        ("Gemm7", "Gemm", True, False),
    ]
    assert all("int8" in layer.what and layer.reason for layer in record.layers)


def test_everything_of_a_residual_network_is_fused() -> None:
    model = float_model(NET)
    result, _ = quantize(model)
    found = audit(result)
    assert dict(found.integer) == {"QGemm": 1, "QLinearAdd": 1, "QLinearConv": 2, "QLinearGlobalAveragePool": 1}
    assert (found.floating_count, found.conversions) == (0, 1)
    assert sqnr_db(model, result, random_feeds(model, count=4, seed=9)) > 25


def check_parameters(model: Model) -> None:
    """Assert what fast kernels take: uint8 activations with one written zero point, int8 weights with zero points 0."""
    for _, node in model.walk():
        if node.op == "QuantizeLinear":
            assert node.inputs[1].shape == ()
            assert node.inputs[2].array().dtype == np.uint8
        if node.op != "DequantizeLinear":
            continue
        stored = node.inputs[0].array().dtype if isinstance(node.inputs[0], Constant) else np.dtype(np.uint8)
        assert stored in {np.dtype(np.int8), np.dtype(np.int32), np.dtype(np.uint8)}
        if stored == np.int8:
            assert not node.inputs[2].array().any()
            channels = uses(node.outputs[0])[0].node
            expected = {"Conv": 0, "Gemm": 1 - int(channels.attrs.get("transB", 0)), "MatMul": 1}[channels.op]
            assert node.inputs[1].shape == () or node.attrs["axis"] == expected
        elif stored == np.uint8:
            assert node.inputs[1].shape == ()
            assert len(node.inputs) == 3


@pytest.mark.usefixtures("however_small")
@pytest.mark.parametrize("transposed", [0, 1])
def test_parameters_are_those_that_fast_kernels_take(transposed: int) -> None:
    graph = NET.replace("transB = 1", f"transB = {transposed}").replace(
        "float[10, 16] w2", "float[10, 16] w2" if transposed else "float[16, 10] w2"
    )
    result, record = quantize(float_model(graph))
    assert len(record.layers) == 3
    check_parameters(result)


def test_fourth_image_channel_is_exact() -> None:
    graph = (
        "g (float[1, 3, 32, 32] x, float[16, 3, 3, 3] w0, float[16, 16, 3, 3] w1) => (float[1, 16, h, v] y) "
        "{ c = Conv(x, w0) y = Conv(c, w1) }"
    )
    model = float_model(graph)
    result, _ = quantize(model)
    assert [node.op for node in result.graph.nodes].count("Pad") == 1
    stem = next(node for node in result.graph.nodes if node.op == "Conv")
    restored = stem.inputs[1].inputs[0]
    assert restored.inputs[0].shape == (16, 4, 3, 3)
    assert not restored.inputs[0].array()[:, 3].any()
    assert sqnr_db(model, result, random_feeds(model, count=2, seed=4)) > 25


@pytest.mark.usefixtures("however_small")
@pytest.mark.parametrize("graph", [
    "g (float[n, 8, 6, 6] x, float[12, 4, 1, 1] w) => (float[n, 12, 6, 6] y) { y = Conv<group = 2>(x, w) }",
    "g (float[n, 8, 6, 6] x, float[16, 8, 1, 1] w, float[16] b) => (float[n, 16, 6, 6] y) { y = Conv(x, w, b) }",
    "g (float[n, 32] x, float[32, 16] w, float[16] b) => (float[n, 16] y) { y = Gemm(x, w, b) }",
    "g (float[n, 32] x, float[16, 32] w, float[16] b) => (float[n, 16] y) { y = Gemm<transB = 1>(x, w, b) }",
])  # fmt: skip
def test_corrected_biases_keep_the_mean_of_every_output(graph: str) -> None:
    """One scale for channels of very different sizes makes rounding errors large enough to see."""
    model = float_model(graph)
    weight = model.graph.nodes[0].inputs[1]
    weight.set(
        np.asarray(
            weight.array() * np.linspace(0.01, 1, weight.shape[1]).reshape(1, -1, *[1] * (len(weight.shape) - 2)),
            np.float32,
        )
    )
    shape = [200, *[int(size) for size in model.graph.inputs[0].shape[1:]]]
    values = np.random.default_rng(5).standard_normal(shape).astype(np.float32) + 3
    data = Feeds.open({"x": values}, model)
    want = run(session(model), {"x": values})["y"]
    error = {}
    for correct in (False, True):
        result = model.copy()
        PassManager([InsertQdq(correct_bias=correct, per_channel=False)], verify="full").run(result, data)
        got = run(session(result), {"x": values})["y"]
        axes = tuple(axis for axis in range(want.ndim) if axis != 1)
        error[correct] = float(np.abs((got.astype(np.float64) - want).mean(axis=axes)).max())
    assert error[True] < error[False] / 3


# ------------------------------------------------------------------------------------------------------ what it leaves

SKIPS: dict[str, tuple[str, dict[str, Any], str]] = {
    "weight from a caller": (
        "g (float[1, 8, 8, 8] x, float[8, 8, 1, 1] v) => (float[1, 8, 8, 8] y) { y = Conv(x, v) }",
        {},
        "the weight is not a constant",
    ),
    "kept as asked": (CONV, {"keep": ("Conv0",)}, "kept float as asked"),
    "one input channel": (
        "g (float[1, 1, 8, 8] x, float[8, 1, 3, 3] w) => (float[1, 8, h, v] y) { y = Conv(x, w) }",
        {},
        "one input channel",
    ),
    "depthwise between floats": (
        "g (float[1, 8, 8, 8] x, float[8, 1, 3, 3] w) => (float[1, 8, h, v] y) { y = Conv<group = 8>(x, w) }",
        {},
        "depthwise",
    ),
    "too small": (
        "g (float[1, 8, 2, 2] x, float[8, 8, 1, 1] w) => (float[1, 8, 2, 2] y) { y = Conv(x, w) }",
        {},
        "too few products",
    ),
    "attention": (
        "g (float[2, 8, 64] x) => (float[2, 8, 8] y) { t = Transpose<perm = [0, 2, 1]>(x) y = MatMul(x, t) }",
        {},
        "attention scores",
    ),
    "bias per row": (
        "g (float[4, 64] x, float[64, 64] w, float[4, 1] b) => (float[4, 64] y) { y = Gemm(x, w, b) }",
        {},
        "one value per output",
    ),
    "before a logarithm": (
        (
            "g (float[1, 8, 16, 16] x, float[64, 8, 3, 3] w) => (float[1, 64, h, v] y) "
            "{ c = Conv(x, w) s = Mul(c, c) y = Log(s) }"
        ),
        {},
        "reach Log",
    ),
    "dynamic convolution": (CONV, {"activations": "dynamic"}, "slower than float"),
}


@pytest.mark.parametrize("name", SKIPS)
def test_skip_has_its_reason(name: str) -> None:
    graph, options, reason = SKIPS[name]
    model = float_model(graph)
    result, record = quantize(model, **options)
    assert record.patches == 0, [patch.reason for patch in record.log]
    assert any(reason in found for _, found in record.skips), record.skips
    assert result.to_bytes() == model.to_bytes()


@pytest.mark.usefixtures("however_small")
def test_node_without_a_name_is_kept_by_its_output() -> None:
    model = float_model(NET)
    for node in model.graph.nodes:
        node.name = ""
    _, record = quantize(model)
    label = record.layers[1].name
    assert label == "Conv -> c1"
    _, record = quantize(model, keep=(label,))
    assert [layer.name for layer in record.layers] == ["Conv -> c0", "Gemm -> y"]


def test_model_of_an_old_opset_points_at_raise_opset() -> None:
    _, record = quantize(float_model(CONV, opset=9))
    assert "raise-opset" in record.skips[0][1]


def test_double_precision_stays() -> None:
    proto = onnx.parser.parse_model(HEAD.format(opset=17) + CONV.replace("float[", "double["))
    proto.graph.initializer.append(numpy_helper.from_array(np.ones((8, 8, 1, 1)), "w"))
    del proto.graph.input[1]
    _, record = quantize(read_model(proto))
    assert record.patches == 0
    assert "not float32" in record.skips[0][1]


@pytest.mark.usefixtures("however_small")
def test_opset_without_scales_per_channel_gets_one_scale() -> None:
    model = float_model(CONV, opset=12)
    result, record = quantize(model)
    assert "per tensor" in record.layers[0].what
    assert sqnr_db(model, result, random_feeds(model, count=2, seed=3)) > 25


def test_quantized_model_is_left_alone() -> None:
    result, _ = quantize(float_model(NET))
    again, record = quantize(result)
    assert record.patches == 0
    assert "quantized already" in record.skips[0][1]
    assert again.to_bytes() == result.to_bytes()


def test_overridable_weight_stays() -> None:
    proto = onnx.parser.parse_model(HEAD.format(opset=17) + CONV)
    proto.graph.initializer.append(numpy_helper.from_array(np.ones((8, 8, 1, 1), np.float32), "w"))
    _, record = quantize(read_model(proto))
    assert record.patches == 0
    assert "caller may override" in record.skips[0][1]


def test_without_data_linear_layers_are_dynamic_and_convolutions_stay() -> None:
    model = float_model(
        "g (float[1, 8, 8, 8] x, float[8, 8, 1, 1] w0, float[512, 64] w1) => (float[1, 64] y) "
        "{ c = Conv(x, w0) f = Flatten(c) y = MatMul(f, w1) }"
    )
    result, record = quantize(model, data=False)
    assert [node.op for node in result.graph.nodes if node.op in {"Conv", "MatMulInteger"}] == ["Conv", "MatMulInteger"]
    assert any("calibration data" in reason for _, reason in record.skips)


def test_weights_alone_shrink_the_file_and_keep_the_arithmetic() -> None:
    model = float_model(
        "g (float[n, 8, 8, 8] x, float[32, 8, 3, 3] w0, float[1152, 10] w1) => (float[n, 10] y) "
        "{ c = Conv(x, w0) f = Flatten(c) y = MatMul(f, w1) }"
    )
    done = check_pass(InsertQdq(activations="none"), model)
    assert [op for op in done.ops if op != "DequantizeLinear"] == ["Conv", "Flatten", "MatMul"]
    assert len(done.model.to_bytes()) < len(model.to_bytes()) / 3
    assert [layer.op for layer in done.record.layers] == ["Conv", "MatMul"]
    assert sqnr_db(model, done.model, random_feeds(model, count=2, seed=1)) > 35


def test_weights_of_recurrent_layers_inside_a_body_are_stored_as_integers() -> None:
    text = HEAD.format(opset=17) + (
        "g (float[4, 1, 16] x, bool c) => (float[4, 1, 1, 16] y) { y = If(c) <"
        "then_branch = a () => (float[4, 1, 1, 16] p) { p = LSTM<hidden_size = 16>(x, w, r) }, "
        "else_branch = e () => (float[4, 1, 1, 16] q) { z = Constant<value = int64[1] {1}>() q = Unsqueeze(x, z) }> }"
    )
    proto = onnx.parser.parse_model(text)
    random = np.random.default_rng(0)
    for name in ("w", "r"):
        proto.graph.initializer.append(
            numpy_helper.from_array(random.standard_normal((1, 64, 16)).astype(np.float32), name)
        )
    model = read_model(proto)
    done = check_pass(InsertQdq(activations="none"), model)
    assert done.ops.count("DequantizeLinear") == 2
    assert len(done.model.to_bytes()) < len(model.to_bytes()) / 2


def test_weight_that_several_bodies_read_is_stored_once() -> None:
    text = HEAD.format(opset=17) + (
        "g (float[4, 64] x, bool c) => (float[4, 64] y) { y = If(c) <"
        "then_branch = a () => (float[4, 64] p) { p = MatMul(x, w) }, "
        "else_branch = e () => (float[4, 64] q) { n = Neg(x) q = MatMul(n, w) }> }"
    )
    proto = onnx.parser.parse_model(text)
    weight = np.random.default_rng(0).standard_normal((64, 64)).astype(np.float32)
    proto.graph.initializer.append(numpy_helper.from_array(weight, "w"))
    done = check_pass(InsertQdq(activations="none"), read_model(proto))
    assert done.ops.count("DequantizeLinear") == 1
    assert sum(constant.nbytes for graph in done.model.graphs() for constant in graph.initializers) < weight.nbytes / 3


def test_layers_inside_bodies() -> None:
    text = HEAD.format(opset=17) + (
        "g (float[4, 64] x, bool c) => (float[4, 64] y) { y = If(c) <"
        "then_branch = a () => (float[4, 64] p) { p = MatMul(x, w) }, "
        "else_branch = e () => (float[4, 64] q) { q = Neg(x) }> }"
    )
    proto = onnx.parser.parse_model(text)
    weight = np.random.default_rng(0).standard_normal((64, 64)).astype(np.float32)
    proto.graph.initializer.append(numpy_helper.from_array(weight, "w"))
    model = read_model(proto)
    result, record = quantize(model)
    assert any(node.op == "MatMulInteger" for _, node in result.walk())
    assert "inside a body" in record.layers[0].reason
    feeds = Feeds.open([{"x": np.ones((4, 64), np.float32), "c": np.array(True)}], model)
    assert sqnr_db(model, result, feeds) > 30


def test_tensor_with_infinite_values_has_no_grid() -> None:
    model = float_model(
        "g (float[1, 8, 16, 16] x, float[64, 8, 3, 3] w) => (float[1, 64, h, v] y) { l = Log(x) y = Conv(l, w) }"
    )
    result = model.copy()
    data = Feeds.open({"x": np.zeros((4, 8, 16, 16), np.float32)}, model)
    record = PassManager([InsertQdq()]).run(result, data).records[0]
    assert record.patches == 0
    assert "reached it" in record.skips[0][1]


@pytest.mark.parametrize(
    "options", [{"weights": "int5"}, {"activations": "int5"}, {"calibrator": "guess"}, {"percentile": 99999}]
)
def test_unknown_option_values_are_errors(options: dict[str, object]) -> None:
    with pytest.raises(RecipeError):
        create("insert-qdq", options)


# ---------------------------------------------------------------------------------------------------- any small model


@st.composite
def conv_networks(draw: st.DrawFn) -> onnx.ModelProto:
    """Draw a small convolutional network: branches, joins, activations, data movement, several outputs."""
    nodes: list[onnx.NodeProto] = []
    weights: list[onnx.TensorProto] = []
    known = ["x"]
    random = np.random.default_rng(draw(st.integers(0, 99)))

    def add(op: str, inputs: list[str], **attributes: Any) -> None:
        nodes.append(helper.make_node(op, inputs, [f"t{len(nodes)}"], name=f"n{len(nodes)}", **attributes))
        known.append(f"t{len(nodes) - 1}")

    def constant(array: np.ndarray) -> str:
        weights.append(numpy_helper.from_array(array, f"k{len(weights)}"))
        return f"k{len(weights) - 1}"

    for _ in range(draw(st.integers(2, 9))):
        source = draw(st.sampled_from(known[-3:]))
        kind = draw(st.sampled_from(("conv", "conv", "conv", "unary", "binary", "pool", "move", "scaled", "depthwise")))
        if kind == "conv":
            weight = constant((random.standard_normal((8, 8, 3, 3)) / 8).astype(np.float32))
            bias = [constant(random.standard_normal(8).astype(np.float32))] if draw(st.booleans()) else []
            add("Conv", [source, weight, *bias], pads=[1, 1, 1, 1])
        elif kind == "depthwise":
            add(
                "Conv",
                [source, constant((random.standard_normal((8, 1, 3, 3)) / 3).astype(np.float32))],
                pads=[1] * 4,
                group=8,
            )
        elif kind == "unary":
            add(draw(st.sampled_from(("Relu", "Sigmoid", "LeakyRelu", "Tanh", "Identity", "HardSwish"))), [source])
        elif kind == "binary":
            add(draw(st.sampled_from(("Add", "Mul", "Sub"))), [source, draw(st.sampled_from(known))])
        elif kind == "scaled":
            add(
                draw(st.sampled_from(("Add", "Mul"))),
                [source, constant(random.standard_normal((8, 1, 1)).astype(np.float32))],
            )
        elif kind == "pool":
            add(draw(st.sampled_from(("MaxPool", "AveragePool"))), [source], kernel_shape=[3, 3], pads=[1] * 4)
        else:
            add("Transpose", [source], perm=[0, 1, 3, 2])
    outputs = draw(st.lists(st.sampled_from(known[1:]), min_size=1, max_size=2, unique=True))
    shape = ["n", 8, 6, 6]
    graph = helper.make_graph(
        nodes,
        "conv",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name in outputs],
        weights,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model)
    return model


@given(conv_networks())
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@pytest.mark.usefixtures("however_small")
def test_any_convolutional_network_keeps_its_outputs(proto: onnx.ModelProto) -> None:
    model = read_model(proto)
    data = random_feeds(model, count=4, seed=2)
    done = check_pass(InsertQdq(), model, data, interpreted=False)
    if done.record.patches:
        check_parameters(done.model)
        assert sqnr_db(model, done.model, data) > 10
        found = audit(done.model, feeds=data)
        assert found.floating.get("Conv", 0) + found.floating.get("FusedConv", 0) == 0 or done.skips
        assert found.optimization_error is not None
        assert found.optimization_error < 0.1


@given(small_models())
@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@pytest.mark.usefixtures("however_small")
def test_any_small_model_stays_legal(proto: onnx.ModelProto) -> None:
    check_pass(InsertQdq(), proto, interpreted=False)


@pytest.mark.usefixtures("however_small")
@pytest.mark.parametrize("per_channel", [False, True])
def test_weights_of_least_error_lose_less_of_what_loud_inputs_meet(*, per_channel: bool) -> None:
    model = float_model(
        "g (float[n, 32, 6, 6] x, float[16, 16, 3, 3] w0, float[16] b0) => (float[n, 16, 6, 6] y) "
        "{ y = Conv<group = 2, pads = [1, 1, 1, 1]>(x, w0, b0) }"
    )
    weight = model.graph.nodes[0].inputs[1]
    assert isinstance(weight, Constant)
    with weight.edit() as values:
        values[:, 0, 0, 0] = 4.0  # the largest weights meet an input that is nearly silent
    x = np.random.default_rng(3).standard_normal((64, 32, 6, 6)).astype(np.float32)
    x[:, [0, 16]] *= 0.001
    feeds = Feeds.open({"x": x}, model)
    found = {}
    for kind in ("minmax", "mse"):
        result = model.copy()
        options: dict[str, Any] = {"weight_calibrator": kind, "per_channel": per_channel}
        PassManager([InsertQdq(**options)], verify="full").run(result, feeds)
        found[kind] = sqnr_db(model, result, feeds)
    assert found["mse"] > found["minmax"] + 1


@pytest.mark.usefixtures("however_small")
@pytest.mark.parametrize("target", ["tensorrt", "openvino", "qnn"])
@pytest.mark.parametrize("op", ["Conv", "MatMul"])
def test_weights_of_least_error_act_where_pairs_are_declared(target: str, op: str) -> None:
    shape, weight, result, node = {
        "Conv": ("32, 6, 6", "16, 32, 3, 3", "16, 6, 6", "y = Conv<pads = [1, 1, 1, 1]>(x, w0)"),
        "MatMul": ("32, 32", "32, 32", "32, 32", "y = MatMul(x, w0)"),
    }[op]
    model = float_model(f"g (float[n, {shape}] x, float[{weight}] w0) => (float[n, {result}] y) {{ {node} }}")
    constant = model.graph.nodes[0].inputs[1]
    assert isinstance(constant, Constant)
    with constant.edit() as values:
        loud = values if op == "MatMul" else np.moveaxis(values, 1, 0)
        loud[0] *= 12.0  # the largest weights meet an input that is nearly silent
    x = np.random.default_rng(3).standard_normal((64, *map(int, shape.split(", ")))).astype(np.float32)
    x[(slice(None), 0) if op == "Conv" else (..., 0)] *= 0.001
    feeds = Feeds.open({"x": x}, model)
    found = {}
    for kind in ("minmax", "mse"):
        quantized = model.copy()
        options: dict[str, Any] = {"weight_calibrator": kind}
        PassManager([InsertQdq(**options)], target=target).run(quantized, feeds)
        found[kind] = sqnr_db(model, quantized, feeds)
    assert found["mse"] > found["minmax"] + 1


def test_a_float_pool_pools_before_relu_so_that_little_is_rounded() -> None:
    model = float_model(
        "g (float[n, 1, 28, 28] x, float[16, 1, 5, 5] w0, float[32, 16, 3, 3] w1, float[32, 32, 3, 3] w2) "
        "=> (float[n, 32, 12, 12] y) "
        "{ a = Conv<pads = [2, 2, 2, 2]>(x, w0) r = Relu(a) p = MaxPool<kernel_shape = [2, 2], strides = [2, 2]>(r) "
        "b = Conv<pads = [1, 1, 1, 1]>(p, w1) s = Relu(b) y = Conv(s, w2) }"
    )
    feeds = Feeds.open(list(random_feeds(model, count=16, seed=0, sizes={"n": 1})), model)
    result = model.copy()
    PassManager([InsertQdq()], verify="full").run(result, feeds)
    order = [node.op for node in result.graph.nodes if node.op in {"Conv", "Relu", "MaxPool", "QuantizeLinear"}]
    assert order[:4] == ["Conv", "MaxPool", "Relu", "QuantizeLinear"]
    assert sqnr_db(model, result, feeds) > 25
    found = audit(result, compare=False)
    assert found.integer["QLinearConv"] == 2
    assert "Relu" not in {each.op for each in found.stayed_float}
