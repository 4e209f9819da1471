"""prune-magnitude: which weights go, how many, and which layers are left alone for which reason."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnx.parser
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from graphopt import demo
from graphopt.analysis.layer_statistics import Layer, find_layers
from graphopt.errors import RecipeError
from graphopt.graph import Model, constant_value, read_model
from graphopt.passes.prune.prune_magnitude import PruneMagnitude
from graphopt.rewrite import PassManager, create
from graphopt.runtime import Feeds
from graphopt.solve.patterns import Pattern, channels_last
from graphopt.verify.legality import check_legal
from pass_oracle import check_pass, run_pass

HEAD = '<ir_version: 9, opset_import: ["" : 17]>\n'
SCOPES = ["local", "global", "lamp", "erk"]


def network(seed: int = 0, dtype: Any = np.float32) -> onnx.ModelProto:
    """A convolution, a MatMul and a Gemm in a row, with weights of very different size."""
    rng = np.random.default_rng(seed)
    weights = {
        "conv_w": rng.standard_normal((6, 3, 3, 3)) * 0.1,
        "mat_w": rng.standard_normal((6, 10)) * 5,
        "gemm_w": rng.standard_normal((4, 10)),
    }
    nodes = [
        helper.make_node("Conv", ["x", "conv_w"], ["c"], name="conv", pads=[1, 1, 1, 1]),
        helper.make_node("GlobalAveragePool", ["c"], ["p"]),
        helper.make_node("Flatten", ["p"], ["f"]),
        helper.make_node("MatMul", ["f", "mat_w"], ["m"], name="mat"),
        helper.make_node("Gemm", ["m", "gemm_w"], ["y"], name="gemm", transB=1),
    ]
    kind = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", kind, [1, 3, 5, 5])],
        [helper.make_tensor_value_info("y", kind, [1, 4])],
        [numpy_helper.from_array(value.astype(dtype), name) for name, value in weights.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)


def weights_of(model: Model) -> dict[str, np.ndarray]:
    return {constant.name: constant.array() for graph in model.graphs() for constant in graph.initializers}


def zeros(model: Model) -> int:
    return sum(int((value == 0).sum()) for value in weights_of(model).values())


def skips(text: str, **options: Any) -> str:
    done = check_pass(PruneMagnitude(**options), HEAD + text)
    assert done.record.patches == 0
    ((_, reason),) = done.record.skips
    return reason


@pytest.mark.parametrize("scope", SCOPES)
@pytest.mark.parametrize("sparsity", [0.1, 0.5, 0.83])
def test_share_of_zeros_is_exact_and_a_second_run_finds_nothing(scope: Any, sparsity: float) -> None:
    done = check_pass(PruneMagnitude(sparsity=sparsity, scope=scope), network())
    total = 6 * 27 + 60 + 40
    exact = abs(zeros(done.model) - sparsity * total)
    assert exact <= (0.5 if scope in {"global", "lamp"} else 1.5)
    assert {layer.name for layer in done.record.layers} | set(done.skips) == {"conv", "mat", "gemm"}
    assert all(layer.kept for layer in done.record.layers)


@pytest.mark.parametrize("scope", SCOPES)
def test_weights_that_stay_are_bitwise_the_same(scope: Any) -> None:
    done = check_pass(PruneMagnitude(sparsity=0.6, scope=scope), network())
    before = weights_of(done.before)
    for name, after in weights_of(done.model).items():
        assert after.dtype == before[name].dtype
        assert ((after == before[name]) | (after == 0)).all()


def test_local_scope_takes_the_smallest_of_each_layer() -> None:
    done = check_pass(PruneMagnitude(sparsity=0.5, scope="local"), network())
    for name, before in weights_of(done.before).items():
        after = weights_of(done.model)[name]
        assert np.abs(before[after == 0]).max() <= np.abs(before[after != 0]).min()
        assert (after == 0).sum() == before.size // 2


def test_global_scope_takes_the_smallest_of_all() -> None:
    done = check_pass(PruneMagnitude(sparsity=0.5, scope="global"), network())
    before, after = (
        np.concatenate([value.ravel() for value in weights_of(m).values()]) for m in (done.before, done.model)
    )
    assert np.abs(before[after == 0]).max() <= np.abs(before[after != 0]).min()


def test_lamp_scope_empties_no_layer() -> None:
    done = check_pass(PruneMagnitude(sparsity=0.98, scope="lamp"), network())
    assert all(value.any() for value in weights_of(done.model).values())


def test_threshold_scope_ignores_the_share() -> None:
    done = check_pass(PruneMagnitude(sparsity=0.9, scope="threshold", threshold=0.25), network())
    for name, before in weights_of(done.before).items():
        np.testing.assert_array_equal(weights_of(done.model)[name], np.where(np.abs(before) >= 0.25, before, 0))


def test_scores_undo_the_scale_that_batch_normalization_left() -> None:
    rng = np.random.default_rng(4)
    weight = rng.standard_normal((4, 2, 3, 3)).astype(np.float32)
    gain = np.array([100, 0.01, 3, -1], np.float32)
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"], name="conv"),
        helper.make_node("BatchNormalization", ["c", "gain", "shift", "mean", "var"], ["y"], name="bn", epsilon=0.0),
    ]
    constants: dict[str, np.ndarray] = {
        "w": weight,
        "gain": gain,
        "shift": np.zeros(4),
        "mean": np.zeros(4),
        "var": np.ones(4),
    }
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 2, 4, 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 4, 2, 2])],
        [numpy_helper.from_array(value.astype(np.float32), name) for name, value in constants.items()],
    )
    model = read_model(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9))
    PassManager([create("fuse-batch-norm"), PruneMagnitude(sparsity=0.5, scope="global")]).run(model)
    (conv,) = (node for node in model.graph.nodes if node.op == "Conv")
    pruned = constant_value(conv.inputs[1])
    assert pruned is not None
    smallest = np.argsort(np.abs(weight), axis=None)[: weight.size // 2]
    assert set(np.flatnonzero(pruned == 0)) == set(smallest)


def test_threshold_is_that_of_the_weights_before_batch_normalization_was_folded() -> None:
    text = (
        HEAD
        + """g (float[1, 2, 1, 1] x) => (float[1, 2, 1, 1] y) <float[2, 2, 1, 1] w = {1, 3, 1, 3},
    float[2] gain = {100, 0.01}, float[2] shift = {0, 0}, float[2] mean = {0, 0}, float[2] var = {1, 1}>
    { c = Conv(x, w) y = BatchNormalization<epsilon = 0.0>(c, gain, shift, mean, var) }"""
    )
    model = read_model(onnx.parser.parse_model(text))
    PassManager([create("fuse-batch-norm"), PruneMagnitude(scope="threshold", threshold=2.0)]).run(model)
    pruned = weights_of(model)["w"]
    assert (pruned != 0).ravel().tolist() == [False, True, False, True]


def test_existing_zeros_count_and_stay() -> None:
    model = network()
    first = numpy_helper.to_array(model.graph.initializer[0]).copy()
    first.ravel()[::2] = 0
    model.graph.initializer[0].CopyFrom(numpy_helper.from_array(first, "conv_w"))
    done = check_pass(PruneMagnitude(sparsity=0.5, scope="local"), model)
    assert (weights_of(done.model)["conv_w"] == 0).sum() == 81
    assert "50.0% of its weights are zero already" in done.skips["conv"]


def test_shared_weight_is_pruned_once_and_recorded_for_each_node() -> None:
    text = """g (float[2, 2] x) => (float[2, 2] y) <float[2, 2] w = {1, 2, 3, 4}>
    { [a] m = MatMul(x, w) [b] y = MatMul(m, w) }"""
    done = check_pass(PruneMagnitude(sparsity=0.5), HEAD + text)
    assert done.record.patches == 1
    assert [layer.name for layer in done.record.layers] == ["a", "b"]
    assert weights_of(done.model)["w"].tolist() == [[0, 0], [3, 4]]


def test_weights_in_bodies_are_pruned() -> None:
    text = """g (bool c, float[1, 2] x) => (float[1, 2] y) {
    y = If (c) <then_branch = t () => (float[1, 2] ty) <float[2, 2] w = {1, 2, 3, 4}> { ty = MatMul(x, w) },
                else_branch = f () => (float[1, 2] fy) { fy = Identity(x) }> }"""
    done = check_pass(PruneMagnitude(sparsity=0.5), HEAD + text)
    assert weights_of(done.model)["w"].tolist() == [[0, 0], [3, 4]]


def test_weight_of_a_constant_node_is_pruned() -> None:
    text = """g (float[1, 2] x) => (float[1, 2] y)
    { w = Constant<value = float[2, 2] {1, 2, 3, 4}>() y = MatMul(x, w) }"""
    done = check_pass(PruneMagnitude(sparsity=0.5), HEAD + text)
    (node,) = (node for node in done.model.graph.nodes if node.op == "MatMul")
    value = constant_value(node.inputs[1])
    assert value is not None
    assert value.tolist() == [[0, 0], [3, 4]]


def test_matrix_on_the_left_is_a_weight_too() -> None:
    text = "g (float[2, 3] x) => (float[2, 3] y) <float[2, 2] w = {1, 2, 3, 4}> { y = MatMul(w, x) }"
    done = check_pass(PruneMagnitude(sparsity=0.5), HEAD + text)
    assert weights_of(done.model)["w"].tolist() == [[0, 0], [3, 4]]


@pytest.mark.parametrize("dtype", [np.float16, np.float64])
def test_other_float_types_keep_their_type(dtype: Any) -> None:
    done = run_pass(PruneMagnitude(sparsity=0.5, scope="global"), network(dtype=dtype))
    assert zeros(done.model) == 131
    assert {value.dtype for value in weights_of(done.model).values()} == {np.dtype(dtype)}


REFUSALS = {
    "computed": (
        "g (float[1, 2] x, float[2, 2] v) => (float[1, 2] y) { w = Neg(v) y = Gemm(x, w) }",
        "not constant but computed by Neg",
    ),
    "no weight": ("g (float[2, 2] x) => (float[2, 2] y) { y = MatMul(x, x) }", "both inputs are computed"),
    "quantized": (
        """g (float[1, 2] x) => (float[1, 2] y) <int8[2, 2] q = {1, 2, 3, 4}, float s = {0.5}>
        { w = DequantizeLinear(q, s) y = MatMul(x, w) }""",
        "quantized already",
    ),
    "embedding": (
        """g (float[1, 2] x) => (float[1, 2] e, float[1, 2] y) <float[2, 2] w = {1, 2, 3, 4}, int64[1] i = {1}>
        { e = Gather(w, i) y = MatMul(x, w) }""",
        "also read by Gather",
    ),
    "output": (
        """g (float[1, 2] x) => (float[1, 2] y, float[2, 2] w) <float[2, 2] w = {1, 2, 3, 4}> { y = MatMul(x, w) }""",
        "an output of the graph",
    ),
    "overridable": (
        "g (float[1, 2] x, float[2, 2] w) => (float[1, 2] y) <float[2, 2] w = {1, 2, 3, 4}> { y = MatMul(x, w) }",
        "callers may replace it",
    ),
    "vector": ("g (float[1, 2] x) => (float[1] y) <float[2] w = {1, 2}> { y = MatMul(x, w) }", "the shape [2]"),
    "integers": (
        "g (int32[1, 2] x) => (int32[1, 2] y) <int32[2, 2] w = {1, 2, 3, 4}> { y = MatMul(x, w) }",
        "int32, not a float",
    ),
    "depthwise": (
        """g (float[1, 2, 3] x) => (float[1, 2, 2] y) <float[2, 1, 2] w = {1, 2, 3, 4}>
        { y = Conv<group = 2>(x, w) }""",
        "depthwise",
    ),
    "recurrent": (
        """g (float[2, 1, 2] x) => (float[2, 1, 1, 1] y) <float[1, 1, 2] w = {1, 2}, float[1, 1, 1] r = {1}>
        { y = RNN<hidden_size = 1>(x, w, r) }""",
        "RNN are not pruned",
    ),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_weight_that_must_stay_is_skipped_with_the_reason(case: str) -> None:
    text, reason = REFUSALS[case]
    assert reason in skips(text)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_weight_that_is_not_finite_is_skipped(value: float) -> None:
    model = network()
    bad = numpy_helper.to_array(model.graph.initializer[1]).copy()
    bad[2, 3] = value
    model.graph.initializer[1].CopyFrom(numpy_helper.from_array(bad, "mat_w"))
    done = run_pass(PruneMagnitude(sparsity=0.5), model)
    assert "NaN or infinite" in done.skips["mat"]
    assert [layer.name for layer in done.record.layers] == ["conv", "gemm"]


def test_weight_of_a_function_is_skipped() -> None:
    text = """<ir_version: 9, opset_import: ["" : 17, "f" : 1]>
    g (float[1, 2] x) => (float[1, 2] y) { y = f.linear(x) }
    <domain: "f", opset_import: ["" : 17]> linear (x) => (y)
    { w = Constant<value = float[2, 2] {1, 2, 3, 4}>() y = MatMul(x, w) }"""
    done = run_pass(PruneMagnitude(sparsity=0.5), text)
    assert done.record.patches == 0
    assert [reason for _, reason in done.record.skips] == [
        "it lies in a function of the model, which several places may call"
    ]


def test_depthwise_is_pruned_on_request() -> None:
    text = "g (float[1, 2, 3] x) => (float[1, 2, 2] y) <float[2, 1, 2] w = {1, 2, 3, 4}> { y = Conv<group = 2>(x, w) }"
    done = check_pass(PruneMagnitude(sparsity=0.5, depthwise=True), HEAD + text)
    assert zeros(done.model) == 2


def test_kept_layers_stay_and_do_not_count() -> None:
    done = check_pass(PruneMagnitude(sparsity=0.5, scope="global", keep=("conv",)), network())
    assert done.skips == {"conv": "it is to be kept"}
    assert zeros(done.model) == 50


def test_protected_ends_stay() -> None:
    done = check_pass(PruneMagnitude(sparsity=0.5, scope="global", protect_ends=True), network())
    assert set(done.skips) == {"conv", "gemm"}
    assert zeros(done.model) == 30


def test_residual_around_a_layer_makes_no_further_ends() -> None:
    text = """g (float[2, 2] x) => (float[2, 2] y)
    <float[2, 2] w = {1, 2, 3, 4}, float[2, 2] v = {1, 2, 3, 4}, float[2, 2] u = {1, 2, 3, 4}>
    { [a] m = MatMul(x, w) s = Add(m, x) [b] n = MatMul(s, v) t = Add(n, s) [c] y = MatMul(t, u) }"""
    done = check_pass(PruneMagnitude(sparsity=0.5, protect_ends=True), HEAD + text)
    assert [layer.name for layer in done.record.layers] == ["b"]


def test_strength_scales_the_sparsity_and_the_threshold() -> None:
    weaker = PruneMagnitude(sparsity=0.8, threshold=0.4).with_strength(0.25)
    assert weaker.sparsity == pytest.approx(0.2)
    assert weaker.threshold == pytest.approx(0.1)


@pytest.mark.parametrize("options", [{"sparsity": 80}, {"sparsity": -0.1}, {"threshold": -1.0}, {"scope": "weights"}])
def test_options_out_of_range_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(RecipeError, match=next(iter(options))):
        create("prune-magnitude", options)


@pytest.mark.parametrize("path", [demo.CNN, demo.TRANSFORMER], ids=["cnn", "transformer"])
def test_file_is_not_larger_than_before(path: Any) -> None:
    model = read_model(path)
    PassManager([PruneMagnitude(sparsity=0.5)]).run(model)
    assert len(model.to_bytes()) <= path.stat().st_size


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 100), scope=st.sampled_from(SCOPES), low=st.floats(0, 1), high=st.floats(0, 1))
def test_zeros_never_come_back_at_a_higher_sparsity(seed: int, scope: Any, low: float, high: float) -> None:
    low, high = sorted((low, high))
    model = read_model(network(seed))
    PassManager([PruneMagnitude(sparsity=low, scope=scope)]).run(model)
    gone = {name: value == 0 for name, value in weights_of(model).items()}
    PassManager([PruneMagnitude(sparsity=high, scope=scope)]).run(model)
    check_legal(model)
    assert all((weights_of(model)[name][mask] == 0).all() for name, mask in gone.items())


def test_result_is_the_same_every_time() -> None:
    def pruned() -> bytes:
        return run_pass(PruneMagnitude(sparsity=0.7), network()).model.to_bytes()

    assert pruned() == pruned()


def test_steps_refit_in_between_and_reach_the_same_sparsity() -> None:
    model = read_model(demo.CNN)
    data = Feeds.open(demo.CALIBRATION, model).take(48)
    stepwise = PruneMagnitude(sparsity=0.8, steps=2)
    outcome = PassManager([create("fuse-batch-norm"), stepwise]).run(model, data)
    layers = [found for found in find_layers(model) if isinstance(found, Layer)]
    total = sum(layer.array().size for layer in layers)
    assert sum(int((layer.array() == 0).sum()) for layer in layers) == round(0.8 * total)
    record = outcome.records[1]
    assert any(patch.reason.startswith("refit") for patch in record.log)
    assert all(layer.what.endswith("% zeros") for layer in record.layers)
    assert len({layer.name for layer in record.layers}) == len(record.layers) == 7


def test_steps_without_data_are_one() -> None:
    once = run_pass(PruneMagnitude(sparsity=0.7), network()).model.to_bytes()
    assert run_pass(PruneMagnitude(sparsity=0.7, steps=3), network()).model.to_bytes() == once
    assert PruneMagnitude(steps=0).uses_data
    assert not PruneMagnitude(steps=1).uses_data


def test_attribute_of_another_operator_is_not_read_as_a_group() -> None:
    text = "g (float[1, 2] x) => (float[1, 1] y) <float[2, 1] w = {1, 2}> { y = MatMul<group = 2>(x, w) }"
    done = run_pass(PruneMagnitude(sparsity=0.5), HEAD + text)
    assert done.record.patches == 1


@pytest.mark.parametrize("name", ["4x1", "1x4", "4x4", "2:4", "3:5"])
@pytest.mark.parametrize("scope", [*SCOPES, "threshold"])
def test_what_stays_follows_the_pattern(name: str, scope: Any) -> None:
    model = read_model(network())
    dense = weights_of(read_model(network()))
    one = PruneMagnitude(pattern=name, scope=scope, sparsity=0.6, threshold=0.5)
    outcome = PassManager([one]).run(model)
    check_legal(model)
    pattern = Pattern.parse(name)
    skipped = {node: reason for node, reason in outcome.records[0].skips if "multiple" in reason}
    wanted = {("2:4", "conv"): 3, ("3:5", "conv"): 3, ("2:4", "mat"): 6, ("3:5", "mat"): 6, ("2:4", "gemm"): 10}
    assert skipped == {
        node: f"its {inputs} inputs are no multiple of {pattern.of}"
        for (each, node), inputs in wanted.items()
        if each == name
    }
    after = weights_of(model)
    conv = after["conv_w"].reshape(6, -1)[:, channels_last((6, 3, 3, 3))]
    for node, matrix in {"conv": conv, "mat": after["mat_w"].T, "gemm": after["gemm_w"]}.items():
        assert pattern.holds(matrix != 0) or node in skipped
    for key, value in after.items():
        np.testing.assert_array_equal(value[value != 0], dense[key][value != 0])
    if not pattern.of and scope != "threshold":
        total = sum(value.size for value in after.values())
        slack = pattern.rows * pattern.columns / 2 * (3 if scope in {"local", "erk"} else 1)
        assert abs(zeros(model) - 0.6 * total) <= slack


def test_blocks_of_least_mean_magnitude_go() -> None:
    weight = np.array([[1, 1, 9, 9, 3], [1, 1, 1, 1, 1]], np.float32)
    text = HEAD + "g (float[1, 5] x) => (float[1, 2] y) <float[2, 5] w = {1,1,9,9,3,1,1,1,1,1}> "
    model = read_model(onnx.parser.parse_model(text + "{ y = Gemm<transB = 1>(x, w) }"))
    PassManager([PruneMagnitude(pattern="1x4", scope="local", sparsity=0.5)]).run(model)
    (found,) = weights_of(model).values()
    # Blocks: 1 1 9 9 | 3 and 1 1 1 1 | 1; the narrow last block of a row counts by its mean.
    np.testing.assert_array_equal(found, weight * np.array([[1, 1, 1, 1, 1], [0, 0, 0, 0, 0]]))


def test_fewer_zeros_than_n_of_m_take_the_layers_that_lose_least() -> None:
    rng = np.random.default_rng(0)
    rough, smooth = rng.standard_normal((8, 8)), np.sign(rng.standard_normal((8, 8)))
    smooth[:, ::2] *= 1e-3
    graph = helper.make_graph(
        [
            helper.make_node("MatMul", ["x", "a"], ["t"], name="a"),
            helper.make_node("MatMul", ["t", "b"], ["y"], name="b"),
        ],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 8])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 8])],
        [numpy_helper.from_array(each.astype("f4"), name) for name, each in {"a": rough, "b": smooth.T}.items()],
    )
    model = read_model(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9))
    PassManager([PruneMagnitude(pattern="2:4", sparsity=0.3)]).run(model)
    found = weights_of(model)
    assert np.count_nonzero(found["a"]) == 64
    assert np.count_nonzero(found["b"]) == 32


def test_a_group_of_a_convolution_has_blocks_of_its_own() -> None:
    rng = np.random.default_rng(0)
    weight = rng.standard_normal((12, 4, 3, 3)).astype("f4")
    node = helper.make_node("Conv", ["x", "w"], ["y"], group=2)
    graph = helper.make_graph(
        [node],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 8, 5, 5])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 12, 3, 3])],
        [numpy_helper.from_array(weight, "w")],
    )
    model = read_model(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9))
    PassManager([PruneMagnitude(pattern="4x1", sparsity=0.5)]).run(model)
    (found,) = weights_of(model).values()
    for part in np.split(found.reshape(12, -1), 2):
        assert Pattern.parse("4x1").holds(part != 0)
    assert float((found == 0).mean()) == pytest.approx(0.5, abs=0.02)
