"""dequantize-model, expand-qoperators: what quantized operators become, how near that is, and what stays and why."""

# ruff: noqa: E501 - the tables hold one model per line

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import onnx.parser
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import numpy_helper

import graphopt
from graphopt.graph import Model, read_model
from graphopt.passes.quantize.dequantize_model import DequantizeModel
from graphopt.passes.quantize.expand_qoperators import ExpandQoperators
from graphopt.passes.quantize.restoring.products import unpack
from graphopt.rewrite.manager import PassManager, PassRecord
from graphopt.rewrite.registry import create
from graphopt.runtime import Feeds, random_feeds, run, session
from graphopt.verify.legality import check_legal
from peer_quantized import FORMS, quantized_by_peer

if TYPE_CHECKING:
    from graphopt.rewrite.pass_ import Pass

DEMO = Path(graphopt.__file__).parent / "demo"
DATA = DEMO / "digits_calibration.npz"
QUANTIZED = {
    "QuantizeLinear",
    "DequantizeLinear",
    "DynamicQuantizeLinear",
    "MatMulInteger",
    "ConvInteger",
    "QLinearConv",
}
HEAD = '<ir_version: 8, opset_import: ["" : {opset}, "com.microsoft" : 1]> g ({inputs}) => ({outputs}) <{constants}> {{ {body} }}'
SCALES = "float s = {0.05}, uint8 z = {120}, float t = {0.04}, uint8 u = {3}, float v = {0.3}, uint8 w = {128}"

QLINEAR = {
    "QLinearConv": ("uint8[1, 4, 6, 6] x", "uint8[1, 4, 4, 4] y", "y = QLinearConv(x, s, z, cw, cs, cz, v, w, cb)"),
    "QLinearMatMul": ("uint8[2, 8] x", "uint8[2, 4] y", "y = QLinearMatMul(x, s, z, mw, ms, mz, v, w)"),
    "QGemm": ("uint8[2, 8] x", "uint8[2, 4] y", "y = com.microsoft.QGemm<transB = 0>(x, s, z, mw, ms, mz, mb, v, w)"),
    "QGemm to float": ("uint8[2, 8] x", "float[2, 4] y", "y = com.microsoft.QGemm<transB = 0>(x, s, z, mw, ms, mz, mb)"),
    "QLinearAdd": ("uint8[2, 8] x, uint8[2, 8] a", "uint8[2, 8] y", "y = com.microsoft.QLinearAdd(x, s, z, a, t, u, v, w)"),
    "QLinearMul": ("uint8[2, 8] x, uint8[2, 8] a", "uint8[2, 8] y", "y = com.microsoft.QLinearMul(x, s, z, a, t, u, v, w)"),
    "QLinearConcat": ("uint8[2, 8] x, uint8[2, 8] a", "uint8[2, 16] y", "y = com.microsoft.QLinearConcat<axis = 1>(v, w, x, s, z, a, t, u)"),
    "QLinearAveragePool": ("uint8[1, 2, 4, 4] x", "uint8[1, 2, 2, 2] y", "y = com.microsoft.QLinearAveragePool<kernel_shape = [2, 2], strides = [2, 2]>(x, s, z, t, w)"),
    "QLinearGlobalAveragePool": ("uint8[1, 2, 4, 4] x", "uint8[1, 2, 1, 1] y", "y = com.microsoft.QLinearGlobalAveragePool(x, s, z, t, w)"),
    "channels last": ("uint8[1, 4, 4, 2] x", "uint8[1, 1, 1, 2] y", "y = com.microsoft.QLinearGlobalAveragePool<channels_last = 1>(x, s, z, t, w)"),
    "QLinearSigmoid": ("uint8[2, 8] x", "uint8[2, 8] y", "y = com.microsoft.QLinearSigmoid(x, s, z, t, u)"),
    "QLinearLeakyRelu": ("uint8[2, 8] x", "uint8[2, 8] y", "y = com.microsoft.QLinearLeakyRelu<alpha = 0.1>(x, s, z, t, z)"),
    "QLinearSoftmax": ("uint8[2, 8] x", "uint8[2, 8] y", "y = com.microsoft.QLinearSoftmax<axis = -1, opset = 13>(x, s, z, t, u)"),
    "QLinearWhere": ("bool[2, 8] c, uint8[2, 8] x, uint8[2, 8] a", "uint8[2, 8] y", "y = com.microsoft.QLinearWhere(c, x, s, z, a, t, u, v, w)"),
    "MatMulIntegerToFloat": ("uint8[2, 8] x", "float[2, 4] y", "y = com.microsoft.MatMulIntegerToFloat(x, mw, s, ms, z, mz)"),
    "Reshape": ("float[2, 8] x", "float[16] y", "q = QuantizeLinear(x, s, z) r = Reshape(q, flat) y = DequantizeLinear(r, s, z)"),
    "Pad": ("float[2, 8] x", "float[4, 8] y", "q = QuantizeLinear(x, s, z) r = Pad(q, pads, z) y = DequantizeLinear(r, s, z)"),
    "Pad with 0": ("float[2, 8] x", "float[4, 8] y", "q = QuantizeLinear(x, s, z) r = Pad(q, pads) y = DequantizeLinear(r, s, z)"),
    "Concat": ("float[2, 8] x, float[2, 8] a", "float[2, 16] y", "q = QuantizeLinear(x, s, z) p = QuantizeLinear(a, s, z) r = Concat<axis = 1>(q, p) y = DequantizeLinear(r, s, z)"),
    "MaxPool": ("float[1, 2, 4, 4] x", "float[1, 2, 2, 2] y", "q = QuantizeLinear(x, s, z) r = MaxPool<kernel_shape = [2, 2], strides = [2, 2]>(q) y = DequantizeLinear(r, s, z)"),
    "Clip": ("float[2, 8] x", "float[2, 8] y", "q = QuantizeLinear(x, s, z) r = Clip(q, u, w) y = DequantizeLinear(r, s, z)"),
    "Split": ("float[2, 8] x", "float[2, 4] y, float[2, 4] a", "q = QuantizeLinear(x, s, z) r, o = Split<axis = 1>(q, halves) y = DequantizeLinear(r, s, z) a = DequantizeLinear(o, s, z)"),
}  # fmt: skip

