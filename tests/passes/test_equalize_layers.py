"""equalize-layers: same function, equal ranges, every refusal with its reason."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnx.parser
import pytest
from onnx import helper, numpy_helper

from graphopt import demo
from graphopt.analysis import Facts
from graphopt.analysis.dense_reference import DenseReference
from graphopt.analysis.row_scale import RowScale
from graphopt.graph import Model, constant_value, read_model
from graphopt.passes.quantize.equalize_layers import EqualizeLayers
from graphopt.rewrite import PassManager, create
from graphopt.runtime import Feeds, input_specs, run, session
from graphopt.verify.quality import Judge
from pass_oracle import check_pass

RNG = np.random.default_rng(3)


def network(nodes: list[Any], weights: dict[str, Any], shape: list[Any], dtype: Any = np.float32) -> onnx.ModelProto:
    kind = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", kind, shape)],
        [helper.make_tensor_value_info("y", kind, None)],
        [numpy_helper.from_array(np.asarray(value).astype(dtype), name) for name, value in weights.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)


def uneven(*shape: int) -> np.ndarray:
    """Weights whose rows differ in size by a factor of 100."""
    scale = np.exp(RNG.uniform(-2.3, 2.3, (shape[0], *[1] * (len(shape) - 1))))
    return np.asarray(RNG.standard_normal(shape) * scale)


def mobile(activation: str = "Relu", **weights: Any) -> onnx.ModelProto:
    """Expansion, depthwise convolution, projection."""
    made = {
        "w1": uneven(8, 4, 1, 1),
        "b1": RNG.standard_normal(8),
        "w2": uneven(8, 1, 3, 3),
        "b2": RNG.standard_normal(8),
        "w3": uneven(4, 8, 1, 1),
        **weights,
    }
    nodes = [
        helper.make_node("Conv", ["x", "w1", "b1"], ["c1"], name="expand"),
        helper.make_node(activation, ["c1"], ["r1"]),
        helper.make_node("Conv", ["r1", "w2", "b2"], ["c2"], name="depthwise", group=8, pads=[1, 1, 1, 1]),
        helper.make_node(activation, ["c2"], ["r2"]),
        helper.make_node("Conv", ["r2", "w3"], ["y"], name="project"),
    ]
    return network(nodes, made, [1, 4, 6, 6])


def sizes(model: Model, name: str) -> np.ndarray:
    (constant,) = [each for graph in model.graphs() for each in graph.initializers if each.name == name]
    return np.asarray(np.abs(constant.array()))


@pytest.mark.parametrize("activation", ["Relu", "LeakyRelu", "Identity"])
def test_channels_have_the_same_range_on_both_sides(activation: str) -> None:
    done = check_pass(EqualizeLayers(), mobile(activation))
    assert {layer.name for layer in done.record.layers} >= {"expand", "depthwise"}
    written = sizes(done.model, "w1").max(axis=(1, 2, 3))
    between = sizes(done.model, "w2").max(axis=(1, 2, 3))
    read = sizes(done.model, "w3").max(axis=(0, 2, 3))
    np.testing.assert_allclose(written, between, rtol=0.02)
    np.testing.assert_allclose(between, read, rtol=0.02)


@pytest.mark.parametrize(("bounds", "passes"), [(("zero",), True), (("", "zero"), True), (("one",), False)])
def test_a_clip_that_only_cuts_at_zero_passes_a_scale(bounds: tuple[str, ...], passes: bool) -> None:
    weights = {"w1": uneven(4, 4, 1, 1), "w2": uneven(4, 4, 1, 1), "zero": 0.0, "one": 1.0}
    nodes = [
        helper.make_node("Conv", ["x", "w1"], ["c"], name="one"),
        helper.make_node("Clip", ["c", *bounds], ["r"], name="clip"),
        helper.make_node("Conv", ["r", "w2"], ["y"], name="two"),
    ]
    assert check_pass(EqualizeLayers(), network(nodes, weights, [1, 4, 5, 5])).record.patches == int(passes)


def test_rounding_with_one_scale_per_tensor_loses_less() -> None:
    model = read_model(mobile())
    data = Feeds.open({"x": RNG.standard_normal((64, 4, 6, 6)).astype(np.float32)}, input_specs(model))
    dense = check_pass(EqualizeLayers(), model, data).model
    judge = Judge(model, data)
    found = [judge.measure(rounded(each)).worst_sqnr_db for each in (model, dense)]
    assert found[1] > found[0] + 3.0


def rounded(model: Model) -> Model:
    """Return a model whose weights have 63 levels and one scale per tensor."""
    proto = model.to_proto()
    for tensor in proto.graph.initializer:
        if tensor.name.startswith("w"):
            value = numpy_helper.to_array(tensor)
            step = np.abs(value).max() / 31
            tensor.CopyFrom(numpy_helper.from_array((np.rint(value / step) * step).astype(np.float32), tensor.name))
    return read_model(proto)


def test_groups_pooling_transposed_convolutions_and_gemm_keep_the_function() -> None:
    weights = {
        "w1": uneven(6, 2, 3, 3),
        "slope": RNG.uniform(0, 1, (6, 1, 1)),
        "w2": uneven(6, 2, 2, 2),
        "b2": RNG.standard_normal(4),
        "shift": RNG.standard_normal((1, 4, 1, 1)),
        "w3": uneven(5, 4, 1, 1),
    }
    nodes = [
        helper.make_node("Conv", ["x", "w1"], ["c1"], name="grouped", group=2),
        helper.make_node("PRelu", ["c1", "slope"], ["r1"]),
        helper.make_node("MaxPool", ["r1"], ["p1"], kernel_shape=[2, 2]),
        helper.make_node("ConvTranspose", ["p1", "w2", "b2"], ["c2"], name="transposed", group=2, strides=[2, 2]),
        helper.make_node("Add", ["c2", "shift"], ["s2"]),
        helper.make_node("GlobalAveragePool", ["s2"], ["p2"]),
        helper.make_node("Conv", ["p2", "w3"], ["y"], name="last"),
    ]
    # onnx.reference does not run a grouped ConvTranspose
    done = check_pass(EqualizeLayers(), network(nodes, weights, [2, 4, 8, 8]), interpreted=False)
    assert done.record.patches == 2


def test_matrices_and_one_side_of_a_product_keep_the_function() -> None:
    weights = {
        "up": uneven(6, 8).T.copy().reshape(8, 6).T.copy(),
        "gate": RNG.standard_normal((6, 8)),
        "down": uneven(5, 8),
        "bias": RNG.standard_normal(8),
        "b3": RNG.standard_normal(5),
    }
    nodes = [
        helper.make_node("MatMul", ["x", "gate"], ["g"], name="gate"),
        helper.make_node("Sigmoid", ["g"], ["s"]),
        helper.make_node("MatMul", ["x", "up"], ["u"], name="up"),
        helper.make_node("Add", ["bias", "u"], ["ub"]),
        helper.make_node("Mul", ["s", "ub"], ["m"]),
        helper.make_node("Gemm", ["m", "down", "b3"], ["y"], name="down", transB=1),
    ]
    done = check_pass(EqualizeLayers(), network(nodes, weights, [3, 6]))
    # the side that a sum with a constant closes is not a layer at once, so nothing is moved through it
    assert done.record.patches in {0, 1}
    nodes[4] = helper.make_node("Mul", ["s", "u"], ["m"])
    del nodes[3]
    done = check_pass(EqualizeLayers(), network(nodes, weights, [3, 6]))
    assert done.record.patches == 1
    assert "down" in done.record.log[0].reason


def test_constants_that_others_read_are_copied() -> None:
    weights = {
        "w1": uneven(8, 4, 1, 1),
        "b": RNG.standard_normal(8),
        "w2": uneven(8, 8, 1, 1),
        "w3": uneven(8, 4, 1, 1),
    }
    nodes = [
        helper.make_node("Conv", ["x", "w1", "b"], ["c1"], name="one"),
        helper.make_node("Relu", ["c1"], ["r1"]),
        helper.make_node("Conv", ["r1", "w2"], ["y1"], name="two"),
        helper.make_node("Conv", ["x", "w3", "b"], ["y2"], name="other"),
        helper.make_node("Add", ["y1", "y2"], ["y"]),
    ]
    done = check_pass(EqualizeLayers(), network(nodes, weights, [1, 4, 5, 5]))
    assert done.record.patches == 1
    np.testing.assert_array_equal(sizes(done.model, "b"), np.abs(weights["b"]).astype(np.float32))


def test_biases_move_on_where_that_is_exact() -> None:
    # every weight positive behind ReLU: the channel never falls below its bias
    first, second = np.abs(uneven(6, 4, 1, 1)), uneven(5, 6, 1, 1)
    weights = {"w0": uneven(4, 4, 1, 1), "w1": first, "b1": np.array([5.0, -1, 3, 0, 2, 1]), "w2": second}
    nodes = [
        helper.make_node("Conv", ["x", "w0"], ["c0"], name="zero"),
        helper.make_node("Relu", ["c0"], ["r0"]),
        helper.make_node("Conv", ["r0", "w1", "b1"], ["c1"], name="one"),
        helper.make_node("Relu", ["c1"], ["r1"]),
        helper.make_node("Conv", ["r1", "w2"], ["y"], name="two"),
    ]
    proto = network(nodes, weights, [1, 4, 5, 5])
    done = check_pass(EqualizeLayers(), proto)
    moved = [record for record in done.record.layers if "biases moved" in record.what]
    assert [record.what for record in moved] == ["4 of 6 biases moved into the next layer"]
    left = sizes(done.model, "b1")
    assert (left[[0, 2, 3, 4, 5]] == 0).all()
    assert left[1] > 0
    without = check_pass(EqualizeLayers(absorb=False), proto)
    assert not [record for record in without.record.layers if "biases" in record.what]


def test_a_bias_that_a_layer_was_given_moves_on_in_the_same_run() -> None:
    nodes = [
        helper.make_node("Gemm", ["x", "a", "c"], ["h"], name="one"),
        helper.make_node("Gemm", ["h", "b"], ["k"], name="two"),
        helper.make_node("Gemm", ["k", "d"], ["y"], name="three"),
    ]
    weights = {"a": uneven(4, 8), "c": RNG.standard_normal(8), "b": uneven(8, 6), "d": uneven(6, 3)}
    done = check_pass(EqualizeLayers(), network(nodes, weights, ["N", 4]))
    gemms = {node.name: node for node in done.model.graph.nodes}
    assert not np.any(constant_value(gemms["two"].inputs[2]))
    assert np.any(constant_value(gemms["three"].inputs[2]))


def test_biases_stay_before_padding_and_where_the_channel_may_fall_below() -> None:
    weights: dict[str, Any] = {"b1": np.full(8, 4.0), "b2": np.full(8, 4.0)}
    done = check_pass(EqualizeLayers(), mobile("Relu", **weights))
    assert not [record for record in done.record.layers if "biases" in record.what]
    linear = check_pass(EqualizeLayers(), mobile("Identity", **weights))
    moved = [record.name for record in linear.record.layers if "biases" in record.what]
    assert moved == ["depthwise"]  # the depthwise convolution is padded, the projection is not


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ("relu6", "Clip 'clip' bounds all channels at the same value"),
        ("residual", "is also read by Add"),
        ("output", "is an output of the graph"),
        ("shared", "its weight is used elsewhere too"),
        ("sigmoid", "Sigmoid '' lies between"),
        ("computed", "its weight is not constant"),
        ("overridable", "its weight is an input too, so callers may replace it"),
    ],
)
def test_refusals_say_why(change: str, reason: str) -> None:
    weights = {"w1": uneven(4, 4, 1, 1), "w2": uneven(4, 4, 1, 1), "zero": 0.0, "six": 6.0}
    between = {
        "relu6": helper.make_node("Clip", ["c", "zero", "six"], ["r"], name="clip"),
        "sigmoid": helper.make_node("Sigmoid", ["c"], ["r"]),
    }.get(change, helper.make_node("Relu", ["c"], ["r"]))
    nodes = [
        helper.make_node("Conv", ["x", "w1"], ["c"], name="one"),
        between,
        helper.make_node("Conv", ["r", "w1" if change == "shared" else "w2"], ["d"], name="two"),
        helper.make_node("Add", ["d", "r"] if change == "residual" else ["d", "d"], ["y"], name="sum"),
    ]
    proto = network(nodes, weights, [1, 4, 5, 5])
    if change == "output":
        proto.graph.output.append(helper.make_tensor_value_info("r", onnx.TensorProto.FLOAT, None))
    if change == "overridable":
        proto.graph.input.append(helper.make_tensor_value_info("w2", onnx.TensorProto.FLOAT, [4, 4, 1, 1]))
    if change == "computed":
        proto.graph.node[2].input[1] = "computed"
        proto.graph.node.insert(0, helper.make_node("Neg", ["fed"], ["computed"]))
        proto.graph.input.append(helper.make_tensor_value_info("fed", onnx.TensorProto.FLOAT, [4, 4, 1, 1]))
    done = check_pass(EqualizeLayers(), proto)
    assert done.record.patches == 0
    assert reason in " | ".join(done.skips.values())
    if change != "shared":
        assert "'x' is fed from outside" in done.skips["one"]


def test_layers_may_be_kept() -> None:
    done = check_pass(EqualizeLayers(keep=("depthwise",)), mobile())
    assert done.record.patches == 0
    assert "'depthwise' is to be kept" in " ".join(done.skips.values())


def test_half_precision_that_cannot_hold_the_result_is_refused() -> None:
    weights = {"w1": np.array([[[[6e-5]]], [[[1.0]]]]), "b1": np.array([6e4, 0.0]), "w2": np.full((1, 2, 1, 1), 60.0)}
    nodes = [
        helper.make_node("Conv", ["x", "w1", "b1"], ["c"], name="one"),
        helper.make_node("Relu", ["c"], ["r"]),
        helper.make_node("Conv", ["r", "w2"], ["y"], name="two"),
    ]
    done = check_pass(EqualizeLayers(), network(nodes, weights, [1, 1, 2, 2], np.float16), interpreted=False)
    assert done.record.patches == 0
    assert "do not fit float16" in " ".join(done.skips.values())


def test_a_real_model_keeps_its_answers() -> None:
    model = read_model(demo.CNN)
    PassManager([create("fold-constants"), create("fuse-batch-norm")]).run(model, None)
    data = Feeds.open(demo.CALIBRATION, input_specs(model)).take(8)
    done = check_pass(EqualizeLayers(), model, data, interpreted=False)
    assert done.record.patches >= 2
    for _, node in done.model.walk():
        if node.op == "Conv":
            value = constant_value(node.inputs[1])
            assert value is not None
            assert np.isfinite(value).all()


def test_what_compression_aims_at_is_scaled_alike() -> None:
    model = read_model(mobile())
    data = Feeds.open({"x": RNG.standard_normal((64, 4, 6, 6)).astype(np.float32)}, input_specs(model))
    dense = model.copy()
    facts = Facts(model, feeds=data)
    steps = [create("prune-wanda", {"sparsity": 0.3, "protect_ends": False}), EqualizeLayers()]
    outcome = PassManager(steps).run(model, data, facts)
    assert outcome.records[1].patches > 0
    reference = facts.get(DenseReference).model
    assert reference is not None
    np.testing.assert_allclose(answer(reference, data), answer(dense, data), rtol=1e-4, atol=1e-5)
    present, aimed, old = (sizes(each, "w1") for each in (model, reference, dense))
    assert not np.allclose(aimed, old, rtol=0.1)
    same = present > 0
    # One number per channel is between what is there and what is aimed at, but for what refitting changed.
    assert np.median(np.abs(np.log(present[same] / aimed[same]))) < np.median(np.abs(np.log(old[same] / aimed[same])))
    PassManager([create("refit-weights")]).run(model, data, facts)
    quality = Judge(dense, data).measure(model)
    assert quality.worst_sqnr_db > 5.0


def answer(model: Model, data: Feeds) -> np.ndarray:
    runner = session(model)
    return np.concatenate([run(runner, feed)["y"] for feed in data])


def test_scores_of_folded_weights_stay_those_of_the_layer_as_it_was_trained() -> None:
    model = read_model(demo.CNN)
    facts = Facts(model)
    PassManager([create("fold-constants"), create("fuse-batch-norm")]).run(model, None, facts)
    before = unfolded(model, facts)
    outcome = PassManager([EqualizeLayers(absorb=False)]).run(model, None, facts)
    written = {record.name for record in outcome.records[0].layers}
    after = unfolded(model, facts)
    assert written
    # Where columns were scaled too, scores change with them.
    read = {record.reason.split("'")[-2] for record in outcome.records[0].log}
    compared = (written & before.keys()) - read
    assert compared
    for name in compared:
        np.testing.assert_allclose(after[name], before[name], rtol=1e-4)


def unfolded(model: Model, facts: Facts) -> dict[str, np.ndarray]:
    found = {}
    for _, node in model.walk():
        scale = facts.get(RowScale).of(node.inputs[1].name) if node.op == "Conv" else None
        value = constant_value(node.inputs[1]) if node.op == "Conv" else None
        if scale is not None and value is not None:
            found[node.name] = np.abs(value) / np.abs(scale).reshape(-1, 1, 1, 1)
    return found
