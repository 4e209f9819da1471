"""Errors of quantized models, tensor by tensor: what is matched, what is measured, which layer is blamed and why."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import onnx.parser
import pytest
from onnx import numpy_helper

import graphopt
from graphopt.analysis.quantization_error import measuring
from graphopt.analysis.quantization_error.measuring import GridUse, ratio_db
from graphopt.errors import UsageError
from graphopt.graph import Model, read_model
from graphopt.quantization_errors import find_quantization_errors
from graphopt.rewrite import PassManager
from graphopt.runtime import Feeds, random_feeds, run, session
from peer_quantized import FORMS, quantized_by_peer

if TYPE_CHECKING:
    from collections.abc import Callable

    from graphopt.report.quantization_errors import QuantizationErrors, TensorEntry

DEMO = Path(graphopt.__file__).parent / "demo"
DATA = DEMO / "digits_calibration.npz"
NET = (
    '<ir_version: 8, opset_import: ["" : 17]> g (float[n, 8, 12, 12] x, float[16, 8, 3, 3] w0, float[16] b0, '
    "float[16, 16, 3, 3] w1, float[16] b1, float[16, 16, 1, 1] w2, float[16] b2, float[10, 16] w3, float[10] b3) => "
    "(float[n, 10] y) { c0 = Conv<pads = [1, 1, 1, 1]>(x, w0, b0) r0 = Relu(c0) "
    "c1 = Conv<pads = [1, 1, 1, 1]>(r0, w1, b1) s = Add(c1, r0) r1 = Relu(s) c2 = Conv(r1, w2, b2) "
    "p = GlobalAveragePool(c2) f = Flatten(p) y = Gemm<transB = 1>(f, w3, b3) }"
)


def net(scale: Callable[[str, np.ndarray[Any, Any]], np.ndarray[Any, Any]] = lambda _name, array: array) -> Model:
    proto = onnx.parser.parse_model(NET)
    random = np.random.default_rng(0)
    for value in list(proto.graph.input)[1:]:
        shape = [dim.dim_value for dim in value.type.tensor_type.shape.dim]
        array = random.standard_normal(shape) / np.sqrt(max(int(np.prod(shape[1:])), 1))
        made = scale(value.name, array).astype(np.float32)
        proto.graph.initializer.append(numpy_helper.from_array(made, value.name))
        proto.graph.input.remove(value)
    for number, node in enumerate(proto.graph.node):
        node.name = f"{node.op_type}{number}"
    return read_model(proto)


def data_of(model: Model) -> Feeds:
    return random_feeds(model, count=6, seed=3)


def quantized(model: Model, **options: Any) -> onnx.ModelProto:
    result = model.copy()
    from graphopt.rewrite.registry import create

    PassManager([create("insert-qdq", {"correct_bias": False, **options})]).run(result, data_of(model))
    result.sort()
    return onnx.load_from_string(result.to_bytes())


def entry(found: QuantizationErrors, name: str) -> TensorEntry:
    return next(each for each in found.tensors if each.name == name)


def constant(proto: onnx.ModelProto, name: str, change: Callable[[Any], Any]) -> str:
    """Change a constant in place of all that read it, under a name of its own."""
    old = next(each for each in proto.graph.initializer if each.name == name)
    value = numpy_helper.to_array(old)
    made = f"{name}_changed{len(proto.graph.initializer)}"
    proto.graph.initializer.append(numpy_helper.from_array(np.asarray(change(value), value.dtype), made))
    return made


def regrid(proto: onnx.ModelProto, tensor: str, factor: float) -> None:
    """Multiply the scale that a tensor is rounded with, where it is rounded and where it is restored."""
    rounding = next(node for node in proto.graph.node if node.op_type == "QuantizeLinear" and node.input[0] == tensor)
    scale = constant(proto, rounding.input[1], lambda value: value * factor)
    for node in proto.graph.node:
        if node is rounding or (node.op_type == "DequantizeLinear" and node.input[0] == rounding.output[0]):
            node.input[1] = scale


# ------------------------------------------------------------------------------------------------------------ matching


PEERS = [
    *(("digits_cnn", form) for form in FORMS),
    ("digits_transformer", "dynamic"),
    *(pytest.param("digits_transformer", form, marks=pytest.mark.slow) for form in FORMS[:-1]),
]


@pytest.mark.parametrize(("name", "form"), PEERS)
def test_all_tensors_of_another_tools_model_are_found(name: str, form: str, tmp_path: Path) -> None:
    path = DEMO / f"{name}.onnx"
    feeds = Feeds.open(DATA, session(path)).take(8)
    made = quantized_by_peer(path, form, feeds, tmp_path)
    found = find_quantization_errors(path, made, feeds)
    missing = [each.node for each in found.unmatched]
    assert len(missing) <= 0.06 * len(found.tensors), missing
    assert found.tensors[-1].name == "logits"
    assert min(each.own_db for each in found.tensors) > 15
    answers = [run(session(each), feed)["logits"] for each in (path, made) for feed in feeds]
    exact, rounded = (np.concatenate(part) for part in (answers[:8], answers[8:]))
    noise = float(np.square(exact - rounded).sum())
    # grids found at run time are those of a batch here, of a sample there
    near = 3.0 if form == "dynamic" else 1.5
    assert found.tensors[-1].accumulated_db == pytest.approx(ratio_db(float(np.square(exact).sum()), noise), abs=near)


def test_names_are_not_needed() -> None:
    model = net()
    proto = quantized(model)
    before = find_quantization_errors(model, read_model(proto), data_of(model))
    public = {each.name for each in (*proto.graph.input, *proto.graph.output)}
    names: dict[str, str] = {"": ""}
    for number, node in enumerate(proto.graph.node):
        node.name = f"n{number}"
        for each in node.output:
            names[each] = each if each in public else f"t{len(names)}"
    for each in proto.graph.initializer:
        names[each.name] = f"t{len(names)}"
        each.name = names[each.name]
    for node in proto.graph.node:
        node.input[:] = [names.get(each, each) for each in node.input]
        node.output[:] = [names.get(each, each) for each in node.output]
    del proto.graph.value_info[:]
    after = find_quantization_errors(model, read_model(proto), data_of(model))
    assert {each.how for each in after.tensors} & {"structure"}
    figures = [[(e.name, e.own_db, e.accumulated_db, e.weight_db) for e in found.tensors] for found in (before, after)]
    assert figures[0] == figures[1]


def test_folded_batch_norm_is_what_comes_out_of_the_convolution() -> None:
    path = DEMO / "digits_cnn.onnx"
    feeds = Feeds.open(DATA, session(path)).take(16)
    made = read_model(path)
    PassManager(["fuse-batch-norm", "eliminate-dead", "raise-opset", "insert-qdq", "eliminate-dead"]).run(made, feeds)
    assert not any(node.op == "BatchNormalization" for node in made.graph.nodes)
    found = find_quantization_errors(path, made, feeds)
    assert min(each.own_db for each in found.tensors) > 30
    absorbed = {each.op for each in found.tensors if each.how in {"absorbed", "name"}}
    assert "BatchNormalization" in absorbed


def test_tables_of_integers_are_found_by_what_they_hold() -> None:
    text = (
        '<ir_version: 8, opset_import: ["" : 17]> g (int64[n, 6] ids, float[400, 32] e, float[400, 32] p, '
        "float[32, 64] w) => (float[n, 6, 64] y) "
        "{ a = Gather(e, ids) b = Gather(p, ids) s = Add(a, b) y = MatMul(s, w) }"
    )
    proto = onnx.parser.parse_model(text)
    random = np.random.default_rng(0)
    for value in list(proto.graph.input)[1:]:
        shape = [dim.dim_value for dim in value.type.tensor_type.shape.dim]
        proto.graph.initializer.append(
            numpy_helper.from_array(random.standard_normal(shape).astype(np.float32), value.name)
        )
        proto.graph.input.remove(value)
    model = read_model(proto)
    feeds = Feeds.open({"ids": random.integers(0, 400, (8, 6))}, session(model))
    made = model.copy()
    PassManager(["insert-qdq"]).run(made, feeds)
    made.sort()
    found = find_quantization_errors(model, made, feeds)
    assert {each.name for each in found.tensors} == {"a", "b", "s", "y"}
    for name in "ab":
        assert entry(found, name).how in {"structure", "node"}
        assert 25 < (entry(found, name).weight_db or 0) < 60
        assert entry(found, name).own_db == pytest.approx(entry(found, name).weight_db, abs=1.5)


def test_integers_that_are_moved_before_they_are_restored_are_understood() -> None:
    model = net()
    proto = quantized(model)
    rounding = next(node for node in proto.graph.node if node.op_type == "QuantizeLinear" and node.input[0] == "x")
    given = rounding.output[0]
    place = list(proto.graph.node).index(rounding)
    proto.graph.node.remove(rounding)
    proto.graph.node.insert(place, onnx.helper.make_node("Identity", ["bytes"], [given]))
    del proto.graph.input[:]
    proto.graph.input.append(onnx.helper.make_tensor_value_info("bytes", onnx.TensorProto.UINT8, [1, 8, 12, 12]))
    found = find_quantization_errors(model, read_model(proto), data_of(model))
    assert found.worst is None
    assert entry(found, "y").accumulated_db > 25


def test_tensors_of_other_shapes_are_not_compared() -> None:
    head = '<ir_version: 8, opset_import: ["" : 17]> g (float[n, 2, 8, 8] x) => (float[n, 2, 1, 1] y) '
    model = read_model(onnx.parser.parse_model(head + "{ c = Exp(x) y = GlobalMaxPool(c) }"))
    other = (
        head + "<float s = {0.1}, uint8 z = {0}> { p = MaxPool<kernel_shape = [2, 2], strides = [2, 2]>(x) c = Exp(p) "
        "q = QuantizeLinear(c, s, z) d = DequantizeLinear(q, s, z) y = GlobalMaxPool(d) }"
    )
    found = find_quantization_errors(model, read_model(onnx.parser.parse_model(other)), data_of(model))
    assert {each.node: "shapes differ" in each.reason for each in found.unmatched} == {"c": True}
    assert entry(found, "y").how == "name"


def test_unrelated_models_are_refused() -> None:
    text = '<ir_version: 8, opset_import: ["" : 17]> g (float[n, 3] a) => (float[n, 3] b) { b = Exp(a) }'
    with pytest.raises(UsageError, match="no tensor in common"):
        find_quantization_errors(net(), read_model(onnx.parser.parse_model(text)))


def test_integers_that_a_caller_gives_are_made_from_the_floats() -> None:
    model = net()
    proto = quantized(model)
    rounding = next(node for node in proto.graph.node if node.op_type == "QuantizeLinear" and node.input[0] == "x")
    given = rounding.output[0]
    proto.graph.node.remove(rounding)
    del proto.graph.input[:]
    proto.graph.input.append(onnx.helper.make_tensor_value_info(given, onnx.TensorProto.UINT8, ["n", 8, 12, 12]))
    found = find_quantization_errors(model, read_model(proto), data_of(model))
    assert entry(found, "y").accumulated_db > 25


# ----------------------------------------------------------------------------------------------------------- measuring


def test_groups_of_tensors_give_the_same_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    model = net()
    made = read_model(quantized(model))
    whole = find_quantization_errors(model, made, data_of(model))
    monkeypatch.setattr(measuring, "GROUP_BYTES", 1)
    single = find_quantization_errors(model, made, data_of(model))
    for one, other in zip(whole.tensors, single.tensors, strict=True):
        assert (one.name, one.how, one.low, one.high) == (other.name, other.how, other.low, other.high)
        assert one.own_db == pytest.approx(other.own_db, abs=1e-3)
        assert one.accumulated_db == pytest.approx(other.accumulated_db, abs=1e-3)


def test_own_error_is_that_of_the_layer_alone() -> None:
    model = net()
    proto = quantized(model)
    regrid(proto, "r0", 8.0)
    found = find_quantization_errors(model, read_model(proto), data_of(model))
    clean = find_quantization_errors(model, read_model(quantized(model)), data_of(model))
    assert entry(found, "r0").own_db < entry(clean, "r0").own_db - 12
    assert entry(found, "c1").own_db == pytest.approx(entry(clean, "c1").own_db, abs=0.1)
    assert entry(found, "c1").accumulated_db < entry(clean, "c1").accumulated_db - 6


def test_energy_on_a_grid_is_divided_into_cut_off_and_rounded() -> None:
    use = GridUse(-1.0, 1.0, 0.5)
    use.add(np.array([0.1, 0.4, 2.0, -3.0]))
    assert use.outside == 2
    assert use.cut_off == pytest.approx(1.0 + 4.0)
    assert use.rounded == pytest.approx(0.01 + 0.01)


def test_ratios_are_finite() -> None:
    assert ratio_db(1.0, 0.0) == 200.0
    assert ratio_db(0.0, 1.0) == -200.0
    assert ratio_db(100.0, 1.0) == pytest.approx(20.0)


# -------------------------------------------------------------------------------------------------------------- blaming


def test_a_good_model_has_no_bad_layer() -> None:
    model = net()
    found = find_quantization_errors(model, read_model(quantized(model)), data_of(model))
    assert found.worst is None
    assert min(each.weight_db for each in found.tensors if each.weight_db is not None) > 35


@pytest.mark.parametrize("factor", [0.05, 40.0])
@pytest.mark.parametrize("tensor", ["r0", "r1", "c2"])
def test_a_wrong_range_is_named(tensor: str, factor: float) -> None:
    model = net()
    proto = quantized(model)
    regrid(proto, tensor, factor)
    found = find_quantization_errors(model, read_model(proto), data_of(model))
    assert found.worst == tensor
    worst = found.worst_entry()
    assert worst is not None
    assert ("range is clipped" if factor < 1 else "far too wide") in worst.reason


def test_one_scale_for_uneven_channels_is_named() -> None:
    def uneven(name: str, array: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        if name != "w1":
            return array
        return array * np.where(np.arange(16) == 3, 3.0, 0.01).reshape(-1, 1, 1, 1)

    model = net(uneven)
    proto = quantized(model, per_channel=False)
    found = find_quantization_errors(model, read_model(proto), data_of(model))
    row = entry(found, "c1")
    assert row.weight_db is not None
    proto = quantized(model)
    better = find_quantization_errors(model, read_model(proto), data_of(model))
    assert (entry(better, "c1").weight_db or 0) > row.weight_db


def test_a_bias_at_the_end_of_its_type_is_named() -> None:
    model = net()
    proto = quantized(model)
    convolution = next(node for node in proto.graph.node if node.name.startswith("Conv2"))
    restoring = next(node for node in proto.graph.node if convolution.input[2] in node.output)
    restoring.input[0] = constant(proto, restoring.input[0], lambda value: np.full_like(value, 2**31 - 1))
    found = find_quantization_errors(model, read_model(proto), data_of(model))
    worst = found.worst_entry()
    assert worst is not None
    assert worst.name == "c1"
    assert "bias does not fit int32" in worst.reason


def test_a_weight_that_was_rounded_too_coarsely_is_named() -> None:
    model = net()
    proto = quantized(model)
    convolution = next(node for node in proto.graph.node if node.name.startswith("Conv5"))
    restoring = next(node for node in proto.graph.node if convolution.input[1] in node.output)
    restoring.input[0] = constant(proto, restoring.input[0], lambda value: np.rint(value / 64) * 63)
    found = find_quantization_errors(model, read_model(proto), data_of(model))
    worst = found.worst_entry()
    assert worst is not None
    assert worst.name == "c2"
    assert "of its weight" in worst.reason