LEFT = {
    "a scale of a caller": ("uint8[1, 4, 6, 6] x, float n", "uint8[1, 4, 4, 4] y", "y = QLinearConv(x, n, z, cw, cs, cz, v, w)", "QLinearConv", "run time"),
    "integers of a caller": ("float[2, 8] x, uint8[8, 4] k", "int32[2, 4] y", "q, a, b = DynamicQuantizeLinear(x) y = MatMulInteger(q, k, b)", "MatMulInteger", "second factor"),
    "a sum of its own": ("float[2, 8] x", "int32[2, 4] y", "q, a, b = DynamicQuantizeLinear(x) y = MatMulInteger(q, mw, b)", "MatMulInteger", "two scales"),
    "a product of callers' bytes": ("uint8[2, 8] x", "float[2, 4] y", "r = MatMulInteger(x, mw, z) c = Cast<to = 1>(r) y = Mul(c, ms)", "MatMulInteger", "where its first factor was rounded"),
    "a grid found at run time": ("float[2, 8] x, float n", "float[2, 8] y", "q = QuantizeLinear(x, n, z) y = DequantizeLinear(q, s, z)", "QuantizeLinear", "run time"),
}  # fmt: skip


def model_of(inputs: str, outputs: str, body: str, opset: int = 17) -> Model:
    """Parse a body with constants of all kinds at hand."""
    text = HEAD.format(opset=opset, inputs=inputs, outputs=outputs, constants=SCALES, body=body)
    proto = onnx.parser.parse_model(text)
    random = np.random.default_rng(0)
    values = {
        "cw": random.integers(-127, 128, (4, 4, 3, 3)).astype(np.int8),
        "cs": np.array([0.01, 0.002, 0.02, 0.005], np.float32),
        "cz": np.zeros(4, np.int8),
        "cb": random.integers(-900, 900, 4).astype(np.int32),
        "mw": random.integers(-127, 128, (8, 4)).astype(np.int8),
        "ms": np.array([0.01, 0.002, 0.02, 0.005], np.float32),
        "mz": np.zeros(4, np.int8),
        "mb": random.integers(-900, 900, 4).astype(np.int32),
        "flat": np.array([16]),
        "halves": np.array([4, 4]),
        "pads": np.array([1, 0, 1, 0]),
    }
    read = {name for node in proto.graph.node for name in node.input}
    proto.graph.initializer.extend(numpy_helper.from_array(v, n) for n, v in values.items() if n in read)
    for constant in [each for each in proto.graph.initializer if each.name not in read]:
        proto.graph.initializer.remove(constant)
    return read_model(proto)


