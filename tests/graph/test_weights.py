"""Weights of every element type and storage, read and rewritten."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from crafted_values import DTYPES, base, random_array, typed_tensor
from onnx import TensorProto, helper, numpy_helper

from graphopt.errors import GraphError, ReadError
from graphopt.graph import Constant, LazyWeight, Model, PackedWeight, Rewriter, SparseWeight, read_model
from graphopt.graph.dtypes import numpy_dtype, pack, packed_size_bytes, unpack
from graphopt.graph.weights import DENSE_LIMIT_BYTES, ArrayWeight

SHAPES = [(), (1,), (0,), (3,), (2, 5), (9,), (4, 4)]


def same(left: np.ndarray, right: np.ndarray) -> bool:
    """Compare bits; of signed sub-byte types, which numpy keeps with or without the sign extended, values."""
    if left.dtype != right.dtype or left.shape != right.shape:
        return False
    if left.dtype.name in {"int4", "int2"}:
        return bool(np.array_equal(left.astype(np.int8), right.astype(np.int8)))
    return left.tobytes() == right.tobytes()


def holder(tensor: onnx.TensorProto) -> Model:
    """Return a model with one more initializer that a node reads."""
    proto = base()
    proto.graph.initializer.append(tensor)
    proto.graph.node.append(helper.make_node("Op", [tensor.name], ["op_out"], name="op", domain="custom"))
    proto.opset_import.append(helper.make_opsetid("custom", 1))
    return read_model(proto)


def weight(model: Model, name: str = "t") -> Constant:
    return next(c for c in model.graph.initializers if c.name == name)


def stored(model: Model, name: str = "t") -> onnx.TensorProto:
    return next(t for t in model.to_proto().graph.initializer if t.name == name)


@pytest.mark.parametrize("dtype", DTYPES, ids=TensorProto.DataType.Name)
def test_every_dtype_is_read_rewritten_and_read_again(dtype: int) -> None:
    for shape in SHAPES:
        array = random_array(dtype, shape, seed=7)
        for tensor in (numpy_helper.from_array(array, "t"), typed_tensor(dtype, array, "t")):
            want = numpy_helper.to_array(tensor)
            model = holder(tensor)
            constant = weight(model)
            got = constant.array()
            assert same(got, want)
            assert not got.flags.writeable
            constant.set(np.array(got))
            assert constant.onnx_dtype == dtype
            again = stored(model)
            assert again.data_type == dtype
            assert same(numpy_helper.to_array(again), want)
            assert len(again.raw_data) == packed_size_bytes(dtype, shape) == constant.nbytes


@pytest.mark.parametrize("dtype", DTYPES, ids=TensorProto.DataType.Name)
def test_edit_keeps_the_type_and_changes_the_value(dtype: int) -> None:
    array = random_array(dtype, (2, 3), seed=1)
    model = holder(numpy_helper.from_array(array, "t"))
    with weight(model).edit() as values:
        values[0, 0] = values[1, 2]
        values[1, 1] = np.zeros((), values.dtype)
    result = numpy_helper.to_array(stored(model))
    want = np.array(array)
    want[0, 0] = want[1, 2]
    want[1, 1] = np.zeros((), want.dtype)
    assert same(result, want)


def test_edit_that_raises_changes_nothing(chain: Model) -> None:
    constant = weight(chain, "w")
    before = constant.array().copy()

    def interrupted() -> None:
        with constant.edit() as values:
            values[:] = 0
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert np.array_equal(constant.array(), before)


def test_packing_agrees_with_onnx() -> None:
    for dtype in DTYPES:
        if packed_size_bytes(dtype, (8,)) >= 8:
            continue
        for size in range(10):
            array = random_array(dtype, (size,), seed=size)
            packed = pack(array, dtype)
            assert packed.tobytes() == numpy_helper.from_array(array).raw_data
            assert same(unpack(packed, dtype, (size,)), array)


def test_strings_survive_even_if_they_are_not_utf8() -> None:
    model = holder(helper.make_tensor("t", TensorProto.STRING, [3], [b"a", "ä".encode(), b"\xff\xfe"]))
    constant = weight(model)
    values = constant.array()
    assert values.tolist() == ["a", "ä", b"\xff\xfe"]
    constant.set(np.array(values, dtype=object))
    assert list(stored(model).string_data) == [b"a", "ä".encode(), b"\xff\xfe"]


def sparse_model(*, raw: bool, two_dimensional: bool) -> Model:
    values = np.array([5.0, 6.0], np.float32)
    tensor = numpy_helper.from_array(values, "t") if raw else helper.make_tensor("t", TensorProto.FLOAT, [2], values)
    indices = np.array([[0, 1], [1, 0]] if two_dimensional else [1, 2], np.int64)
    proto = base()
    sparse = proto.graph.sparse_initializer.add()
    sparse.values.CopyFrom(tensor)
    sparse.indices.CopyFrom(numpy_helper.from_array(indices))
    sparse.dims.extend([2, 2])
    proto.graph.node.append(helper.make_node("Op", ["t"], ["o"], name="op"))
    return read_model(proto)


@pytest.mark.parametrize("raw", [True, False])
@pytest.mark.parametrize("two_dimensional", [True, False])
def test_sparse_initializer_is_read_dense_in_its_own_type(raw: bool, two_dimensional: bool) -> None:
    model = sparse_model(raw=raw, two_dimensional=two_dimensional)
    constant = weight(model)
    assert isinstance(constant.weight, SparseWeight)
    assert constant.array().dtype == np.float32
    assert constant.array().tolist() == [[0, 5], [6, 0]]
    constant.set(np.array(constant.array()) * 2)
    result = model.to_proto().graph
    assert len(result.sparse_initializer) == 0
    assert numpy_helper.to_array(next(t for t in result.initializer if t.name == "t")).tolist() == [[0, 10], [12, 0]]


def test_sparse_bomb_is_refused_before_memory_is_taken() -> None:
    model = sparse_model(raw=True, two_dimensional=False)
    sparse = weight(model).weight.sparse
    huge = onnx.SparseTensorProto.FromString(sparse.SerializeToString())
    huge.ClearField("dims")
    huge.dims.extend([DENSE_LIMIT_BYTES, 1])
    with pytest.raises(ReadError, match="dense"):
        SparseWeight(huge).load()


@pytest.mark.parametrize("indices", [[0, 4], [-1, 0], [0]])
def test_sparse_indices_outside_are_refused(indices: list[int]) -> None:
    proto = base()
    sparse = proto.graph.sparse_initializer.add()
    sparse.values.CopyFrom(numpy_helper.from_array(np.ones(2, np.float32), "t"))
    sparse.indices.CopyFrom(numpy_helper.from_array(np.array(indices, np.int64)))
    sparse.dims.extend([2, 2])
    constant = weight(read_model(proto))
    with pytest.raises(ReadError, match="indices"):
        constant.array()


def test_packed_and_lazy_weights_are_written_as_declared(chain: Model) -> None:
    int4 = TensorProto.INT4
    values = np.arange(-8, 8).astype(numpy_dtype(int4)).reshape(4, 4)
    calls = []

    def compute() -> np.ndarray:
        calls.append(1)
        return np.full((3, 2), 7, np.int8)

    add = chain.graph.nodes[1]
    with Rewriter(chain) as rw:
        packed = rw.constant(PackedWeight(pack(values, int4), int4, (4, 4)), name="packed", near=add)
        lazy = rw.constant(LazyWeight(compute, TensorProto.INT8, (3, 2)), name="lazy", near=add)
        rw.op("Op", [packed, lazy], domain="custom", near=add)
    assert calls == []
    assert packed.nbytes == 8
    assert same(packed.array(), values)
    proto = chain.to_proto()
    by_name = {t.name: t for t in proto.graph.initializer}
    assert same(numpy_helper.to_array(by_name["packed"]), values)
    assert numpy_helper.to_array(by_name["lazy"]).tolist() == [[7, 7]] * 3
    assert len(calls) == 1


def test_lazy_weight_that_lies_is_found() -> None:
    lazy = LazyWeight(lambda: np.zeros(3, np.float32), TensorProto.FLOAT, (4,))
    with pytest.raises(GraphError, match="lazy"):
        lazy.load()


def test_wrong_array_for_a_type_is_refused() -> None:
    with pytest.raises(GraphError, match="cannot hold"):
        ArrayWeight(np.zeros(3, np.float32), TensorProto.INT64)


def test_rewritten_weight_keeps_doc_string_and_metadata() -> None:
    tensor = numpy_helper.from_array(np.ones(3, np.float32), "t")
    tensor.doc_string = "doc"
    tensor.metadata_props.add(key="k", value="v")
    model = holder(tensor)
    weight(model).set(np.zeros(3, np.float16))
    result = stored(model)
    assert (result.doc_string, result.metadata_props[0].value, result.data_type) == ("doc", "v", TensorProto.FLOAT16)


def test_copy_shares_values_until_one_side_changes(chain: Model) -> None:
    twin = chain.copy()
    one, other = weight(chain, "w"), weight(twin, "w")
    assert one.weight is other.weight
    with other.edit() as values:
        values[:] = 0
    assert one.array().tolist() == [1, 2, 3, 4]
    assert other.array().tolist() == [0, 0, 0, 0]


def test_array_cannot_be_written_to(chain: Model) -> None:
    constant = weight(chain, "w")
    with pytest.raises(ValueError, match="read-only"):
        constant.array()[0] = 5
    with pytest.raises(ValueError, match="read-only"):
        constant.values[0] = 5
    own = np.zeros(4, np.float32)
    constant.set(own)
    with pytest.raises(ValueError, match="read-only"):
        constant.array()[0] = 5


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"dims": [2, -1]}, "negative"),
        ({"dims": [2**40, 2**40]}, "absurd"),
        ({"dims": [1] * 65}, "dimensions"),
        ({"dims": [5]}, "need"),
        ({"data_type": 0}, "undefined"),
        ({"raw_data": b"\0" * 15}, "need"),
        ({"segment": TensorProto.Segment(begin=0, end=1)}, "segment"),
    ],
)
def test_data_that_do_not_fit_dimensions_are_refused(change: dict[str, Any], text: str) -> None:
    proto = base()
    tensor = proto.graph.initializer[0]
    for field, value in change.items():
        tensor.ClearField(field)
        if field == "dims":
            tensor.dims.extend(value)
        elif field == "segment":
            tensor.segment.CopyFrom(value)
        else:
            setattr(tensor, field, value)
    with pytest.raises(ReadError, match=text):
        read_model(proto)


def test_huge_typed_tensor_is_refused_without_allocating() -> None:
    proto = base()
    tensor = proto.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.ClearField("dims")
    tensor.dims.extend([2**35])
    tensor.float_data.extend([1.0, 2.0])
    with pytest.raises(ReadError, match="float_data"):
        read_model(proto)


def test_decoded_weights_are_not_kept_after_use() -> None:
    model = holder(numpy_helper.from_array(np.zeros(1 << 16, np.float32), "t"))
    constant = weight(model)
    first = constant.array()
    assert constant.array() is first
    del first
    assert constant.weight._cached() is None


@pytest.mark.parametrize("count", [1, 12, 4096])
def test_the_head_of_a_weight_is_what_its_chunks_begin_with(count: int) -> None:
    values = np.arange(24, dtype=np.float32).reshape(4, 6)
    weights = [
        ArrayWeight(values),
        ArrayWeight(values.T),  # not in the order of the file
        ArrayWeight(np.ones(0, np.int64)),
        PackedWeight(b"\x21\x43\x05", TensorProto.UINT4, (5,)),
        LazyWeight(lambda: values.astype(np.int8), TensorProto.INT8, (4, 6)),
    ]
    for weight in weights:
        assert weight.head(count) == b"".join(bytes(chunk) for chunk in weight.chunks())[:count]
