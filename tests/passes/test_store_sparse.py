from __future__ import annotations

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

import graphopt
from graphopt.graph import Constant, Model, read_model
from graphopt.passes.lower.restore_sparse import RestoreSparse
from graphopt.passes.lower.store_sparse import StoreSparse
from graphopt.rewrite import PassManager
from graphopt.target.audit import audit
from pass_oracle import check_pass, run_pass


def sparse(shape: tuple[int, ...], share: float = 0.9, seed: int = 0, dtype: str = "float32") -> np.ndarray:
    rng = np.random.default_rng(seed)
    values = rng.standard_normal(shape)
    values[rng.random(shape) < share] = 0
    return values.astype(dtype)


def product(weight: np.ndarray, *, opset: int = 17, **changes: object) -> onnx.ModelProto:
    """Return y = x W as a model."""
    rows, columns = weight.shape
    element = helper.np_dtype_to_tensor_dtype(weight.dtype)
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"], name="product")],
        "g",
        [helper.make_tensor_value_info("x", element, ["n", rows])],
        [helper.make_tensor_value_info("y", element, ["n", columns])],
        [numpy_helper.from_array(weight, "w")],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8, **changes)


def weights(model: Model) -> dict[str, np.ndarray]:
    return {constant.name: constant.array() for constant in model.graph.initializers}


def test_small_file_and_same_values() -> None:
    weight = sparse((64, 80))
    done = check_pass(StoreSparse(), product(weight))
    assert done.ops == [
        *("BitShift", "BitShift", "Reshape", "NonZero", "Reshape", "ConstantOfShape", "ScatterElements", "Reshape"),
        "MatMul",
    ]
    kept = np.count_nonzero(weight)
    stored = weights(done.model)
    assert stored["w_bits"].nbytes == weight.size // 8
    assert stored["w_values"].nbytes == 4 * kept
    assert len(done.model.to_bytes()) < 0.25 * len(done.before.to_bytes())
    assert [patch.reason for patch in done.record.log] == [
        f"store 'w' as a bitmap and its values: {weight.nbytes} -> {weight.size // 8 + 4 * kept + 1024} bytes"
    ]


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("shape", [(64, 80), (61, 83), (1, 2049), (2048, 1)])
def test_restored_to_the_bit(shape: tuple[int, int], dtype: str) -> None:
    weight = sparse(shape, dtype=dtype)
    weight.flat[3] = -0.0
    weight.flat[7] = np.finfo(dtype).tiny / 2
    stored = run_pass(StoreSparse(), product(weight)).model
    assert "w" not in weights(stored)
    done = check_pass(RestoreSparse(), stored)
    assert done.ops == ["MatMul"]
    assert list(weights(done.model)) == ["w"]
    assert weights(done.model)["w"].tobytes() == weight.tobytes()


@settings(max_examples=30, deadline=None)
@given(
    rows=st.integers(1, 40),
    columns=st.integers(1, 40),
    share=st.floats(0, 1),
    seed=st.integers(0, 1000),
    dtype=st.sampled_from(["float32", "float16", "int8", "uint8", "int4", "uint4", "int2"]),
)
def test_any_weight_comes_back(rows: int, columns: int, share: float, seed: int, dtype: str) -> None:
    import ml_dtypes

    rng = np.random.default_rng(seed)
    element = np.dtype(getattr(ml_dtypes, dtype)) if dtype in {"int4", "uint4", "int2"} else np.dtype(dtype)
    dense = np.where(rng.random((64 * rows, columns)) < share, 0, rng.integers(-2, 2, (64 * rows, columns)))
    dense = (np.abs(dense) if dtype[0] == "u" else dense).astype(element)
    model = looked_up(dense)
    before = len(model.SerializeToString())
    stored = read_model(model)
    PassManager([StoreSparse()]).run(stored)
    assert len(stored.to_bytes()) <= before
    restored = stored.copy()
    PassManager([RestoreSparse()]).run(restored)
    (weight,) = [constant for constant in restored.graph.initializers if constant.name == "w"]
    assert isinstance(weight, Constant)
    assert weight.array().dtype == element
    assert np.array_equal(weight.array().astype(np.float32), dense.astype(np.float32))


def looked_up(table: np.ndarray) -> onnx.ModelProto:
    """Return y = float(table[x]) as a model."""
    element = helper.np_dtype_to_tensor_dtype(table.dtype)
    graph = helper.make_graph(
        [
            helper.make_node("Cast", ["w"], ["wide"], to=TensorProto.FLOAT),
            helper.make_node("Gather", ["wide", "x"], ["y"]),
        ],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.INT64, ["n"])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", table.shape[1]])],
        [helper.make_tensor("w", element, table.shape, table.astype(np.float32).ravel().tolist())],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 25)], ir_version=13)