def rewritten(step: Pass, model: Model) -> tuple[Model, PassRecord]:
    """Run one pass under full verification, and once more to see that it finds nothing left."""
    result = model.copy()
    record = PassManager([step], verify="full").run(result, None).records[0]
    result.sort()
    check_legal(result)
    assert PassManager([step]).run(result.copy(), None).patches == 0
    assert [tensor.name for tensor in result.graph.outputs] == [tensor.name for tensor in model.graph.outputs]
    return result, record


def answers(model: Model, feeds: Feeds) -> list[np.ndarray[Any, Any]]:
    return [np.asarray(v) for feed in feeds for v in run(session(model, optimize="off"), feed).values()]


def wide_feeds(model: Model) -> Feeds:
    """Return random feeds whose floats reach beyond the ends of the grids."""
    feeds = [dict(feed) for feed in random_feeds(model, count=3, seed=4)]
    found = [{n: v * 4 if v.dtype.kind == "f" else v for n, v in feed.items()} for feed in feeds]
    return Feeds.open(found, session(model))


# ---------------------------------------------------------------------------------------------------- single operators


@pytest.mark.parametrize("name", QLINEAR)
def test_integer_operator_is_written_between_conversions(name: str) -> None:
    model = model_of(*QLINEAR[name])
    result, record = rewritten(ExpandQoperators(), model)
    assert record.patches == 1
    feeds = wide_feeds(model)
    for one, other in zip(answers(model, feeds), answers(result, feeds), strict=True):
        step = 1.0 if one.dtype.kind in "iu" else 1e-4
        assert np.abs(one.astype(np.float64) - other).max() <= step


@pytest.mark.parametrize("name", QLINEAR)
def test_float_result_is_within_a_step_of_the_quantized_one(name: str) -> None:
    model = model_of(*QLINEAR[name])
    result, record = rewritten(DequantizeModel(), model)
    assert not record.skips
    assert not QUANTIZED & {node.op for _, node in result.walk()}
    assert not any(node.domain == "com.microsoft" for _, node in result.walk())
    feeds = wide_feeds(model)
    for one, other in zip(answers(model, feeds), answers(result, feeds), strict=True):
        assert one.dtype == other.dtype
        step = 1.0 if one.dtype.kind in "iu" else 0.05
        assert np.abs(one.astype(np.float64) - other).max() <= step * 1.001


@pytest.mark.parametrize("name", LEFT)
def test_what_is_known_only_at_run_time_stays_with_the_reason(name: str) -> None:
    inputs, outputs, body, op, why = LEFT[name]
    model = model_of(inputs, outputs, body)
    _, record = rewritten(DequantizeModel(), model)
    assert any(why in reason for _, reason in record.skips), record.skips
    assert any(node.op == op for _, node in model.walk())


@given(
    scale=st.floats(0.002, 0.2),
    zero=st.integers(0, 255),
    step=st.floats(0.01, 0.5),
    out_zero=st.integers(0, 255),
    per_channel=st.booleans(),
    seed=st.integers(0, 1000),
    op=st.sampled_from(("Conv", "MatMul", "Gemm")),
)
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_any_layer_comes_back_within_a_step(
    scale: float, zero: int, step: float, out_zero: int, per_channel: bool, seed: int, op: str
) -> None:
    random = np.random.default_rng(seed)
    shape = (4, 3, 3, 3) if op == "Conv" else (6, 4)
    axis = 0 if op == "Conv" else 1
    weights = random.integers(-127, 128, shape).astype(np.int8)
    steps = random.uniform(0.001, 0.05, 4 if per_channel else 1).astype(np.float32)
    given_shape, read = ("[2, 3, 5, 5]", "Conv(xd, wd)") if op == "Conv" else ("[2, 6]", f"{op}(xd, wd)")
    made_shape = "[2, 4, 3, 3]" if op == "Conv" else "[2, 4]"
    text = (
        f'<ir_version: 8, opset_import: ["" : 17]> g (float{given_shape} x) => (float{made_shape} y) '
        f"{{ xq = QuantizeLinear(x, s, z) xd = DequantizeLinear(xq, s, z) wd = DequantizeLinear<axis = {axis}>(w, ws, wz) "
        f"c = {read} q = QuantizeLinear(c, t, u) y = DequantizeLinear(q, t, u) }}"
    )
    proto = onnx.parser.parse_model(text)
    values = {
        "s": np.float32(scale),
        "z": np.uint8(zero),
        "w": weights,
        "ws": steps if per_channel else steps.reshape(()),
        "wz": np.zeros_like(steps, np.int8) if per_channel else np.int8(0),
        "t": np.float32(step),
        "u": np.uint8(out_zero),
    }
    proto.graph.initializer.extend(numpy_helper.from_array(np.asarray(v), n) for n, v in values.items())
    model = read_model(proto)
    result, record = rewritten(DequantizeModel(), model)
    assert not record.skips
    on_grid = (random.integers(0, 256, [int(d) for d in given_shape.strip("[]").split(",")]) - zero) * np.float32(scale)
    feed = {"x": on_grid.astype(np.float32)}  # no rounding on the way in: what is left is that of the output
    one, other = (run(session(each, optimize="off"), feed)["y"] for each in (model, result))
    assert np.abs(one - other).max() <= np.float32(step) * 0.5001 + 1e-5


