"""smooth-activations and scale-channels: same function, what they are for, every refusal with its reason."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from graphopt import demo
from graphopt.analysis import Facts
from graphopt.analysis.layer_statistics import CollectedStatistics, LayerStatistics
from graphopt.errors import RecipeError
from graphopt.graph import Model, read_model
from graphopt.passes.quantize.scale_channels import ScaleChannels
from graphopt.passes.quantize.smooth_activations import SmoothActivations
from graphopt.rewrite import PassManager, create
from graphopt.runtime import Feeds, input_specs, run, session
from graphopt.verify.quality import Judge
from pass_oracle import check_pass

if TYPE_CHECKING:
    from graphopt.rewrite import Pass

RNG = np.random.default_rng(9)
WIDTH = 12
BOTH: list[Any] = [SmoothActivations(), ScaleChannels(bits=3, granularity="channel")]


def outliers(count: int = WIDTH) -> np.ndarray:
    """Sizes of channels, a few of them 60 times larger than the rest."""
    sizes = np.ones(count)
    sizes[[1, 7]] = 60.0
    return sizes


def weights() -> dict[str, np.ndarray]:
    return {
        "gamma": outliers(),
        "beta": RNG.standard_normal(WIDTH) * outliers(),
        "q": RNG.standard_normal((WIDTH, WIDTH)),
        "k": RNG.standard_normal((8, WIDTH)),
        "kb": RNG.standard_normal(8),
        "v": RNG.standard_normal((WIDTH, WIDTH)),
    }


def network(norm: str = "layer", *, change: str = "") -> onnx.ModelProto:
    """A normalization, read by a MatMul and a Gemm; a product of activations, read by a MatMul."""
    values = weights()
    head = {
        "layer": [helper.make_node("LayerNormalization", ["x", "gamma", "beta"], ["n"], name="norm", axis=-1)],
        "factor": [
            helper.make_node("Tanh", ["x"], ["t"]),
            helper.make_node("Mul", ["t", "gamma"], ["s"], name="factor"),
            helper.make_node("Add", ["beta", "s"], ["n"], name="shift"),
        ],
    }[norm]
    nodes = [
        *head,
        helper.make_node("MatMul", ["n", "q"], ["qo"], name="query"),
        helper.make_node("Gemm", ["n", "k", "kb"], ["ko"], name="key", transB=1),
        helper.make_node("Sigmoid", ["qo"], ["g"]),
        helper.make_node("MatMul", ["n", "q" if change == "shared" else "v"], ["u"], name="up"),
        helper.make_node("Mul", ["g", "u"], ["m"]),
        helper.make_node("MatMul", ["m", "down"], ["d"], name="down"),
        helper.make_node("Concat", ["d", "ko"], ["y"], axis=1),
    ]
    values["down"] = RNG.standard_normal((WIDTH, 6))
    outputs = [helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, ["N", 14])]
    if change == "residual":
        nodes.append(helper.make_node("Neg", ["n"], ["extra"], name="residual"))
        outputs.append(helper.make_tensor_value_info("extra", onnx.TensorProto.FLOAT, ["N", WIDTH]))
    if change == "output":
        outputs.append(helper.make_tensor_value_info("n", onnx.TensorProto.FLOAT, ["N", WIDTH]))
    if change == "computed":
        nodes[0] = helper.make_node("LayerNormalization", ["x", "scale", "beta"], ["n"], name="norm", axis=-1)
        nodes.insert(0, helper.make_node("Exp", ["fed"], ["scale"]))
    inputs = [helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, ["N", WIDTH])]
    if change == "computed":
        inputs.append(helper.make_tensor_value_info("fed", onnx.TensorProto.FLOAT, [WIDTH]))
    if change == "softmax":
        nodes[0] = helper.make_node("Softmax", ["x"], ["n"], name="soft", axis=-1)
    graph = helper.make_graph(
        nodes,
        "g",
        inputs,
        outputs,
        [numpy_helper.from_array(np.asarray(value).astype(np.float32), name) for name, value in values.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)


def feeds(model: Model, count: int = 64) -> Feeds:
    arrays = {"x": RNG.standard_normal((count, WIDTH)).astype(np.float32)}
    if len(input_specs(model)) > 1:
        arrays["fed"] = np.zeros((count, WIDTH), np.float32)
    return Feeds.open(arrays, input_specs(model))


def normalized(model: Model, data: Feeds) -> np.ndarray:
    proto = model.to_proto()
    proto.graph.output.append(helper.make_tensor_value_info("n", onnx.TensorProto.FLOAT, None))
    return np.concatenate([run(session(proto.SerializeToString()), feed)["n"] for feed in data])


@pytest.mark.parametrize("norm", ["layer", "factor"])
@pytest.mark.parametrize("step", BOTH, ids=lambda step: str(step.name))
def test_function_is_kept_and_the_channels_move(norm: str, step: Pass) -> None:
    model = read_model(network(norm))
    data = feeds(model)
    # Searching again may find a little more each time.
    done = check_pass(step, model, data, idempotent=step.name == "smooth-activations")
    assert {"query", "key", "up"} <= {layer.name for layer in done.record.layers}
    before, after = (np.abs(normalized(each, data)).max(axis=0) for each in (model, done.model))
    assert after.max() / after.mean() < before.max() / before.mean()


def test_smoothing_halves_on_a_log_scale_what_channels_differ_by() -> None:
    model = read_model(network())
    data = feeds(model)
    done = check_pass(SmoothActivations(alpha=0.5), model, data)
    sizes = np.abs(normalized(done.model, data)).max(axis=0)
    arrays = {each.name: each.array() for graph in done.model.graphs() for each in graph.initializers}
    read = np.max(
        [np.abs(arrays["q"]).max(axis=1), np.abs(arrays["k"]).max(axis=0), np.abs(arrays["v"]).max(axis=1)], 0
    )
    np.testing.assert_allclose(sizes, read, rtol=1e-3)


def test_activations_with_outliers_survive_one_scale_per_tensor() -> None:
    model = read_model(network())
    data = feeds(model, 200)
    judge = Judge(model, data)
    done = check_pass(SmoothActivations(), model, data)
    found = [judge.measure(with_few_levels(each, data)).worst_sqnr_db for each in (model, done.model)]
    assert found[1] > found[0] + 3.0


def with_few_levels(model: Model, data: Feeds) -> Model:
    """Return a model in which what the layers read has 255 levels and one scale."""
    step = np.float32(np.abs(normalized(model, data)).max() / 127)
    proto = model.to_proto()
    for node in proto.graph.node:
        if node.name in {"query", "key", "up"}:
            node.input[0] = "rounded"
    proto.graph.initializer.append(numpy_helper.from_array(step, "step"))
    proto.graph.initializer.append(numpy_helper.from_array(np.int8(0), "zero"))
    pair = [
        helper.make_node("QuantizeLinear", ["n", "step", "zero"], ["few"]),
        helper.make_node("DequantizeLinear", ["few", "step", "zero"], ["rounded"]),
    ]
    place = [node.output[0] for node in proto.graph.node].index("n") + 1
    nodes = [*proto.graph.node[:place], *pair, *proto.graph.node[place:]]
    del proto.graph.node[:]
    proto.graph.node.extend(nodes)
    return read_model(proto)


def test_scaled_channels_survive_rounding_to_the_nearest_level() -> None:
    model = read_model(network())
    data = feeds(model, 200)
    judge = Judge(model, data)
    done = check_pass(ScaleChannels(bits=3, granularity="channel"), model, data, idempotent=False)
    found = [judge.measure(rounded(each)).worst_sqnr_db for each in (model, done.model)]
    assert found[1] > found[0] + 1.0


def rounded(model: Model) -> Model:
    """Return a model whose matrices have 7 levels and a scale per output."""
    proto = model.to_proto()
    axes = {"q": 0, "k": 1, "v": 0, "down": 0}
    for tensor in proto.graph.initializer:
        if tensor.name in axes:
            value = numpy_helper.to_array(tensor)
            step = np.abs(value).max(axis=axes[tensor.name], keepdims=True) / 3
            tensor.CopyFrom(numpy_helper.from_array((np.rint(value / step) * step).astype(np.float32), tensor.name))
    return read_model(proto)


@pytest.mark.parametrize("step", BOTH, ids=lambda step: str(step.name))
@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ("residual", "is also read by Neg 'residual'"),
        ("output", "is an output of the graph"),
        ("shared", "its weight is used elsewhere too"),
        ("computed", "the scale of LayerNormalization 'norm' is not one constant per channel"),
        ("softmax", "Softmax 'soft' lies between"),
    ],
)
def test_refusals_say_why(step: Pass, change: str, reason: str) -> None:
    model = read_model(network(change=change))
    done = check_pass(step, model, feeds(model), idempotent=step.name == "smooth-activations")
    assert not [layer for layer in done.record.layers if layer.name == "query"]
    assert reason in " | ".join(done.skips.values())


@pytest.mark.parametrize("step", BOTH, ids=lambda step: str(step.name))
def test_without_data_nothing_is_done(step: Pass) -> None:
    done = check_pass(step, network())
    assert done.record.patches == 0
    assert "needs calibration data" in " ".join(done.skips.values())


@pytest.mark.parametrize("step", BOTH, ids=lambda step: str(step.name))
def test_statistics_stand_for_the_data_they_were_collected_on(step: Pass) -> None:
    """All rows are taken either way, so that both find the same scales; data beside statistics is not looked at."""
    one = read_model(network())
    other = one.copy()
    data = feeds(one)
    PassManager([step]).run(one, data)
    known = LayerStatistics.collect(other, data)
    facts = Facts(other, feeds=None)
    facts.record(CollectedStatistics(known))
    outcome = PassManager([step]).run(other, facts=facts)
    assert outcome.patches > 0
    for mine, theirs in zip(other.graph.initializers, one.graph.initializers, strict=True):
        np.testing.assert_allclose(mine.array(), theirs.array(), rtol=1e-4, err_msg=str(mine.name))
    again = PassManager([step]).run(other, facts=facts)
    assert "seen beside other weights" in " ".join(reason for _, reason in again.records[0].skips)


def test_convolutions_are_scaled_by_channel() -> None:
    scale = np.array([40.0, 1, 1, 1, 1, 1])
    values = {
        "w1": RNG.standard_normal((6, 3, 3, 3)) * scale.reshape(-1, 1, 1, 1),
        "b1": RNG.standard_normal(6) * scale,
        "w2": RNG.standard_normal((5, 6, 3, 3)),
    }
    nodes = [
        helper.make_node("Conv", ["x", "w1", "b1"], ["c"], name="one"),
        helper.make_node("Relu", ["c"], ["r"]),
        helper.make_node("Conv", ["r", "w2"], ["y"], name="two"),
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, ["N", 3, 9, 9])],
        [helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, None)],
        [numpy_helper.from_array(value.astype(np.float32), name) for name, value in values.items()],
    )
    model = read_model(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9))
    data = Feeds.open({"x": RNG.standard_normal((32, 3, 9, 9)).astype(np.float32)}, input_specs(model))
    done = check_pass(ScaleChannels(bits=3, granularity="channel"), model, data, idempotent=False)
    assert [layer.name for layer in done.record.layers] == ["two"]


@pytest.mark.parametrize(
    ("name", "options"),
    [("smooth-activations", {"alpha": 1.5}), ("smooth-activations", {"samples": 0}), ("scale-channels", {"bits": 9})],
)
def test_options_out_of_range_are_refused(name: str, options: dict[str, Any]) -> None:
    with pytest.raises(RecipeError):
        create(name, options)


@pytest.mark.slow
@pytest.mark.parametrize("step", [SmoothActivations(), ScaleChannels(bits=3)], ids=lambda step: str(step.name))
def test_a_real_transformer_keeps_its_answers(step: Pass) -> None:
    model = read_model(demo.TRANSFORMER)
    data = Feeds.open(demo.CALIBRATION, input_specs(model)).take(16)
    done = check_pass(step, model, data, interpreted=False, idempotent=step.name == "smooth-activations")
    assert done.record.patches > 0
