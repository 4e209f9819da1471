"""round-weights: what it writes, that runtimes agree on what it means, and that it beats rounding to nearest."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnx.parser
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

import graphopt
from graphopt import demo
from graphopt.errors import RecipeError
from graphopt.graph import Model, constant_value, producer, read_model
from graphopt.passes.prune.prune_magnitude import PruneMagnitude
from graphopt.passes.quantize import storage
from graphopt.passes.quantize.round_weights import RoundWeights
from graphopt.rewrite import Outcome, PassManager, create, load_recipe
from graphopt.runtime import Feeds, run, session
from graphopt.target import audit
from graphopt.verify.legality import check_legal

SCHEMES: list[dict[str, Any]] = [
    {"bits": 4},
    {"bits": 3},
    {"bits": 2},
    {"bits": 8, "granularity": "tensor"},
    {"bits": 4, "granularity": "block", "block": 16},
    {"bits": 2, "granularity": "block", "block": 16, "symmetric": True},
    {"bits": 4, "symmetric": False},
    {"scheme": "ternary"},
    {"scheme": "binary"},
    {"scheme": "codebook", "bits": 3},
    {"scheme": "codebook", "bits": 1},
]


def rounded(path: Any, *before: Any, data: int = 24, opset: int = 21, **options: Any) -> tuple[Model, Outcome]:
    model = read_model(path)
    steps = [create("fold-constants"), create("fuse-batch-norm"), create("raise-opset", {"to": opset}), *before]
    feeds = Feeds.open(demo.CALIBRATION, model).take(data) if data else None
    outcome = PassManager([*steps, RoundWeights(rows=512, **options)], verify="fast").run(model, feeds)
    check_legal(model)
    return model, outcome


def logits(model: Model) -> np.ndarray:
    with np.load(demo.TEST) as test:
        return np.asarray(run(session(model), {"image": test["image"]})["logits"])


def agreement(path: Any, model: Model) -> float:
    return float((logits(model).argmax(1) == logits(read_model(path)).argmax(1)).mean())


def restored(model: Model) -> list[np.ndarray]:
    """Return what every DequantizeLinear gives, as onnxruntime computes it."""
    nodes = [node for _, node in model.walk() if node.op == "DequantizeLinear"]
    proto = onnx.load_from_string(model.to_bytes())
    names = [node.outputs[0].name for node in nodes]
    del proto.graph.output[:]
    proto.graph.output.extend(helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in names)
    with np.load(demo.TEST) as test:
        found = run(session(proto.SerializeToString()), {"image": test["image"][:1]})
    return [np.asarray(found[name]) for name in names]


@pytest.mark.parametrize("options", SCHEMES, ids=str)
def test_runtimes_agree_on_what_is_written(options: dict[str, Any]) -> None:
    model, outcome = rounded(demo.CNN, data=0, **options)
    assert outcome.patches > 0
    onnx.checker.check_model(onnx.load_from_string(model.to_bytes()), full_check=True)
    feed = {"image": np.load(demo.TEST)["image"][:2]}
    reference = ReferenceEvaluator(onnx.load_from_string(model.to_bytes())).run(["logits"], feed)[0]
    np.testing.assert_allclose(run(session(model), feed)["logits"], reference, atol=1e-3)


@pytest.mark.parametrize("opset", [18, 19, 25])
@pytest.mark.parametrize("options", [SCHEMES[2], SCHEMES[4], SCHEMES[7], SCHEMES[8]], ids=str)
def test_every_opset_stores_what_it_can(options: dict[str, Any], opset: int) -> None:
    model, outcome = rounded(demo.CNN, data=0, opset=opset, **options)
    assert outcome.patches > 0
    onnx.checker.check_model(onnx.load_from_string(model.to_bytes()), full_check=True)
    assert np.isfinite(logits(model)).all()


@pytest.mark.slow
@pytest.mark.parametrize("options", SCHEMES, ids=str)
def test_little_changes_on_unseen_images(options: dict[str, Any]) -> None:
    model, _ = rounded(demo.CNN, opset=25, **options)
    few = "binary" in options.values() or options.get("bits") == 1
    assert agreement(demo.CNN, model) > (0.8 if few else 0.93)


def test_transformer_blocks_are_stored_in_four_bits() -> None:
    model, outcome = rounded(demo.TRANSFORMER, granularity="block", block=16, data=16)
    layers = [layer for layer in outcome.records[-1].layers if layer.kept]
    assert any(layer.what.startswith("4 bits per block of 16, stored as uint4") for layer in layers)
    blocks = [node for node in model.graph.nodes if node.op == "DequantizeLinear" and node.attrs.get("block_size")]
    assert blocks
    assert all(node.inputs[0].onnx_dtype == node.inputs[2].onnx_dtype == TensorProto.UINT4 for node in blocks)
    assert agreement(demo.TRANSFORMER, model) > 0.95


@pytest.mark.slow
@pytest.mark.parametrize("path", [demo.CNN, demo.TRANSFORMER], ids=["cnn", "transformer"])
def test_outputs_on_unseen_images_move_less_than_by_rounding_to_nearest(path: Any) -> None:
    original = logits(read_model(path))
    noise = {
        method: float(np.square(logits(rounded(path, bits=2, method=method, data=64)[0]) - original).mean())
        for method in ("nearest", "auto")
    }
    assert noise["auto"] < 0.8 * noise["nearest"]


@pytest.mark.slow
@pytest.mark.parametrize("method", ["gptq", "adaround"])
def test_other_methods_round_as_well(method: str) -> None:
    model, _ = rounded(demo.CNN, bits=3, method=method)
    assert agreement(demo.CNN, model) > 0.95


def test_file_shrinks_with_the_bits() -> None:
    sizes = [
        len(rounded(demo.CNN, data=0, opset=25, **options)[0].to_bytes())
        for options in ({"bits": 8}, {"bits": 4}, {"bits": 2})
    ]
    assert sizes[0] > sizes[1] > sizes[2]
    assert sizes[0] < 0.6 * len(read_model(demo.CNN).to_bytes())


def test_pruned_weights_stay_zero_and_stay_pruned_in_the_grid() -> None:
    for options in (
        {"bits": 4},
        {"scheme": "ternary"},
        {"scheme": "codebook", "bits": 3},
        {"bits": 4, "symmetric": False},
    ):
        model, outcome = rounded(demo.CNN, PruneMagnitude(sparsity=0.6), **options)
        plain, _ = rounded(demo.CNN, PruneMagnitude(sparsity=0.6), keep=_all_layers())
        zeros = _share_of_zeros(model)
        assert zeros >= _share_of_zeros(plain) - 1e-9
        assert outcome.patches > 0


def _all_layers() -> tuple[str, ...]:
    return tuple(node.name for node in read_model(demo.CNN).graph.nodes if node.name)


def _share_of_zeros(model: Model) -> float:
    """Return the share of zeros among the values of all weights of rank 2 or more."""
    proto = onnx.load_from_string(model.to_bytes())
    names = [node.input[1] for node in proto.graph.node if node.op_type in {"Conv", "Gemm", "MatMul"}]
    made = {name for node in proto.graph.node for name in node.output}
    arrays = [numpy_helper.to_array(each) for each in proto.graph.initializer if each.name in names]
    wanted = [name for name in names if name in made]
    del proto.graph.output[:]
    proto.graph.output.extend(helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in wanted)
    if wanted:
        with np.load(demo.TEST) as test:
            found = run(session(proto.SerializeToString()), {"image": test["image"][:1]})
        arrays += [np.asarray(found[name]) for name in wanted if np.asarray(found[name]).ndim in {2, 4}]
    whole = sum(array.size for array in arrays)
    return float(sum(int((array == 0).sum()) for array in arrays) / whole)


def test_binary_leaves_pruned_layers_and_says_why() -> None:
    _, outcome = rounded(demo.CNN, PruneMagnitude(sparsity=0.6), scheme="binary", data=0)
    assert any("binary weights cannot keep" in reason for _, reason in outcome.records[-1].skips)


def test_first_and_last_layers_keep_more_bits() -> None:
    model, outcome = rounded(demo.CNN, bits=2, opset=25, data=0)
    whats = [layer.what for layer in outcome.records[-1].layers]
    assert whats[0].startswith("8 bits per channel, stored as int8")
    assert whats[-1].startswith("8 bits per channel")
    assert any(what.startswith("2 bits per channel, stored as int2") for what in whats)
    types = {node.inputs[0].onnx_dtype for node in model.graph.nodes if node.op == "DequantizeLinear"}
    assert types == {TensorProto.INT8, TensorProto.INT2}


def test_a_second_run_changes_nothing() -> None:
    model, _ = rounded(demo.CNN, bits=4)
    before = model.to_bytes()
    outcome = PassManager([RoundWeights(bits=4)]).run(model, Feeds.open(demo.CALIBRATION, model).take(16))
    assert outcome.patches == 0
    assert model.to_bytes() == before


def test_same_data_and_seed_give_the_same_bytes() -> None:
    assert rounded(demo.CNN, bits=3)[0].to_bytes() == rounded(demo.CNN, bits=3)[0].to_bytes()


def test_without_data_weights_take_their_nearest_level() -> None:
    model, outcome = rounded(demo.CNN, data=0, bits=4, ends_bits=4)
    assert outcome.patches > 0
    original, _ = rounded(demo.CNN, keep=_all_layers())
    weights = {node.name: constant_value(node.inputs[1]) for node in original.graph.nodes if node.op == "Conv"}
    dequantized = iter(restored(model))
    for node in model.graph.nodes:
        maker = producer(node.inputs[1]) if len(node.inputs) > 1 else None
        if node.op != "Conv" or maker is None or maker.op != "DequantizeLinear":
            continue
        weight = weights[node.name]
        assert weight is not None
        top = np.abs(weight).max(axis=(1, 2, 3), keepdims=True)
        scale = np.where(top > 0, top / 7, 1)
        np.testing.assert_allclose(next(dequantized), np.rint(weight / scale) * scale, atol=1e-5)


def test_three_bits_take_four_where_the_opset_has_them_and_eight_below() -> None:
    for opset, name in ((17, "int8"), (21, "int4"), (25, "int4")):
        _, outcome = rounded(demo.CNN, data=0, opset=opset, bits=3)
        assert any(layer.what == f"3 bits per channel, stored as {name}" for layer in outcome.records[-1].layers)


def test_single_bits_are_packed_where_there_are_many(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storage, "LEAST_PACKED", 1)
    model, outcome = rounded(demo.CNN, scheme="binary", data=0)
    assert any("stored in single bits" in layer.what for layer in outcome.records[-1].layers)
    plain, _ = rounded(demo.CNN, scheme="binary", opset=17, data=0)
    assert {node.op for node in model.graph.nodes} >= {"BitShift", "BitwiseAnd"}
    np.testing.assert_allclose(logits(model), logits(plain), rtol=1e-3, atol=1e-3)


SHARED = "g (float[n, 16] x, float[16, 16] w) => (float[n, 16] y) { a = MatMul(x, w) b = Relu(a) y = MatMul(b, w) }"
HALF = "g (float16[n, 16] x, float16[16, 16] w) => (float16[n, 16] y) { y = MatMul(x, w) }"
DOUBLE = "g (double[n, 16] x, double[16, 16] w) => (double[n, 16] y) { y = MatMul(x, w) }"
ODD = "g (float[n, 17] x, float[17, 19] w) => (float[n, 19] y) { y = MatMul(x, w) }"
SMALL = "g (float[n, 4] x, float[4, 4] w) => (float[n, 4] y) { y = MatMul(x, w) }"


def parsed(graph: str, opset: int = 21, *, override: bool = False) -> Model:
    proto = onnx.parser.parse_model(f'<ir_version: 10, opset_import: ["" : {opset}]>{graph}')
    rng = np.random.default_rng(0)
    for value in [each for each in proto.graph.input if each.name == "w"]:
        shape = [dim.dim_value for dim in value.type.tensor_type.shape.dim]
        kind = helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type)
        proto.graph.initializer.append(numpy_helper.from_array(rng.standard_normal(shape).astype(kind), "w"))
        if not override:
            proto.graph.input.remove(value)
    return read_model(proto)


@pytest.mark.parametrize("directions", [1, 2])
@pytest.mark.parametrize("opset", [17, 21])
def test_recurrent_layers_keep_eight_bits(directions: int, opset: int) -> None:
    rng = np.random.default_rng(0)
    shapes = {"w": (directions, 64, 12), "r": (directions, 64, 16)}
    constants = [
        numpy_helper.from_array(rng.standard_normal(shape).astype(np.float32), name) for name, shape in shapes.items()
    ]
    direction = "bidirectional" if directions == 2 else "forward"
    node = helper.make_node("LSTM", ["x", "w", "r"], ["y"], name="lstm", hidden_size=16, direction=direction)
    values = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)
        for name, shape in (("x", [4, 2, 12]), ("y", None))
    ]
    graph = helper.make_graph([node], "g", values[:1], values[1:], constants)
    model = read_model(helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10))
    x = rng.standard_normal((4, 2, 12)).astype(np.float32)
    before = run(session(model), {"x": x})["y"]
    outcome = PassManager([RoundWeights(bits=2)], verify="fast").run(model, None)
    if directions == 2 and opset == 17:
        assert outcome.patches == 0
        assert all("along two axes" in reason for _, reason in outcome.records[0].skips)
        return
    assert {layer.what for layer in outcome.records[0].layers} == {"8 bits per channel, stored as int8"}
    np.testing.assert_allclose(run(session(model), {"x": x})["y"], before, atol=0.1)


@pytest.mark.parametrize(
    ("graph", "options", "words"),
    [
        (DOUBLE, {}, "float64, which DequantizeLinear"),
        (SMALL, {}, "16 weights: their scale would take as much"),
        (SHARED, {"keep": ("MatMul -> a",)}, "to be kept"),
    ],
)
def test_refusals(graph: str, options: dict[str, Any], words: str) -> None:
    model = parsed(graph)
    outcome = PassManager([RoundWeights(**options)]).run(model, None)
    assert outcome.patches == 0
    assert any(words in reason for _, reason in outcome.records[0].skips), outcome.records[0].skips


def test_weights_that_callers_may_replace_stay() -> None:
    model = parsed(ODD, override=True)
    outcome = PassManager([RoundWeights()]).run(model, None)
    assert outcome.patches == 0
    assert any("callers may replace it" in reason for _, reason in outcome.records[0].skips)


@pytest.mark.parametrize("opset", [10, 13])
def test_old_opsets_have_one_scale_or_one_per_channel(opset: int) -> None:
    model = parsed(ODD, opset)
    outcome = PassManager([RoundWeights(bits=4, granularity="block")]).run(model, None)
    assert [layer.what.split(",")[0] for layer in outcome.records[0].layers] == [
        f"4 bits per {'channel' if opset >= 13 else 'tensor'}"
    ]
    node = next(node for node in model.graph.nodes if node.op == "DequantizeLinear")
    assert list(node.inputs[1].shape) == ([19] if opset >= 13 else [])
    assert np.isfinite(run(session(model), {"x": np.ones((1, 17), np.float32)})["y"]).all()


@pytest.mark.parametrize(("width", "bits"), [(2, [8, 4, 8]), (100, [8, 4, 4])])
def test_ends_that_hold_much_of_the_weights_are_rounded_like_the_others(width: int, bits: list[int]) -> None:
    """The first of three layers holds less than 2 % of the weights, the last 2 % or half of them."""
    shapes = {"a": (4, 64), "b": (64, 256), "c": (256, width)}
    rng = np.random.default_rng(0)
    constants = [
        numpy_helper.from_array(rng.standard_normal(shape).astype(np.float32), f"w{name}")
        for name, shape in shapes.items()
    ]
    nodes = [helper.make_node("MatMul", [x, f"w{y}"], [y], name=y) for x, y in (("x", "a"), ("a", "b"), ("b", "c"))]
    x, y = (helper.make_tensor_value_info(*each) for each in (("x", 1, ["n", 4]), ("c", 1, ["n", width])))
    graph = helper.make_graph(nodes, "g", [x], [y], constants)
    model = read_model(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10))
    outcome = PassManager([RoundWeights(bits=4)]).run(model, None)
    assert [int(layer.what.split()[0]) for layer in outcome.records[0].layers] == bits


@pytest.mark.parametrize("graph", [SHARED, HALF, ODD])
@pytest.mark.parametrize(
    "options", [{}, {"granularity": "block", "block": 16, "ends_bits": 4}, {"scheme": "ternary"}], ids=str
)
def test_shared_half_precision_and_odd_weights(graph: str, options: dict[str, Any]) -> None:
    model = parsed(graph)
    x = np.random.default_rng(1).standard_normal((64, model.graph.inputs[0].shape[1]))
    x = x.astype(model.graph.inputs[0].dtype)
    before = run(session(model), {"x": x})["y"]
    feeds = Feeds.open([{"x": x[start : start + 8]} for start in range(0, 64, 8)], model)
    outcome = PassManager([RoundWeights(**options)], verify="fast").run(model, feeds)
    assert outcome.patches == 1
    check_legal(model)
    after = np.asarray(run(session(model), {"x": x})["y"], np.float64)
    error = np.square(after - before.astype(np.float64)).mean() / np.square(before.astype(np.float64)).mean()
    assert error < (0.3 if options.get("scheme") else 0.05 if graph != SHARED else 0.1)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"bits": 9}, "must be 2 to 8"),
        ({"bits": 1}, "must be 2 to 8"),
        ({"ends_bits": 1}, "ends_bits"),
        ({"granularity": "block", "block": 24}, "power of two"),
    ],
)
def test_options_that_make_no_sense_are_refused(options: dict[str, Any], words: str) -> None:
    with pytest.raises(RecipeError, match=words):
        create("round-weights", options)


def test_scales_are_shared_as_far_as_they_are_equal() -> None:
    ones, zeros = np.ones((3, 8)), np.zeros((3, 8))
    rows = np.repeat(np.array([[1.0], [2.0], [3.0]]), 8, axis=1)
    blocks = np.repeat(np.arange(1.0, 7.0).reshape(3, 2), 4, axis=1)
    assert storage.shared(ones, zeros)[2] == {}
    assert storage.shared(rows, zeros)[2] == {"axis": 0}
    assert storage.shared(rows.T, zeros.T)[2] == {"axis": 1}
    scales, _, attrs = storage.shared(blocks, zeros)
    assert attrs == {"axis": 1, "block_size": 4}
    np.testing.assert_array_equal(scales, np.arange(1.0, 7.0).reshape(3, 2))


# ----------------------------------------------------------------------------------------------- with what comes behind


@pytest.mark.parametrize("options", SCHEMES, ids=str)
def test_the_default_clean_up_keeps_what_is_stored_in_few_bits(
    options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(storage, "LEAST_PACKED", 1)
    model, _ = rounded(demo.CNN, data=0, **options)
    before = len(model.to_bytes())
    weights = _weight_values(model)
    PassManager(load_recipe("default").create()).run(model, None)
    assert len(model.to_bytes()) <= before + 200
    for one, other in zip(weights, _weight_values(model), strict=True):
        np.testing.assert_array_equal(one, other)


def _weight_values(model: Model) -> list[np.ndarray]:
    """Return the weights of all convolutions and matrices as onnxruntime sees them, sorted by their bytes."""
    proto = onnx.load_from_string(model.to_bytes())
    names = list(
        dict.fromkeys(node.input[1] for node in proto.graph.node if node.op_type in {"Conv", "Gemm", "MatMul"})
    )
    held = {each.name: numpy_helper.to_array(each) for each in proto.graph.initializer}
    arrays = [held[name] for name in names if name in held]
    computed = [name for name in names if name not in held]
    del proto.graph.output[:]
    proto.graph.output.extend(helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in computed)
    if computed:
        with np.load(demo.TEST) as test:
            found = run(session(proto.SerializeToString()), {"image": test["image"][:1]})
        arrays += [np.asarray(found[name]) for name in computed]
    return sorted(arrays, key=lambda array: array.tobytes())


def quantized(path: Any, activations: str, **options: Any) -> tuple[Model, Outcome]:
    model, _ = rounded(path, **options)
    feeds = Feeds.open(demo.CALIBRATION, model).take(24)
    steps = [create("fuse-bias"), create("insert-qdq", {"activations": activations}), create("eliminate-dead")]
    outcome = PassManager(steps, verify="fast").run(model, feeds)
    check_legal(model)
    return model, outcome


@pytest.mark.parametrize("activations", ["uint8", "int4"])
def test_activations_are_quantized_around_rounded_weights_which_stay(
    activations: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("graphopt.target.placement.PRODUCTS_PER_CONVERSION", 0)
    plain, _ = rounded(demo.CNN)
    model, outcome = quantized(demo.CNN, activations)
    record = next(record for record in outcome.records if record.name == "insert-qdq")
    assert any("int4 weights per channel as rounded before" in layer.what for layer in record.layers)
    kept = {array.tobytes() for array in _weight_values(plain)}
    fresh = [array for array in _weight_values(model) if array.tobytes() not in kept]
    assert sum(array.size for array in fresh) <= 0.25 * sum(array.size for array in _weight_values(model))
    assert {TensorProto.INT4, TensorProto.INT8} >= {
        node.inputs[0].onnx_dtype for node in model.graph.nodes if node.op == "Cast" and not node.inputs[0].inputs
    }
    found = audit(model, compare=True, feeds=[{"image": np.load(demo.TEST)["image"][:4]}])
    assert found.integer["QLinearConv"] == sum(layer.op == "Conv" for layer in record.layers)
    assert found.optimization_error is not None
    assert found.optimization_error < 0.05
    assert agreement(demo.CNN, model) > 0.9


def test_sixteen_levels_reach_the_inner_layers_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("graphopt.target.placement.PRODUCTS_PER_CONVERSION", 0)
    model, outcome = quantized(demo.CNN, "int4", data=0, bits=8)
    record = next(record for record in outcome.records if record.name == "insert-qdq")
    whats = [layer.what for layer in record.layers]
    assert "int4 activations" not in whats[0]
    assert "int4 activations" not in whats[-1]
    assert any("int4 activations" in what for what in whats[1:-1])
    cut = [node.outputs[0].name for node in model.graph.nodes if node.op == "Clip" and "few" in node.name]
    proto = onnx.load_from_string(model.to_bytes())
    del proto.graph.output[:]
    proto.graph.output.extend(helper.make_tensor_value_info(name, TensorProto.UINT8, None) for name in cut)
    with np.load(demo.TEST) as test:
        found = run(session(proto.SerializeToString()), {"image": test["image"][:32]})
    assert cut
    for name in cut:
        assert np.asarray(found[name]).max() == 15
        assert np.unique(found[name]).size > 8


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"granularity": "block", "block": 16, "symmetric": True}, "a scale per block"),
        ({"symmetric": False}, "stored in uint4"),
        ({"scheme": "codebook"}, "in a code book"),
        ({"scheme": "binary"}, "in single bits"),
    ],
)
def test_grids_without_an_integer_kernel_stay_and_are_named(
    options: dict[str, Any], words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("graphopt.passes.quantize.round_weights.end_layers", lambda *_: set())
    model = parsed(SHARED.replace("16, 16", "64, 64").replace("n, 16", "n, 64"))
    passes = [RoundWeights(**options), create("insert-qdq", {"activations": "dynamic"})]
    outcome = PassManager(passes).run(model, None)
    assert outcome.records[0].patches == 1
    assert outcome.records[1].patches == 0
    assert any(words in reason for _, reason in outcome.records[1].skips), outcome.records[1].skips


def test_dynamic_layers_multiply_the_integers_they_have() -> None:
    model = parsed(SHARED.replace("16, 16", "64, 64").replace("n, 16", "n, 64"))
    PassManager([RoundWeights(ends_bits=4)]).run(model, None)
    x = np.random.default_rng(1).standard_normal((8, 64)).astype(np.float32)
    before = run(session(model), {"x": x})["y"]
    outcome = PassManager([create("insert-qdq", {"activations": "dynamic"})], verify="fast").run(model, None)
    assert outcome.patches == 2
    held = [each for each in model.graph.initializers if each.onnx_dtype == TensorProto.INT4]
    assert [list(each.shape) for each in held] == [[64, 64]]
    after = run(session(model), {"x": x})["y"]
    assert np.square(after - before).mean() < 1e-3 * np.square(before).mean()


@pytest.mark.slow
def test_layers_that_lose_too_much_are_reverted_by_the_guard() -> None:
    passes: list[Any] = [
        {"raise-opset": {"to": 25}},
        {"round-weights": {"scheme": "binary", "ends_bits": 2, "samples": 32, "rows": 512}},
    ]
    recipe = {"name": "few", "imports": ["default"], "budget": {"max_drop": 0.0}, "passes": passes}
    result = graphopt.compile(demo.CNN, recipe=recipe, data=demo.CALIBRATION)
    layers = [layer for layer in result.report.layers if layer.pass_name == "round-weights"]
    assert any(layer.reverted and "alone it loses" in layer.reason for layer in layers)
    assert any(layer.kept for layer in layers)