def test_saturation_of_a_grid_is_a_limit_or_only_a_relu() -> None:
    text = '<ir_version: 8, opset_import: ["" : 17]> g (float[2, 8] x) => (float[2, 8] y) <float t = {0.01}, uint8 o = {0}> { d = Add(x, x) q = QuantizeLinear(d, t, o) y = DequantizeLinear(q, t, o) }'
    model = read_model(onnx.parser.parse_model(text))
    kept, _ = rewritten(DequantizeModel(), model)
    assert [node.op for node in kept.graph.nodes] == ["Add", "Clip"]
    relu, _ = rewritten(DequantizeModel(saturation="activations"), model)
    assert [node.op for node in relu.graph.nodes] == ["Add", "Relu"]
    six = read_model(onnx.parser.parse_model(text.replace("0.01", "0.02352941")))
    assert [node.op for node in rewritten(DequantizeModel(saturation="activations"), six)[0].graph.nodes] == [
        "Add",
        "Clip",
    ]
    apart = read_model(onnx.parser.parse_model(text.replace("o = {0}", "o = {9}")))
    assert [node.op for node in rewritten(DequantizeModel(saturation="activations"), apart)[0].graph.nodes] == ["Add"]


def test_limit_that_an_activation_makes_anyway_is_not_repeated() -> None:
    text = '<ir_version: 8, opset_import: ["" : 17]> g (float[2, 8] x) => (float[2, 8] y) <float t = {0.0039215689}, uint8 o = {0}> { d = Sigmoid(x) q = QuantizeLinear(d, t, o) y = DequantizeLinear(q, t, o) }'
    result, _ = rewritten(DequantizeModel(), read_model(onnx.parser.parse_model(text)))
    assert [node.op for node in result.graph.nodes] == ["Sigmoid"]


def test_values_of_few_bits_are_unpacked_lowest_first() -> None:
    assert unpack(np.array([[0xE4]], np.uint8), 2).tolist() == [[0, 1, 2, 3]]
    assert unpack(np.array([[0x21, 0x43]], np.uint8), 4).tolist() == [[1, 2, 3, 4]]
    assert unpack(np.array([[7]], np.uint8), 8).tolist() == [[7]]


# -------------------------------------------------------------------------------------------------------- whole models


@pytest.mark.parametrize("form", FORMS)
def test_model_of_another_tool_comes_back(form: str, tmp_path: Path) -> None:
    path = DEMO / "digits_cnn.onnx"
    feeds = Feeds.open(DATA, session(path)).take(16)
    quantized = quantized_by_peer(path, form, feeds, tmp_path)
    result, record = rewritten(DequantizeModel(), quantized)
    assert not record.skips
    assert not QUANTIZED & {node.op for _, node in result.walk()}
    assert record.layers
    model = read_model(path)
    assert sqnr_db(model, result, feeds) > max(40.0, sqnr_db(model, quantized, feeds))
    assert sqnr_db(quantized, result, feeds) > 35


