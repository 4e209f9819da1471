"""The damage of one compressed layer is that of the whole model run with it, whatever the layer and its place."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from graphopt import demo
from graphopt.analysis.layer_statistics import Refusal, find_layers
from graphopt.graph import Model, read_model
from graphopt.rewrite.layer_stop import Stop, find_stops
from graphopt.rewrite.sensitivity import Candidate, Trials, damage, finish, group_stops, measure_layers
from graphopt.runtime import Feeds, input_specs
from graphopt.verify.quality import Judge, Quality

if TYPE_CHECKING:
    from collections.abc import Sequence

    from graphopt.solve.least_squares import Statistics

RNG = np.random.default_rng(7)


def network(last: str = "Identity") -> onnx.ModelProto:
    """Conv without a bias, Conv with one, a residual, two MatMul on one tensor, one of them with an Add, a Gemm."""
    weights = {
        "w1": RNG.standard_normal((4, 2, 3, 3)) * 0.4,
        "w2": RNG.standard_normal((4, 4, 1, 1)),
        "b2": RNG.standard_normal(4),
        "m1": RNG.standard_normal((4, 6)),
        "m2": RNG.standard_normal((4, 6)),
        "a2": RNG.standard_normal(6),
        "g": RNG.standard_normal((5, 6)),
    }
    nodes = [
        helper.make_node("Conv", ["x", "w1"], ["c1"], name="first"),
        helper.make_node("Relu", ["c1"], ["r1"]),
        helper.make_node("Conv", ["r1", "w2", "b2"], ["c2"], name="second"),
        helper.make_node("Add", ["c2", "r1"], ["sum"]),
        helper.make_node("GlobalAveragePool", ["sum"], ["p"]),
        helper.make_node("Flatten", ["p"], ["f"]),
        helper.make_node("MatMul", ["f", "m1"], ["q"], name="left"),
        helper.make_node("MatMul", ["f", "m2"], ["k"], name="right"),
        helper.make_node("Add", ["k", "a2"], ["ka"]),
        helper.make_node("Mul", ["q", "ka"], ["qk"]),
        helper.make_node("Gemm", ["qk", "g"], ["z"], name="head", transB=1),
        helper.make_node(last, ["z"], ["y"]),
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, ["N", 2, 5, 5])],
        [helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, ["N", 5])],
        [numpy_helper.from_array(value.astype(np.float32), name) for name, value in weights.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def feeds(model: Model, count: int = 24) -> Feeds:
    return Feeds.open({"x": RNG.standard_normal((count, 2, 5, 5)).astype(np.float32)}, input_specs(model))


def stops_of(model: Model) -> list[Stop]:
    found = find_stops(model, model, find_layers(model, depthwise=True), observed=True, strict=False)
    return [stop for stop in found if not isinstance(stop, Refusal)]


def halved(stop: Stop, given: list[Statistics] | None) -> Sequence[Candidate]:
    """The weight as it is, and half of it."""
    weight = stop.layer.array()
    return [Candidate(weight), Candidate(weight * 0.5)]


def replaced(proto: onnx.ModelProto, name: str, value: np.ndarray) -> Model:
    changed = onnx.ModelProto()
    changed.CopyFrom(proto)
    for tensor in changed.graph.initializer:
        if tensor.name == name:
            tensor.CopyFrom(numpy_helper.from_array(value, name))
    return read_model(changed)


def same(found: Quality, expected: Quality) -> None:
    assert found.kind == expected.kind
    assert found.samples == expected.samples
    assert found.agreement == expected.agreement
    assert found.worst_sqnr_db == pytest.approx(expected.worst_sqnr_db, abs=1e-3)
    assert (found.kl is None) == (expected.kl is None)
    if expected.kl is not None:
        assert found.kl == pytest.approx(expected.kl, rel=1e-4)
        assert found.kl_error == pytest.approx(expected.kl_error, rel=1e-3)


@pytest.mark.parametrize("last", ["Identity", "Sigmoid"])
def test_each_layer_alone_is_measured_as_the_whole_model_would_be(last: str) -> None:
    proto = network(last)
    model = read_model(proto)
    data = feeds(model)
    judge = Judge(model, data)
    found = {
        stop.layer.node.name: (stop, qualities)
        for stop, qualities in measure_layers(model, stops_of(model), halved, judging=data, calibration=None)
    }
    assert list(found) == ["first", "second", "left", "right", "head"]
    for stop, (dense, half) in found.values():
        assert damage(dense)[0] == pytest.approx(0.0, abs=1e-9)
        expected = judge.measure(replaced(proto, stop.layer.weight.name, stop.layer.array() * np.float32(0.5)))
        same(half, expected)
        assert damage(half)[0] > 1e-3
    assert (next(iter(found.values()))[1][1].kl is None) == (last == "Sigmoid")


def test_model_and_feeds_are_left_as_they_were() -> None:
    proto = network()
    model = read_model(proto)
    before = model.to_bytes()
    list(measure_layers(model, stops_of(model), halved, judging=feeds(model), calibration=feeds(model)))
    assert model.to_bytes() == before


def test_layers_that_read_one_tensor_are_one_group() -> None:
    groups = group_stops(stops_of(read_model(network())))
    names = [[stop.layer.node.name for stop in group] for group in groups]
    assert names == [["first"], ["second"], ["left", "right"], ["head"]]


def test_a_bias_is_replaced_where_there_is_one_and_added_where_there_is_a_place() -> None:
    proto = network()
    model = read_model(proto)
    data = feeds(model)
    shifts = {"first": np.arange(4.0), "second": np.arange(4.0), "right": np.arange(6.0), "head": np.arange(5.0)}

    def shifted(stop: Stop, given: list[Statistics] | None) -> Sequence[Candidate]:
        weight = stop.layer.array()
        return [Candidate(weight, shifts.get(stop.layer.node.name))]

    found = measure_layers(model, stops_of(model), shifted, judging=data, calibration=None)
    qualities = {stop.layer.node.name: quality for stop, (quality,) in found}
    assert damage(qualities["left"])[0] == pytest.approx(0.0, abs=1e-9)  # a MatMul alone has no place for a bias
    judge = Judge(model, data)
    for name, tensor in (("second", "b2"), ("right", "a2")):
        same(qualities[name], judge.measure(replaced(proto, tensor, shifts[name].astype(np.float32))))
    with_bias = onnx.ModelProto()
    with_bias.CopyFrom(proto)
    with_bias.graph.initializer.append(numpy_helper.from_array(np.arange(4, dtype=np.float32), "b1"))
    with_bias.graph.node[0].input.append("b1")
    same(qualities["first"], judge.measure(read_model(with_bias)))


def test_statistics_are_those_of_the_layers_inputs_and_keep_the_mean() -> None:
    model = read_model(network())
    data = feeds(model, 64)
    seen: dict[str, Any] = {}

    def emptied(stop: Stop, given: list[Statistics] | None) -> Sequence[Candidate]:
        assert given is not None
        seen[stop.layer.node.name] = given
        dense = stop.form.matrices(stop.layer.array())
        return [finish(stop, [0.0 * each for each in dense], given, scales_rows=True)]

    found = measure_layers(model, stops_of(model), emptied, judging=data, calibration=data, rows=4096)
    qualities = {stop.layer.node.name: quality for stop, (quality,) in found}
    assert seen["first"][0].inner.shape == (18, 18)
    assert seen["left"][0].inner.shape == (4, 4)
    # Without a bias the second moments hold the means, with one they do not.
    means = seen["left"][0].dense_mean
    assert np.linalg.eigvalsh(seen["left"][0].inner - np.outer(means, means)).min() > -1e-6
    np.testing.assert_allclose(seen["left"][0].dense_mean, seen["right"][0].dense_mean)
    # A head that gives its mean output always is better than one that gives nothing.
    nothing = measure_layers(
        model,
        stops_of(model)[-1:],
        lambda stop, given: [Candidate(0 * stop.layer.array())],
        judging=data,
        calibration=None,
    )
    ((_, (worse,)),) = nothing
    assert qualities["head"].worst_sqnr_db > worse.worst_sqnr_db + 0.1


def test_figures_do_not_depend_on_the_order_of_threads_nor_on_a_second_run() -> None:
    model = read_model(network())
    data = feeds(model)

    def run() -> list[tuple[float, float]]:
        found = measure_layers(model, stops_of(model), halved, judging=data, calibration=data)
        return [damage(quality) for _, qualities in found for quality in qualities]

    assert run() == run()


def test_outputs_that_do_not_depend_on_the_layer_are_compared_too() -> None:
    proto = network()
    proto.graph.output.append(helper.make_tensor_value_info("c1", onnx.TensorProto.FLOAT, ["N", 4, 3, 3]))
    model = read_model(proto)
    data = feeds(model)
    for stop, (_, half) in measure_layers(model, stops_of(model), halved, judging=data, calibration=None):
        assert (half.sqnr_db["c1"] < 100) == (stop.layer.node.name == "first")
        assert half.sqnr_db["y"] < 100


def test_batches_that_cannot_be_joined_are_run_one_by_one() -> None:
    proto = network()
    proto.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 1
    model = read_model(proto)
    data = feeds(model, 6)
    trials = Trials(model, data)
    assert trials.kind == "top-1"
    judge = Judge(model, data)
    (stop,) = group_stops(stops_of(model))[0]
    ((_, (half,)),) = trials.measure([stop], lambda each: [Candidate(each.layer.array() * 0.5)])
    same(half, judge.measure(replaced(proto, "w1", stop.layer.array() * np.float32(0.5))))


@pytest.mark.slow
@pytest.mark.parametrize("path", [demo.CNN, demo.TRANSFORMER])
def test_real_models_agree_with_the_whole_model_run(path: Any) -> None:
    model = read_model(path)
    data = Feeds.open(demo.CALIBRATION, input_specs(model)).take(48)
    judge = Judge(model, data)
    proto = model.to_proto()
    measured = list(measure_layers(model, stops_of(model), halved, judging=data, calibration=None))
    assert len(measured) > 2
    for stop, (_, half) in measured:
        expected = judge.measure(replaced(proto, stop.layer.weight.name, stop.layer.array() * np.float32(0.5)))
        same(half, expected)
