"""The simplifying passes together: models that each are a known way to be wrong, and real models."""

# ruff: noqa: E501 - the tables hold one model per line

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import onnx.backend.test.loader
import onnx.parser
import pytest
from hypothesis import HealthCheck, given, settings
from onnx import TensorProto, helper, numpy_helper

from graph_strategies import small_models
from graphopt.errors import GraphoptError
from graphopt.graph import read_model
from graphopt.rewrite.manager import PassManager
from graphopt.runtime import random_feeds, run, session
from graphopt.verify.contract import Contract
from graphopt.verify.equality import compare
from graphopt.verify.reference import evaluate
from pass_oracle import assert_equal, some_feeds

PASSES = ["fold-constants", "eliminate-identity", "fuse-batch-norm", "fold-constants", "eliminate-dead"]
EXACT = [name for name in PASSES if name != "fuse-batch-norm"]
HEAD = '<ir_version: 10, opset_import: ["" : 21]>\n'


def simplified(source: onnx.ModelProto, passes: list[str] | None = None, verify: Any = "full") -> Any:
    model = read_model(source)
    before = model.copy()
    PassManager(passes or EXACT, verify=verify).run(model)
    feeds = some_feeds(before)
    assert_equal(before, Contract.EXACT, feeds, evaluate(before, feeds), evaluate(model, feeds))
    assert PassManager(passes or EXACT).run(model.copy()).patches == 0
    assert [value.name for value in model.to_proto().graph.input] == [value.name for value in source.graph.input]
    assert [value.name for value in model.to_proto().graph.output] == [value.name for value in source.graph.output]
    onnx.checker.check_model(model.to_proto())
    return model


TRAPS: dict[str, str] = {
    "input that is an output": "g (float[n] x) => (float[n] x, float[n] y) { a = Identity(x) y = Neg(a) }",
    "input unread": "g (float[n] x, float[m] u) => (float[n] y) { y = Neg(x) }",
    "optional": "g (float[2] x) => (float[2] y) { o = Optional(x) g = OptionalGetElement(o) y = Neg(g) }",
    "sequence": "g (float[4] x) => (float[2] y) <int64 two = {2}, int64 one = {1}> { s = SplitToSequence<axis = 0>(x, two) y = SequenceAt(s, one) }",
    "constant sequence": "g (float[2] x) => (float[2] y) <float[4] a = {1, 2, 3, 4}, int64 two = {2}, int64 one = {1}> { s = SplitToSequence<axis = 0>(a, two) e = SequenceAt(s, one) y = Add(x, e) }",
    "clip of clip": "g (float[n] x) => (float[n] y) <float a = {-2}, float b = {-1}> { c = Clip(x, a, b) y = Relu(c) }",
    "pad before max pool": "g (float[1, 1, 4] x) => (float[1, 1, 5] y) <int64[6] p = {0, 0, 1, 0, 0, 1}> { a = Pad(x, p) y = MaxPool<kernel_shape = [2]>(a) }",
    "twice the same output": "g (float[n] x) => (float[n] y, float[n] z) { a = Neg(x) b = Identity(a) y = Identity(b) z = Identity(b) }",
    "empty tensors": "g (float[n] x) => (float[m] y) <int64[1] s = {0}> { c = ConstantOfShape(s) e = Neg(c) y = Concat<axis = 0>(x, e) }",
    "scalars": "g (float x) => (float y) <float a = {2}> { b = Sqrt(a) y = Mul(x, b) }",
    "nested bodies": """g (bool c, bool d, float[2] x) => (float[2] y) <float[2] a = {1, 2}> { n = Neg(a) y = If (c) <
        then_branch = t () => (float[2] p) { p = If (d) <then_branch = u () => (float[2] q) { e = Exp(n) i = Identity(x) q = Add(i, e) },
                                                      else_branch = v () => (float[2] r) { r = Identity(n) }> },
        else_branch = w () => (float[2] s) { k = Identity(n) s = Add(k, x) }> }""",
    "scan": """g (float[3, 2] x, float[2] s) => (float[2] y, float[3, 2] z) <float[2] a = {4, 9}> { y, z = Scan<num_scan_inputs = 1, body =
        b (float[2] si, float[2] xi) => (float[2] so, float[2] zi) { r = Sqrt(a) so = Add(si, r) zi = Mul(xi, r) }>(s, x) }""",
}  # fmt: skip


@pytest.mark.parametrize("trap", TRAPS)
def test_trap(trap: str) -> None:
    simplified(onnx.parser.parse_model(HEAD + TRAPS[trap]))


def test_sparse_initializer_stays_what_it_is() -> None:
    model = onnx.parser.parse_model(HEAD + "g (float[4] x) => (float[4] y) { a = Identity(x) y = Add(a, w) }")
    values = helper.make_tensor("w", TensorProto.FLOAT, [2], [1.5, -2.0])
    indices = helper.make_tensor("w_indices", TensorProto.INT64, [2], [0, 3])
    model.graph.sparse_initializer.append(helper.make_sparse_tensor(values, indices, [4]))
    found = simplified(model)
    assert len(found.to_proto().graph.sparse_initializer) == 1