@pytest.mark.parametrize("options", [{}, {"activations": "dynamic"}, {"activations": "none"}])
def test_own_result_comes_back(options: dict[str, Any]) -> None:
    path = DEMO / "digits_transformer.onnx"
    feeds = Feeds.open(DATA, session(path)).take(16)
    quantized = read_model(path)
    PassManager(["raise-opset", create("insert-qdq", options)]).run(quantized, feeds)
    result, record = rewritten(DequantizeModel(), quantized)
    assert not record.skips
    assert not QUANTIZED & {node.op for _, node in result.walk()}
    assert sqnr_db(read_model(path), result, feeds) > 30


def test_a_float_model_is_left_as_it_is() -> None:
    text = (
        '<ir_version: 8, opset_import: ["" : 17]> g (float[2, 8] x) => (float[2, 8] y) <float[3] t = {1, 2, 3}, '
        "int64 i = {1}> { s = Gather(t, i) m = Mul(x, s) y = Identity(m) }"
    )
    for path in (onnx.parser.parse_model(text), DEMO / "digits_cnn.onnx", DEMO / "digits_transformer.onnx"):
        model = read_model(path)
        for step in (DequantizeModel(), ExpandQoperators()):
            assert PassManager([step]).run(model.copy(), None).patches == 0


def test_a_code_book_is_looked_up_once() -> None:
    path = DEMO / "digits_cnn.onnx"
    feeds = Feeds.open(DATA, session(path)).take(16)
    stored = read_model(path)
    steps = [create("raise-opset", {"to": 21}), create("round-weights", {"scheme": "codebook", "bits": 4})]
    PassManager(steps).run(stored, feeds)
    assert any(node.op == "Gather" for node in stored.graph.nodes)
    result, record = rewritten(DequantizeModel(), stored)
    assert not record.skips
    assert not any(node.op == "Gather" for node in result.graph.nodes)
    assert sqnr_db(stored, result, feeds) > 100


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("bits", [4, 8])
def test_blocks_of_few_bits_come_back(bits: int, symmetric: bool) -> None:
    from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer

    path = DEMO / "digits_transformer.onnx"
    made = MatMulNBitsQuantizer(onnx.load(path), block_size=32, is_symmetric=symmetric, bits=bits)
    made.process()
    quantized = read_model(made.model.model)
    result, record = rewritten(DequantizeModel(), quantized)
    assert not record.skips
    assert not any(node.op == "MatMulNBits" for _, node in result.walk())
    assert sqnr_db(quantized, result, Feeds.open(DATA, session(path)).take(4)) > 100


@pytest.mark.parametrize("per_channel", [True, False])
def test_recurrent_layer_comes_back(per_channel: bool, tmp_path: Path) -> None:
    text = '<ir_version: 8, opset_import: ["" : 17]> g (float[5, 2, 16] x, float[1, 64, 16] w, float[1, 64, 16] r, float[1, 128] b) => (float[5, 1, 2, 16] y) { y = LSTM<hidden_size = 16>(x, w, r, b) }'
    proto = onnx.parser.parse_model(text)
    random = np.random.default_rng(0)
    for value in list(proto.graph.input)[1:]:
        shape = [dim.dim_value for dim in value.type.tensor_type.shape.dim]
        array = (random.standard_normal(shape) * 0.3).astype(np.float32)
        proto.graph.initializer.append(numpy_helper.from_array(array, value.name))
        proto.graph.input.remove(value)
    path = tmp_path / "lstm.onnx"
    onnx.save(proto, path)
    quantized = quantized_by_peer(path, "dynamic", (), tmp_path, per_channel=per_channel, op_types_to_quantize=["LSTM"])
    assert [node.op for node in quantized.graph.nodes] == ["DynamicQuantizeLSTM"]
    result, record = rewritten(DequantizeModel(), quantized)
    assert [node.op for node in result.graph.nodes] == ["LSTM"]
    assert not record.skips
    assert sqnr_db(quantized, result, random_feeds(quantized, count=3, seed=0)) > 38


def sqnr_db(model: Model, other: Model, data: Feeds) -> float:
    one, two = session(model), session(other)
    signal = noise = 0.0
    for feed in data:
        for left, right in zip(run(one, feed).values(), run(two, feed).values(), strict=True):
            signal += float(np.square(left, dtype=np.float64).sum())
            noise += float(np.square(left.astype(np.float64) - right).sum())
    return float(10 * np.log10(signal / noise)) if noise else 200.0
