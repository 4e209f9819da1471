"""merge-casts: two conversions become one only where the first keeps every value."""

# ruff: noqa: E501 - the tables hold one model per line

from __future__ import annotations

from itertools import product

import numpy as np
import onnx
import onnx.parser
import pytest
from onnx import helper

from graphopt.passes.simplify.merge_casts import MergeCasts
from odd_numbers import check_on_odd
from pass_oracle import check_pass

HEAD = '<ir_version: 9, opset_import: ["" : 19]>\n'

TYPES = {
    name: helper.np_dtype_to_tensor_dtype(np.dtype(name))
    for name in (
        "bool",
        "uint8",
        "int8",
        "int16",
        "uint16",
        "int32",
        "uint32",
        "int64",
        "float16",
        "float32",
        "float64",
    )
}

MERGED = {
    ("int32", "int64", "int32"), ("int32", "int64", "float32"), ("int64", "int32", "int8"), ("uint8", "float32", "int16"),
    ("float16", "float32", "float64"), ("float16", "float32", "float16"), ("bool", "float32", "int64"), ("bool", "int32", "bool"),
    ("int16", "float32", "float64"), ("uint8", "float16", "uint8"), ("float32", "float64", "float16"), ("int8", "int64", "bool"),
}  # fmt: skip
KEPT = {
    ("float32", "int32", "float32"), ("float32", "float16", "float32"), ("int64", "float32", "int64"), ("int64", "int32", "int64"),
    ("int32", "bool", "int32"), ("uint8", "float32", "int8"), ("float32", "float64", "int32"), ("float64", "float32", "float16"),
    ("int32", "uint32", "int64"), ("int8", "uint8", "float32"), ("int16", "float16", "float32"), ("float32", "bool", "float32"),
}  # fmt: skip


def model_of(first: str, between: str, last: str) -> onnx.ModelProto:
    nodes = [
        helper.make_node("Cast", ["x"], ["a"], to=TYPES[between]),
        helper.make_node("Cast", ["a"], ["b"], to=TYPES[last]),
        helper.make_node("Identity", ["b"], ["y"]),
    ]
    given = helper.make_tensor_value_info("x", TYPES[first], ["n"])
    made = helper.make_tensor_value_info("y", TYPES[last], ["n"])
    graph = helper.make_graph(nodes, "g", [given], [made])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)], ir_version=9)


@pytest.mark.filterwarnings("ignore:overflow")
@pytest.mark.parametrize("types", sorted(MERGED))
def test_conversion_that_loses_nothing_is_merged(types: tuple[str, str, str]) -> None:
    model = model_of(*types)
    done = check_on_odd(MergeCasts(), model, samples=1)
    # both are gone where the type is the first one again, save for an input that is an output
    assert done.ops == (["Identity"] if types[0] == types[2] else ["Cast", "Identity"])


@pytest.mark.parametrize("types", sorted(KEPT))
def test_conversion_that_may_lose_something_stays(types: tuple[str, str, str]) -> None:
    done = check_pass(MergeCasts(), model_of(*types), interpreted=False)
    assert done.ops == ["Cast", "Cast", "Identity"]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:overflow", "ignore:invalid value")
def test_all_types_on_their_extremes() -> None:
    for types in product(TYPES, repeat=3):
        model = model_of(*types)
        check_on_odd(MergeCasts(), model, samples=1, interpreted=False)


def test_like() -> None:
    text = "g (bool[n] x, float[1] l) => (int64[n] y) { a = CastLike(x, l) y = Cast<to = 7>(a) }"
    done = check_pass(MergeCasts(), HEAD + text)
    assert done.ops == ["Cast"]
    assert done.model.graph.nodes[0].inputs[0].name == "x"


def test_result_with_another_reader_stays() -> None:
    text = "g (int32[n] x) => (int64[n] z, float[n] y) { a = Cast<to = 7>(x) y = Cast<to = 1>(a) z = Neg(a) }"
    assert check_pass(MergeCasts(), HEAD + text).record.patches == 0


def test_indices_are_read_as_they_are() -> None:
    text = "g (float[5, 2] x, int32[3] i) => (float[3, 2] y) <int32 m = {5}> { k = Mod(i, m) a = Cast<to = 7>(k) y = Gather(x, a) }"
    assert check_pass(MergeCasts(), HEAD + text).ops == ["Mod", "Gather"]


def test_indices_of_another_type_stay() -> None:
    text = "g (float[5, 2] x, uint8[3] i) => (float[3, 2] y) <uint8 m = {5}> { k = Mod(i, m) a = Cast<to = 7>(k) y = Gather(x, a) }"
    assert check_pass(MergeCasts(), HEAD + text).ops == ["Mod", "Cast", "Gather"]
