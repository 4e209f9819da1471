from __future__ import annotations

import numpy as np
import pytest
from onnx import helper, numpy_helper, parser

from graphopt.graph import Model, read_model
from graphopt.report.weights import weight_entries
from graphopt.solve.pack_sparse import pack_sparse
from graphopt.solve.pack_sparse_conv import pack_sparse_conv
from graphopt.solve.pack_sparse_int8 import pack_sparse_int8

RANDOM = np.random.default_rng(5)


def build(text: str, **weights: np.ndarray) -> Model:
    model = parser.parse_model(
        f'<ir_version: 8, opset_import: ["": 17, "ai.graphopt": 1]> g (float[N, 8] x) => (y) {text}'
    )
    model.graph.output[0].CopyFrom(helper.make_tensor_value_info("y", 1, None))
    for name, array in weights.items():
        model.graph.initializer.append(numpy_helper.from_array(array, name))
    return read_model(model.SerializeToString())


def test_weights_are_matched_by_name() -> None:
    dense = RANDOM.standard_normal((8, 4)).astype(np.float32)
    half = np.where(np.arange(32).reshape(8, 4) % 2, dense, np.float32(0))
    before = build("{ [fc] y = MatMul (x, w) }", w=dense)
    after = build("{ [fc] y = MatMul (x, w) }", w=half)
    (entry,) = weight_entries(before, after)
    assert (entry.name, entry.op, entry.parameters) == ("fc", "MatMul", 32)
    assert (entry.bytes_before, entry.bytes_after) == (128, 128)
    assert (entry.zeros_before, entry.zeros_after) == (0.0, 0.5)


def test_dequantized_weight_is_counted_as_it_is_stored() -> None:
    dense = RANDOM.standard_normal((8, 4)).astype(np.float32)
    before = build("{ [fc] y = MatMul (x, w) }", w=dense)
    after = build(
        "{ w = DequantizeLinear (q, s) [fc] y = MatMul (x, w) }",
        q=RANDOM.integers(1, 100, (8, 4), dtype=np.int8),
        s=np.array(0.1, np.float32),
    )
    (entry,) = weight_entries(before, after)
    assert (entry.type_before, entry.type_after, entry.bytes_after) == ("float", "int8", 32)


def test_replaced_node_is_found_by_its_origin_and_the_packed_form_read() -> None:
    dense = RANDOM.standard_normal((8, 4)).astype(np.float32)
    sparse = dense.copy()
    sparse[:6] = 0
    before = build("{ [fc] y = MatMul (x, w) }", w=dense)
    after = build("{ y = ai.graphopt.SparseMatMul (x, p) }", p=pack_sparse(sparse))
    next(iter(after.walk()))[1].origin = ("fc",)
    (entry,) = weight_entries(before, after)
    assert entry.type_after == "sparse float"
    assert entry.zeros_after == 0.75
    assert entry.bytes_after == pack_sparse(sparse).nbytes


@pytest.mark.parametrize("dtype", [np.uint8, np.int8])
def test_packed_integers_of_a_sparse_weight_are_read(dtype: type) -> None:
    codes = np.ones((8, 4), np.int8)
    codes[:4] = 0
    packed: np.ndarray = pack_sparse_int8(codes, np.ones(4, np.float32)).view(dtype)
    before = build("{ [fc] y = MatMul (x, w) }", w=RANDOM.standard_normal((8, 4)).astype(np.float32))
    (entry,) = weight_entries(before, build("{ [fc] y = ai.graphopt.SparseInt8MatMul (x, p) }", p=packed))
    assert (entry.type_after, entry.zeros_after, entry.bytes_after) == ("sparse int8", 0.5, packed.nbytes)


def test_weight_in_a_constant_node_is_seen_and_a_removed_layer_left_out() -> None:
    text = "{ w = Constant <value = float[8, 2] {1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,0}> () [fc] y = MatMul (x, w) }"
    before, after = build(text), build("{ y = Identity (x) }")
    (entry,) = weight_entries(before, build(text))
    assert entry.parameters == 16
    assert entry.zeros_before == 1 / 16
    assert list(weight_entries(before, after)) == []


def test_layers_without_constant_weights_have_no_row() -> None:
    model = build("{ t = Transpose (x) [scores] y = MatMul (x, t) }")
    assert list(weight_entries(model, model)) == []


def test_weights_packed_convolution_shows_its_zeros() -> None:
    rng = np.random.default_rng(0)
    sparse = rng.standard_normal((8, 4, 3, 3)).astype(np.float32)
    sparse[:, :3] = 0
    before = build("{ [conv] y = Conv (x, w) }", w=sparse)
    after = build("{ [conv] y = ai.graphopt.SparseConv (x, p) }", p=pack_sparse_conv(sparse))
    (row,) = weight_entries(before, after)
    assert (row.type_after, row.zeros_after) == ("sparse float", 0.75)
    assert row.bytes_after < row.bytes_before
