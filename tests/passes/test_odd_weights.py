"""Weights and biases as odd exporters write them: no pass that changes weights stumbles over them."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnx.parser
import pytest
from onnx import numpy_helper

from graphopt.graph import Model, read_model
from graphopt.rewrite import Outcome, PassManager, create
from graphopt.runtime import Feeds, run, session
from graphopt.verify.legality import check_legal

DRAW = np.random.default_rng(9)


def network(text: str, **weights: Any) -> Model:
    proto = onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["" : 17]>\n{text}')
    for name, value in weights.items():
        proto.graph.initializer.append(numpy_helper.from_array(np.asarray(value), name))
    onnx.checker.check_model(proto, full_check=True)
    return read_model(proto)


def normal(*shape: int) -> np.ndarray:
    return DRAW.standard_normal(shape).astype(np.float32)


def compressed(model: Model, name: str, options: dict[str, Any], **arrays: Any) -> tuple[Model, Outcome]:
    result = model.copy()
    data = Feeds.open(arrays, model) if arrays else None
    outcome = PassManager([create(name, options)], verify="full").run(result, data)
    check_legal(result)
    return result, outcome


def with_constant_node(values: np.ndarray) -> Model:
    model = onnx.load_from_string(
        network(f"g (float[N,8] x) => (float[N,{values.shape[1]}] y) {{ y = MatMul(x, w) }}", w=values).to_bytes()
    )
    tensor = model.graph.initializer.pop()
    model.graph.node.insert(0, onnx.helper.make_node("Constant", [], ["w"], value=tensor))
    return read_model(model)


@pytest.mark.parametrize(
    ("name", "options"),
    [("prune-magnitude", {}), ("prune-second-order", {"protect_ends": False}), ("round-weights", {})],
)
def test_constant_nodes_go_with_the_values_that_they_held(name: str, options: dict[str, Any]) -> None:
    model = with_constant_node(normal(8, 64))
    result, outcome = compressed(model, name, options, x=normal(40, 8))
    assert outcome.patches
    assert [node.op for node in result.graph.nodes if node.op == "Constant"] == []
    assert len(result.to_bytes()) <= len(model.to_bytes()) + 200


def test_stored_weights_of_constant_nodes_need_no_declared_shape() -> None:
    _, outcome = compressed(with_constant_node(normal(8, 256)), "insert-qdq", {"activations": "none"}, x=normal(9, 8))
    assert outcome.patches == 1


@pytest.mark.parametrize("name", ["prune-magnitude", "round-weights"])
def test_a_constant_node_that_bodies_read_too_is_replaced_where_it_stands(name: str) -> None:
    text = """g (float[N,16] x, bool c) => (float[N,16] y) {
        h = If (c) <
            then_branch = t () => (float[N,16] a) { a = MatMul(x, w) },
            else_branch = e () => (float[N,16] b) { b = Neg(x) }
        >
        y = MatMul(h, w)
    }"""
    proto = onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["" : 17]>\n{text}')
    tensor = numpy_helper.from_array(normal(16, 16), "w")
    proto.graph.node.insert(0, onnx.helper.make_node("Constant", [], ["w"], value=tensor))
    result, outcome = compressed(read_model(proto), name, {})
    assert outcome.patches
    assert "Constant" not in [node.op for node in result.graph.nodes]


def test_scaled_constant_nodes_go_too() -> None:
    first = np.asarray(normal(8, 6) * np.array([1, 1, 1, 1, 1, 300]), np.float32)
    proto = onnx.load_from_string(
        network("g (float[N,8] x) => (float[N,6] y) { h = MatMul(x, a) y = MatMul(h, b) }", a=first, b=normal(6, 6))
        .to_bytes()
    )  # fmt: skip
    tensor = proto.graph.initializer.pop()
    proto.graph.node.insert(0, onnx.helper.make_node("Constant", [], [tensor.name], value=tensor))
    result, outcome = compressed(read_model(proto), "equalize-layers", {})
    assert outcome.patches
    assert [node.op for node in result.graph.nodes] == ["MatMul", "MatMul"]


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("prune-wanda", {"sparsity": 0.5, "protect_ends": False}),
        ("round-weights", {}),
        ("equalize-layers", {}),
        ("insert-qdq", {}),
    ],
)
def test_a_bias_without_axes_is_taken_for_what_it_is(name: str, options: dict[str, Any]) -> None:
    text = "g (float[N,300] x) => (float[N,1] y) { h = Gemm(x, a, c) y = Gemm(h, b, s) }"
    model = network(text, a=normal(300, 4), c=normal(4), b=normal(4, 1), s=np.float32(0.3))
    compressed(model, name, options, x=normal(40, 300))


@pytest.mark.parametrize("activations", ["auto", "uint8", "dynamic", "int4"])
def test_restored_weights_need_no_declared_shape(activations: str) -> None:
    text = """g (float[N,L,16] x) => (float[N,L,16] y) {
        w = DequantizeLinear(q, scale, zero)
        y = MatMul(x, w)
    }"""
    codes = DRAW.integers(-127, 128, (16, 16)).astype(np.int8)
    model = network(text, q=codes, scale=np.float32(0.01), zero=np.int8(0))
    compressed(model, "insert-qdq", {"activations": activations}, x=normal(20, 3, 16))


@pytest.mark.parametrize("options", [{"activations": each} for each in ("none", "dynamic", "uint8", "int4")], ids=str)
@pytest.mark.parametrize("per_channel", [True, False])
def test_values_that_are_no_numbers_do_not_spread(options: dict[str, Any], per_channel: bool) -> None:
    weight, table = normal(64, 64), normal(300, 64)
    weight[3, 5], table[7, 1] = np.nan, np.inf
    text = "g (int64[N,4] i) => (float[N,4,64] y) { x = Gather(t, i) y = MatMul(x, w) }"
    model = network(text, t=table, w=weight)
    compressed(model, "insert-qdq", {**options, "per_channel": per_channel}, i=DRAW.integers(0, 300, (30, 4)))


@pytest.mark.parametrize("bits", [4, 8])
def test_weights_that_are_all_positive_fit_the_type_of_so_many_bits(bits: int) -> None:
    text = "g (float[N,16] x) => (float[N,16] y) { h = MatMul(x, a) k = MatMul(h, w) y = MatMul(k, b) }"
    weights = {"a": normal(16, 16), "w": np.abs(normal(16, 17)) + 1, "b": normal(17, 16)}
    proto = onnx.load_from_string(network(text, **weights).to_bytes())
    proto.opset_import[0].version, proto.ir_version = 21, 10
    options = {"bits": bits, "ends_bits": bits, "symmetric": False, "method": "nearest"}
    result, _ = compressed(read_model(proto), "round-weights", options)
    (codes,) = [each for each in result.graph.initializers if each.shape == (16, 17)]
    assert codes.array().dtype.itemsize == 1
    assert codes.onnx_dtype in ({onnx.TensorProto.UINT4} if bits == 4 else {onnx.TensorProto.UINT8})


@pytest.mark.parametrize(("columns", "stored"), [(18, "int4"), (20, "int2")])
def test_two_bits_are_stored_as_such_only_where_the_runtime_multiplies_them_rightly(columns: int, stored: str) -> None:
    text = "g (float[N,24] x) => (float[N,16] y) { h = MatMul(x, a) k = MatMul(h, w) y = MatMul(k, b) }"
    weights = {"a": normal(24, 24), "w": normal(24, columns), "b": normal(columns, 16)}
    proto = onnx.load_from_string(network(text, **weights).to_bytes())
    proto.opset_import[0].version, proto.ir_version = 25, 11
    options = {"bits": 2, "method": "nearest"}
    result, outcome = compressed(read_model(proto), "round-weights", options)
    (what,) = [layer.what for layer in outcome.records[0].layers if layer.name == "MatMul -> k"]
    assert what.endswith(f"stored as {stored}")
    feed = {"x": normal(9, 24)}
    found = [run(session(result, optimize=optimize), feed)["y"] for optimize in (False, True)]
    scale = float(np.abs(found[0]).max())
    np.testing.assert_allclose(found[1], found[0], atol=0.05 * scale)  # its kernel rounds activations to 8 bits


@pytest.mark.parametrize("name", ["prune-second-order", "prune-channels", "round-weights", "refit-weights"])
def test_loops_that_do_not_read_their_counter_are_run_like_any_other(name: str) -> None:
    text = """g (float[N,8] x) => (float[N,8] y) {
        h = Loop (n, c, x) <body = b (int64 i, bool go, float[N,8] s) => (bool on, float[N,8] t) {
            on = Identity(go)
            t = Neg(s)
        }>
        k = Gemm(h, a, ca)
        r = Relu(k)
        y = Gemm(r, b, cb)
    }"""
    weights = {"a": normal(8, 40), "ca": normal(40), "b": normal(40, 8), "cb": normal(8)}
    model = network(text, n=np.int64(3), c=np.bool_(True), **weights)
    if name == "refit-weights":
        data = Feeds.open({"x": normal(60, 8)}, model)
        outcome = PassManager(["prune-magnitude", name]).run(model, data)
    else:
        _, outcome = compressed(model, name, {}, x=normal(60, 8))
    assert outcome.patches


@pytest.mark.parametrize("allocation", ["uniform", "loss", "kl"])
@pytest.mark.parametrize("method", ["obs", "sparsegpt"])
def test_layers_whose_inputs_never_change_are_pruned_by_size(method: str, allocation: str) -> None:
    text = "g (float[N,8] x) => (float[N,8] y) { h = Gemm(x, a, ca) r = Relu(h) y = Gemm(r, b, cb) }"
    model = network(text, a=normal(8, 12), ca=normal(12), b=normal(12, 8), cb=normal(8))
    options = {"sparsity": 0.5, "method": method, "allocation": allocation, "protect_ends": False}
    result, outcome = compressed(model, "prune-second-order", options, x=np.full((30, 8), 0.7, np.float32))
    assert outcome.patches
    for name in ("a", "b"):
        weight = next(each for each in result.graph.initializers if each.name == name).array()
        assert np.isfinite(weight).all()