def test_integers_behind_dequantizelinear_still_fuse() -> None:
    """The runtime restores int4 weights when it loads, and multiplies integers as it did."""
    rng = np.random.default_rng(0)
    codes = np.where(rng.random((32, 32, 3, 3)) < 0.8, 0, rng.integers(-8, 8, (32, 32, 3, 3)))
    text = """<ir_version: 10, opset_import: ["" : 21]>
        g (float[1, 32, 8, 8] x) => (float[1, 32, 8, 8] y)
        <float s = {0.05}, uint8 z = {128}, float[1] ws = {0.01}> {
            q = QuantizeLinear (x, s, z)
            d = DequantizeLinear (q, s, z)
            wide = Cast <to = 3> (codes)
            w = DequantizeLinear (wide, ws)
            c = Conv <pads = [1, 1, 1, 1]> (d, w)
            p = QuantizeLinear (c, s, z)
            y = DequantizeLinear (p, s, z)
        }"""
    message = onnx.parser.parse_model(text)
    message.graph.initializer.append(
        helper.make_tensor("codes", TensorProto.INT4, codes.shape, codes.astype(np.int64).ravel().tolist())
    )
    scale = next(tensor for tensor in message.graph.initializer if tensor.name == "ws")
    scale.ClearField("dims")
    done = check_pass(StoreSparse(), message, interpreted=False)
    assert done.record.patches == 1
    assert len(done.model.to_bytes()) < len(done.before.to_bytes())
    assert dict(audit(done.model).integer) == dict(audit(done.before).integer) == {"QLinearConv": 1}


def test_constant_folding_leaves_it_alone() -> None:
    stored = run_pass(StoreSparse(), product(sparse((128, 128)))).model
    again = graphopt.simplify(stored).model
    assert [node.op for _, node in again.walk()] == [node.op for _, node in stored.walk()]
    assert len(again.to_bytes()) <= len(stored.to_bytes())


def test_weights_share_what_is_the_same() -> None:
    text = """<ir_version: 8, opset_import: ["" : 17]> g (float[B, 64] x) => (float[B, 64] y) {
        h = MatMul (x, w) y = MatMul (h, v) }"""
    message = onnx.parser.parse_model(text)
    message.graph.initializer.extend(
        numpy_helper.from_array(sparse((64, 64), seed=seed), name) for seed, name in enumerate("wv")
    )
    done = check_pass(StoreSparse(), message)
    assert done.record.patches == 2
    assert sum(name.startswith(("bit_shifts", "last_bit", "one_axis")) for name in weights(done.model)) == 3


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ("overridable", "whoever runs the model may override it, because it is an input too"),
        ("output", "it is an output of the graph"),
        ("custom", "com.example::Product reads it, which may need it stored"),
        ("old", "opset 10 has no BitShift: run raise-opset before"),
    ],
)
def test_skips(change: str, reason: str) -> None:
    message = product(sparse((64, 80)), opset=10 if change == "old" else 17)
    if change == "overridable":
        message.graph.input.append(helper.make_tensor_value_info("w", TensorProto.FLOAT, [64, 80]))
    if change == "output":
        message.graph.output.append(helper.make_tensor_value_info("w", TensorProto.FLOAT, [64, 80]))
    if change == "custom":
        message.graph.node[0].op_type, message.graph.node[0].domain = "Product", "com.example"
        message.opset_import.append(helper.make_opsetid("com.example", 1))
    model = read_model(message)
    outcome = PassManager([StoreSparse()]).run(model)
    assert outcome.patches == 0
    assert [why for _, why in outcome.records[0].skips] == [reason]


def test_no_gain_no_change() -> None:
    for share in (0.0, 0.1):
        assert run_pass(StoreSparse(), product(sparse((64, 80), share))).record.patches == 0
    assert run_pass(StoreSparse(saving=0.5), product(sparse((64, 80), 0.5))).record.patches == 0
    assert run_pass(StoreSparse(), product(sparse((8, 8), 0.99))).record.patches == 0


def test_other_bitmaps_are_left_alone() -> None:
    """What only looks like a stored weight stays: places from a bitmap, but fewer values, or zeros that are ones."""
    message = run_pass(StoreSparse(), product(sparse((64, 80)))).model.to_proto()
    for node in message.graph.node:
        if node.op_type == "ConstantOfShape":
            node.attribute[0].t.CopyFrom(numpy_helper.from_array(np.ones(1, np.float32), "one"))
    assert run_pass(RestoreSparse(), message).record.patches == 0


def test_a_saving_of_all_is_refused() -> None:
    with pytest.raises(ValueError, match="share of bytes from 0 to below 1"):
        StoreSparse(saving=1.0)