@pytest.mark.parametrize("name", ["int4", "uint4", "float8_e4m3fn", "float8_e5m2", "bfloat16"])
def test_small_types_go_through(name: str) -> None:
    dtype = np.dtype(getattr(ml_dtypes, name))
    values = np.arange(6).reshape(2, 3).astype(dtype)
    element = helper.np_dtype_to_tensor_dtype(dtype)
    nodes = [
        helper.make_node("Cast", ["w"], ["c"], to=TensorProto.FLOAT),
        helper.make_node("Reshape", ["c", "s"], ["r"]),
        helper.make_node("Add", ["x", "r"], ["y"]),
    ]
    graph = helper.make_graph(
        nodes, "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [3, 2])], [helper.make_tensor_value_info("y", TensorProto.FLOAT, [3, 2])],
        [numpy_helper.from_array(values, "w"), numpy_helper.from_array(np.array([3, 2]), "s")],
    )  # fmt: skip
    assert graph.initializer[0].data_type == element
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    found = simplified(model)
    assert [node.op for node in found.graph.nodes] == ["Add"]
    x = np.zeros((3, 2), np.float32)
    assert np.array_equal(run(session(found), {"x": x})["y"], values.reshape(3, 2).astype(np.float32))


@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(small_models())
def test_generated_models_keep_their_outputs_and_are_simple_after_one_run(model: onnx.ModelProto) -> None:
    simplified(model, verify="fast")


@pytest.mark.slow
@pytest.mark.skipif("GRAPHOPT_ASSETS" not in os.environ, reason="GRAPHOPT_ASSETS names no folder of real models")
def test_real_models_keep_their_outputs() -> None:
    for path in sorted(Path(os.environ["GRAPHOPT_ASSETS"]).glob("*/*.onnx")):
        if path.stem == "synth_10000":
            continue  # full verification of it takes minutes
        model = read_model(path)
        before = sum(1 for _ in model.walk())
        PassManager(PASSES, verify="full").run(model)
        feed = random_feeds(session(path, optimize=False), count=1).first()
        for name, value in run(session(path), feed).items():
            assert run(session(model), feed)[name].shape == value.shape, path
        assert sum(1 for _ in model.walk()) <= before, path


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_backend_cases_keep_their_outputs() -> None:
    compared = 0
    for case in onnx.backend.test.loader.load_model_tests(kind="node"):
        arrays = case.data_sets[0][0]
        if not all(isinstance(value, np.ndarray | onnx.TensorProto) for value in arrays):
            continue
        values = [numpy_helper.to_array(value) if isinstance(value, onnx.TensorProto) else value for value in arrays]
        feed = dict(zip([value.name for value in case.model.graph.input], values, strict=False))
        simple = read_model(case.model)
        PassManager(PASSES).run(simple)
        try:
            first = evaluate(read_model(case.model), [feed])[0]
        except GraphoptError:
            continue  # not one this runtime can run
        if is_random(case.model):
            continue
        found = evaluate(simple, [feed])[0]
        if any(
            isinstance(value, np.ndarray) and value.dtype in {np.dtype(np.float16), np.dtype(ml_dtypes.bfloat16)}
            for value in first.values()
        ):
            # the runtime computes these in float32 and rounds between nodes, less often where there are fewer nodes
            assert all(
                np.allclose(v.astype(np.float32), found[k].astype(np.float32), rtol=0.02, equal_nan=True)
                for k, v in first.items()
            )
            continue
        comparison = compare(first, found, Contract.EXACT)
        assert comparison.equal, f"{case.name}: {comparison.reason}"
        compared += 1
    assert compared > 1000


def is_random(model: onnx.ModelProto) -> bool:
    """Whether a model draws numbers, or trains, which draws them too."""
    nodes = [*model.graph.node, *(node for function in model.functions for node in function.node)]
    return any(node.op_type.startswith(("Random", "Bernoulli", "Multinomial", "Dropout")) for node in nodes)


def test_constants_of_strings_and_sparse_values_stay_usable() -> None:
    values = helper.make_tensor("v", TensorProto.FLOAT, [2], [1.5, -2.0])
    indices = helper.make_tensor("i", TensorProto.INT64, [2], [0, 3])
    nodes = [
        helper.make_node("Constant", [], ["s"], value_strings=["a", "b"]),
        helper.make_node("Identity", ["s"], ["t"]),
        helper.make_node("Concat", ["t", "x"], ["y"], axis=0),
        helper.make_node("Constant", [], ["p"], sparse_value=helper.make_sparse_tensor(values, indices, [4])),
        helper.make_node("Neg", ["p"], ["n"]),
        helper.make_node("Add", ["f", "n"], ["z"]),
    ]
    inputs = [("x", TensorProto.STRING, ["k"]), ("f", TensorProto.FLOAT, [4])]
    outputs = [("y", TensorProto.STRING, ["m"]), ("z", TensorProto.FLOAT, [4])]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info(*each) for each in inputs],
        [helper.make_tensor_value_info(*each) for each in outputs],
    )
    found = simplified(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10))
    assert [node.op for node in found.graph.nodes] == ["Constant", "Concat", "Add"]
