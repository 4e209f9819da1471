"""The rules table against the ONNX Runtime that is installed: what it says fuses must fuse, one operator at a time."""

from __future__ import annotations

import numpy as np
import onnx
import onnx.parser
import pytest

from graphopt.graph import Model, read_model
from graphopt.passes.quantize.insert_qdq import InsertQdq
from graphopt.rewrite import PassManager
from graphopt.runtime import Feeds, random_feeds, run, session
from graphopt.target import audit, find_target, placement


@pytest.fixture(autouse=True)
def however_small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let regions be quantized that are too small to gain from it."""
    monkeypatch.setattr(placement, "PRODUCTS_PER_CONVERSION", 0)


HEAD = '<ir_version: 8, opset_import: ["" : 17]>'


def float_model(graph: str, seed: int = 0) -> Model:
    """Parse a graph whose inputs named w... and b... become random initializers."""
    proto = onnx.parser.parse_model(HEAD + graph)
    random = np.random.default_rng(seed)
    for value in [each for each in proto.graph.input if each.name[0] in "wb"]:
        shape = [dim.dim_value for dim in value.type.tensor_type.shape.dim]
        fan_in = max(int(np.prod(shape[1:])), 1)
        array = (random.standard_normal(shape) / np.sqrt(fan_in)).astype(np.float32)
        proto.graph.initializer.append(onnx.numpy_helper.from_array(array, value.name))
        proto.graph.input.remove(value)
    onnx.checker.check_model(proto, full_check=True)
    return read_model(proto)


def quantized(graph: str, **options: object) -> tuple[Model, Model, Feeds]:
    """Return a model, its quantized form and the data both were run on."""
    model = float_model(graph)
    data = random_feeds(model, count=8, seed=1)
    result = model.copy()
    PassManager([InsertQdq(**options)], verify="full").run(result, data)  # type: ignore[arg-type]
    return model, result, data


def sqnr_db(model: Model, other: Model, data: Feeds) -> float:
    """Return the ratio of signal to difference over all outputs, in dB."""
    one, two = session(model), session(other)
    signal = noise = 0.0
    for feed in data:
        for left, right in zip(run(one, feed).values(), run(two, feed).values(), strict=True):
            signal += float(np.square(left, dtype=np.float64).sum())
            noise += float(np.square(left.astype(np.float64) - right).sum())
    return float(10 * np.log10(signal / noise))


# Between two convolutions c0 and c1, so that the operator has integer neighbours: text, integer kernels, conversions.
BETWEEN = {
    "relu": ("r = Relu(x)", {"QLinearConv": 2}),
    "clip": (
        "lo = Constant<value = float {0.0}>() hi = Constant<value = float {6.0}>() r = Clip(x, lo, hi)",
        {"QLinearConv": 2},
    ),
    "add": ("r = Add(x, x)", {"QLinearConv": 2, "QLinearAdd": 1}),
    "mul": ("s = Sigmoid(x) r = Mul(x, s)", {"QLinearConv": 2, "QLinearMul": 1, "QLinearSigmoid": 1}),
    "leaky-relu": ("r = LeakyRelu<alpha = 0.1>(x)", {"QLinearConv": 2, "QLinearLeakyRelu": 1}),
    "average-pool": (
        "r = AveragePool<kernel_shape = [2, 2], strides = [1, 1], pads = [0, 0, 1, 1]>(x)",
        {"QLinearConv": 2, "QLinearAveragePool": 1},
    ),
    "global-average-pool": ("r = GlobalAveragePool(x)", {"QLinearConv": 2, "QLinearGlobalAveragePool": 1}),
    "softmax": ("r = Softmax<axis = 3>(x)", {"QLinearConv": 2, "QLinearSoftmax": 1}),
    "concat": (
        "t = Relu(x) z = AveragePool<kernel_shape = [1, 1]>(t) y = Add(t, z) r0 = Concat<axis = 2>(t, y) r = Relu(r0)",
        {"QLinearConv": 2, "QLinearAdd": 1, "QLinearConcat": 1, "QLinearAveragePool": 1},
    ),
    "max-pool": ("r = MaxPool<kernel_shape = [2, 2]>(x)", {"QLinearConv": 2}),
    "transpose": ("r = Transpose<perm = [0, 1, 3, 2]>(x)", {"QLinearConv": 2}),
    "reshape": ("sh = Constant<value = int64[4] {1, 16, 4, 16}>() r = Reshape(x, sh)", {"QLinearConv": 2}),
    "slice": (
        (
            "st = Constant<value = int64[1] {0}>() en = Constant<value = int64[1] {6}>() "
            "ax = Constant<value = int64[1] {2}>() r = Slice(x, st, en, ax)"
        ),
        {"QLinearConv": 2},
    ),
    "pad": ("p = Constant<value = int64[8] {0, 0, 1, 1, 0, 0, 1, 1}>() r = Pad(x, p)", {"QLinearConv": 2}),
    "split": (
        "sp = Constant<value = int64[2] {4, 4}>() s, t = Split<axis = 2>(x, sp) r = Add(s, t)",
        {"QLinearConv": 2, "QLinearAdd": 1},
    ),
    "gather": ("i = Constant<value = int64[2] {0, 3}>() r = Gather<axis = 2>(x, i)", {"QLinearConv": 2}),
    "resize": (
        (
            "e = Constant<value = float[0] {}>() sc = Constant<value = float[4] {1.0, 1.0, 2.0, 2.0}>() "
            'r = Resize<mode = "nearest">(x, e, sc)'
        ),
        {"QLinearConv": 2},
    ),
}


@pytest.mark.parametrize("name", BETWEEN)
def test_operator_between_convolutions_runs_on_integers(name: str) -> None:
    body, kernels = BETWEEN[name]
    model, result, data = quantized(
        f"g (float[1, 8, 8, 8] in, float[16, 8, 3, 3] w0, float[16] b0, float[16, 16, 1, 1] w1, float[16] b1) "
        f"=> (float[1, 16, h, w] out) {{ x = Conv<pads = [1, 1, 1, 1]>(in, w0, b0) {body} out = Conv(r, w1, b1) }}"
    )
    found = audit(result, feeds=data)
    assert dict(found.integer) == kernels
    assert found.conversions == 2, found.stayed_float  # the input and the output of the model
    assert found.floating_count == 0
    assert not found.stayed_float
    assert found.optimization_error is not None
    assert found.optimization_error < 0.05
    assert sqnr_db(model, result, data) > 25


def test_residual_add_with_relu_is_one_integer_operator() -> None:
    model, result, data = quantized(
        "g (float[1, 8, 8, 8] in, float[8, 8, 3, 3] w0, float[8, 8, 3, 3] w1, float[8, 8, 3, 3] w2) "
        "=> (float[1, 8, 8, 8] out) "
        "{ x = Conv<pads = [1, 1, 1, 1]>(in, w0) a = Relu(x) y = Conv<pads = [1, 1, 1, 1]>(a, w1) s = Add(y, a) "
        "r = Relu(s) out = Conv<pads = [1, 1, 1, 1]>(r, w2) }"
    )
    found = audit(result, feeds=data)
    assert dict(found.integer) == {"QLinearAdd": 1, "QLinearConv": 3}
    assert found.conversions == 2
    assert sqnr_db(model, result, data) > 25


def test_depthwise_convolution_joins_integer_neighbours_only() -> None:
    _, joined, _ = quantized(
        "g (float[1, 8, 8, 8] in, float[16, 8, 1, 1] w0, float[16, 1, 3, 3] w1, float[8, 16, 1, 1] w2) "
        "=> (float[1, 8, h, w] out) "
        "{ x = Conv(in, w0) y = Conv<group = 16>(x, w1) out = Conv(y, w2) }"
    )
    assert dict(audit(joined).integer) == {"QLinearConv": 3}
    _, alone, _ = quantized(
        "g (float[1, 16, 8, 8] in, float[16, 1, 3, 3] w1) "
        "=> (float[1, 16, h, w] out) { out = Conv<group = 16>(in, w1) }"
    )
    assert dict(audit(alone).integer) == {}


@pytest.mark.parametrize("transposed", [0, 1])
def test_gemm_has_integer_kernel_and_float_output(transposed: int) -> None:
    shape = "[24, 32]" if transposed else "[32, 24]"
    model, result, data = quantized(
        f"g (float[b, 32] in, float{shape} w0, float[24] b0) => (float[b, 24] out) "
        f"{{ out = Gemm<transB = {transposed}, alpha = 0.5, beta = 2.0>(in, w0, b0) }}"
    )
    found = audit(result, feeds=data)
    assert dict(found.integer) == {"QGemm": 1}
    assert found.conversions == 1
    assert sqnr_db(model, result, data) > 30


@pytest.mark.parametrize("batch", ["b", "4"])
def test_matrix_product_with_bias_stays_integer(batch: str) -> None:
    model, result, data = quantized(
        f"g (float[{batch}, 32] in, float[32, 24] w0, float[24] b0) => (float[{batch}, 24] out) "
        "{ p = MatMul(in, w0) out = Add(p, b0) }"
    )
    found = audit(result, feeds=data)
    assert found.integer_count == 1
    assert "Gemm" not in found.floating
    assert "MatMul" not in found.floating
    assert sqnr_db(model, result, data) > 30


@pytest.mark.parametrize("shape", ["[2, 6, 64]", "[b, s, 64]"])
def test_square_matrix_of_a_sequence_is_dynamic_and_fused(shape: str) -> None:
    """K = N: a scale per row of the weight would be computed wrongly without a word."""
    model, result, data = quantized(
        f"g (float{shape} in, float[64, 64] w0, float[64] b0, float[64, 64] w1) "
        f"=> (float{shape} out, float{shape} other) "
        "{ p = MatMul(in, w0) out = Add(p, b0) other = MatMul(in, w1) }"
    )
    found = audit(result, feeds=data)
    assert found.integer_count == 2
    assert set(found.integer) <= {"DynamicQuantizeMatMul", "MatMulIntegerToFloat"}
    assert "MatMul" not in found.floating
    assert sqnr_db(model, result, data) > 30


@pytest.mark.parametrize("shape", ["[2, 6, 64]", "[b, s, 64]"])
def test_square_matrix_of_a_sequence_can_be_static(shape: str) -> None:
    model, result, data = quantized(
        f"g (float{shape} in, float[64, 64] w0, float[64] b0) => (float{shape} out) "
        "{ p = MatMul(in, w0) out = Add(p, b0) }",
        activations="uint8",
    )
    found = audit(result, feeds=data)
    assert found.integer_count == 1
    assert "Gemm" not in found.floating
    assert sqnr_db(model, result, data) > 30


def test_table_of_an_embedding_is_looked_up_as_integers() -> None:
    _, result, data = quantized(
        "g (int64[b, s] in, float[300, 32] w0) => (float[b, s, 32] out) { out = Gather(w0, in) }"
    )
    assert [node.op for node in result.graph.nodes] == ["Gather", "Cast", "Mul"]
    assert audit(result, feeds=data).conversions == 0


def test_output_of_the_model_that_an_integer_operator_also_reads() -> None:
    model, result, data = quantized(
        "g (float[1, 8, 8, 8] in, float[8, 8, 1, 1] w0, float[8, 8, 1, 1] w1) "
        "=> (float[1, 8, 8, 8] mid, float[1, 8, 8, 8] out) "
        "{ mid = Conv(in, w0) out = Conv(mid, w1) }"
    )
    assert [tensor.name for tensor in result.graph.outputs] == ["mid", "out"]
    assert dict(audit(result, feeds=data).integer) == {"QLinearConv": 2}
    assert sqnr_db(model, result, data) > 25


def test_float_reader_does_not_break_the_fusion() -> None:
    _, result, data = quantized(
        "g (float[1, 8, 8, 8] in, float[8, 8, 1, 1] w0, float[8, 8, 1, 1] w1) "
        "=> (float[1, 8, 8, 8] t, float[1, 8, 8, 8] out) "
        "{ x = Conv(in, w0) t = Tanh(x) out = Conv(x, w1) }"
    )
    assert dict(audit(result, feeds=data).integer) == {"QLinearConv": 2}


def test_bias_beyond_the_tiny_scale_of_its_channel_keeps_its_value() -> None:
    model = float_model(
        "g (float[1, 8, 4, 4] in, float[8, 8, 1, 1] w0, float[8] b0) "
        "=> (float[1, 8, 4, 4] out) { out = Conv(in, w0, b0) }"
    )
    node = model.graph.nodes[0]
    weight, bias = node.inputs[1].array().copy(), node.inputs[2].array().copy()
    weight[0] *= 1e-12
    bias[0] = 3.0
    node.inputs[1].set(weight)
    node.inputs[2].set(bias)
    data = random_feeds(model, count=4, seed=1)
    result = model.copy()
    PassManager([InsertQdq()]).run(result, data)
    feed = data.first()
    got = run(session(result), feed)["out"][0, 0]
    np.testing.assert_allclose(got, 3.0, atol=0.05)


@pytest.mark.parametrize(
    ("shape", "fits"), [("", True), ("1", True), ("3", True), ("1, 3", True), ("3, 1", False), ("3, 3", False)]
)
def test_gemm_takes_a_bias_of_one_value_per_output_and_no_other(shape: str, fits: bool) -> None:
    count = int(np.prod([int(size) for size in shape.split(",") if size]))
    kind = f"float[{shape}]" if shape else "float"
    values = ", ".join(["1"] * count)
    text = f"""<ir_version: 9, opset_import: ["" : 17]> g (float[3, 2] x) => (float[3, 3] y)
    <float[2, 3] w = {{1, 2, 3, 4, 5, 6}}, {kind} c = {{{values}}}> {{ y = Gemm(x, w, c) }}"""
    node = read_model(onnx.parser.parse_model(text)).graph.nodes[0]
    rule = find_target("ort-cpu").rule(node)
    assert rule is not None
    assert (rule.refuse(node) is None) == fits
