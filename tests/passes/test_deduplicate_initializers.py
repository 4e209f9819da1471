"""deduplicate-initializers: equal bytes are stored once; what may differ or be replaced stays."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import given, settings
from onnx import TensorProto, helper, numpy_helper

from graph_strategies import small_models
from graphopt.graph import read_model
from graphopt.passes.simplify.deduplicate_initializers import DeduplicateInitializers
from graphopt.passes.simplify.fold_constants import FoldConstants
from graphopt.rewrite import PassManager
from pass_oracle import check_pass, run_pass

if TYPE_CHECKING:
    from pathlib import Path

HEAD = '<ir_version: 9, opset_import: ["" : 19]>\n'


def test_equal_weights_are_stored_once_in_every_scope() -> None:
    done = check_pass(
        DeduplicateInitializers(),
        HEAD
        + """g (bool c, float[2] x) => (float[2] y) <float[2] a = {1, 2}, float[2] b = {1, 2}, float[2] d = {2, 1}> {
            p = Add(x, a) q = Mul(p, b) r = Sub(q, d)
            y = If (c) <then_branch = t () => (float[2] u) <float[2] e = {1, 2}> { u = Add(r, e) },
                        else_branch = f () => (float[2] v) { v = Neg(r) }> }""",
    )
    names = [constant.name for graph in done.model.graphs() for constant in graph.initializers]
    assert names == ["a", "d"]


KEPT = {
    "zeros of different sign": "<float[2] a = {0.0, 1.0}, float[2] b = {-0.0, 1.0}>",
    "other shapes": "<float[2] a = {1, 2}, float[1, 2] b = {1, 2}>",
    "other types": "<float[1] a = {0}, int32[1] b = {0}>",
}


@pytest.mark.parametrize("weights", KEPT.values(), ids=KEPT.keys())
def test_what_is_not_the_same_stays(weights: str) -> None:
    body = "p = CastLike(a, x) q = CastLike(b, x) r = Add(x, p) y = Add(r, q)"
    text = f"{HEAD}g (float[1, 2] x) => (float[1, 2] y) {weights} {{ {body} }}"
    assert run_pass(DeduplicateInitializers(), text).record.patches == 0


def test_what_a_caller_may_replace_stays() -> None:
    text = """g (float[2] x, float[2] a) => (float[2] y) <float[2] a = {1, 2}, float[2] b = {1, 2}> {
        p = Add(x, a) y = Mul(p, b) }"""
    assert run_pass(DeduplicateInitializers(), HEAD + text).record.patches == 0


def test_equal_beginnings_are_not_equal_weights() -> None:
    first = np.zeros(4096, np.float32)
    second = first.copy()
    second[-1] = 1
    nodes = [helper.make_node("Add", ["x", "a"], ["p"]), helper.make_node("Add", ["p", "b"], ["y"])]
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [4096]) for name in ("x", "y")]
    weights = [numpy_helper.from_array(first, "a"), numpy_helper.from_array(second, "b")]
    graph = helper.make_graph(nodes, "g", ends[:1], ends[1:], weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)], ir_version=9)
    assert run_pass(DeduplicateInitializers(), model).record.patches == 0


def test_values_that_folding_makes_are_shared_too() -> None:
    text = """g (float[4] x) => (float[4] y) <float[4] a = {1, 2, 3, 4}, float[4] b = {4, 3, 2, 1}> {
        p = Add(a, b) q = Sub(x, p) r = Add(b, a) y = Div(q, r) }"""
    done = run_pass(FoldConstants(), HEAD + text)
    PassManager([DeduplicateInitializers()]).run(done.model)
    assert len(done.model.graph.initializers) == 1


def test_external_weights_are_compared_without_loading_them_all(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    base = rng.standard_normal((64, 64)).astype(np.float32)
    weights = [numpy_helper.from_array(base, f"w{i}") for i in range(3)]
    nodes = [helper.make_node("MatMul", [f"t{i}", f"w{i}"], [f"t{i + 1}"]) for i in range(3)]
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 64]) for name in ("t0", "t3")]
    graph = helper.make_graph(nodes, "g", ends[:1], ends[1:], weights)
    model = read_model(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)], ir_version=9))
    model.save(tmp_path / "m.onnx", external="m.data")
    again = read_model(tmp_path / "m.onnx")
    PassManager([DeduplicateInitializers()]).run(again)
    again.save(tmp_path / "small.onnx", external="small.data")
    assert (tmp_path / "small.data").stat().st_size == base.nbytes
    assert (tmp_path / "m.data").stat().st_size == 3 * base.nbytes


@settings(max_examples=60, deadline=None)
@given(small_models())
def test_generated_models_keep_their_outputs(model: object) -> None:
    check_pass(DeduplicateInitializers(), model)
