"""Operators that sink-transposes goes through give the same bits in ONNX Runtime whatever their layout."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from graphopt.errors import GraphoptError
from graphopt.graph import read_model
from graphopt.passes.simplify.layout import elementwise
from graphopt.passes.simplify.sink_transposes import SinkTransposes
from graphopt.rewrite.manager import PassManager
from graphopt.verify.contract import Contract
from graphopt.verify.equality import compare
from graphopt.verify.reference import evaluate

Array = np.ndarray[Any, Any]

SHAPE = (2, 7, 3, 11)  # so that vectors end at other elements in other layouts
TYPES = ("float32", "float16", "float64", "int32", "int64", "uint8", "int8", "bool")
ATTRS: dict[str, dict[str, Any]] = {"BitShift": {"direction": "LEFT"}, "Cast": {"to": int(TensorProto.INT32)}}
ONE_INPUT = (elementwise.unary, elementwise.dropout)
OTHERS = {"QuantizeLinear", "DequantizeLinear", "LayerNormalization", "RMSNormalization"}
ODD = (np.nan, np.inf, -np.inf, -0.0, 0.0, 1e-40, 65504.0, 1e30, -1e30, 0.5, 1.5, 2.5, -0.5)


def odd_values(dtype: np.dtype[Any], seed: int) -> Array:
    random = np.random.default_rng(seed)
    if dtype.kind == "f":
        values = random.standard_normal(SHAPE).reshape(-1)
        places = random.permutation(values.size)[: values.size // 4]
        values[places] = np.resize(ODD, places.size)
        with np.errstate(over="ignore"):
            return values.reshape(SHAPE).astype(dtype)
    if dtype.kind == "b":
        return random.random(SHAPE) > 0.5
    bounds = np.iinfo(dtype)
    return random.integers(bounds.min, bounds.max, SHAPE, dtype=dtype, endpoint=True)


def model_of(op: str, dtype: np.dtype[Any], inputs: list[str], attrs: dict[str, Any]) -> onnx.ModelProto | None:
    """Return Transposes around one node, or None where the operator does not take the type."""
    element = helper.np_dtype_to_tensor_dtype(dtype)
    kinds = {name: int(TensorProto.BOOL) if name == "condition" else element for name in inputs}
    nodes = [helper.make_node("Transpose", [name], [f"{name}_t"], perm=[0, 2, 3, 1]) for name in inputs]
    nodes.append(helper.make_node(op, [f"{name}_t" for name in inputs], ["r"], **attrs))
    nodes.append(helper.make_node("Transpose", ["r"], ["y"], perm=[0, 3, 1, 2]))
    given = [helper.make_tensor_value_info(name, kind, SHAPE) for name, kind in kinds.items()]
    graph = helper.make_graph(nodes, "g", given, [onnx.ValueInfoProto(name="y")])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)
    try:
        return onnx.shape_inference.infer_shapes(model, strict_mode=True)
    except onnx.shape_inference.InferenceError:
        return None


@pytest.mark.parametrize("op", sorted(set(elementwise.EXACT) - OTHERS))
def test_elementwise(op: str) -> None:
    inputs = ["x"] if elementwise.EXACT[op] in ONE_INPUT else ["x", "z"]
    inputs = ["condition", *inputs] if op == "Where" else inputs
    compared = 0
    for name in TYPES:
        dtype = np.dtype(name)
        attrs = {"fmod": 1} if op == "Mod" and dtype.kind == "f" else ATTRS.get(op, {})
        message = model_of(op, dtype, inputs, attrs)
        if message is None:
            continue
        kinds = [np.dtype(bool) if each == "condition" else dtype for each in inputs]
        feed = {each: odd_values(kind, seed) for seed, (each, kind) in enumerate(zip(inputs, kinds, strict=True))}
        before = read_model(message)
        try:
            expected = evaluate(before, [feed])
        except GraphoptError:
            continue  # ONNX Runtime has no kernel of this type
        after = before.copy()
        PassManager([SinkTransposes()]).run(after)
        assert [node.op for _, node in after.walk()] == [op]
        assert compare(expected[0], evaluate(after, [feed])[0], Contract.EXACT, {}).equal, name
        compared += 1
    assert compared


@pytest.mark.parametrize("op", ["ReduceMax", "ReduceMin", "ReduceSum", "ReduceL1"])
def test_reductions_of_integers(op: str) -> None:
    for axes in ([1], [3], [1, 2], [2, 3]):
        nodes = [
            helper.make_node("Transpose", ["x"], ["t"], perm=[0, 2, 3, 1]),
            helper.make_node(op, ["t", "axes"], ["r"], keepdims=1),
            helper.make_node("Transpose", ["r"], ["y"], perm=[0, 3, 1, 2]),
        ]
        graph = helper.make_graph(
            nodes,
            "g",
            [helper.make_tensor_value_info("x", TensorProto.INT32, SHAPE)],
            [helper.make_tensor_value_info("y", TensorProto.INT32, None)],
            [numpy_helper.from_array(np.array(axes, np.int64), "axes")],
        )
        imports = [helper.make_opsetid("", 18 if op != "ReduceSum" else 13)]
        before = read_model(helper.make_model(graph, opset_imports=imports, ir_version=8))
        feed = {"x": odd_values(np.dtype(np.int32), seed=0)}
        after = before.copy()
        PassManager([SinkTransposes()]).run(after)
        assert [node.op for _, node in after.walk()] == [op]
        assert compare(evaluate(before, [feed])[0], evaluate(after, [feed])[0], Contract.EXACT, {}).equal
