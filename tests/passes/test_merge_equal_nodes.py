"""merge-equal-nodes: what is computed twice is computed once, in every scope; what only looks alike stays."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import given, settings
from onnx import TensorProto, helper, numpy_helper

from graph_strategies import small_models
from graphopt.passes.simplify.merge_equal_nodes import MergeEqualNodes
from pass_oracle import check_pass, run_pass

if TYPE_CHECKING:
    from collections.abc import Callable

HEAD = '<ir_version: 9, opset_import: ["" : 19]>\n'


def test_equal_nodes_merge_down_the_graph(golden: Callable[[str], None]) -> None:
    done = check_pass(
        MergeEqualNodes(),
        HEAD
        + """g (float[n, 4] x) => (float[n, 4] y, float[n, 4] z)
        <float[4] a = {1, 2, 3, 4}, float[4] b = {1, 2, 3, 4}> {
            p = Add(x, a) q = Add(b, x)
            r = Relu(p) s = Relu(q)
            t = Exp(s)
            y = Add(r, t) z = Sub(s, t) }""",
    )
    golden(done.text)
    assert done.ops == ["Add", "Relu", "Exp", "Add", "Sub"]


def test_a_node_of_a_body_reads_the_equal_one_around_it() -> None:
    done = check_pass(
        MergeEqualNodes(),
        HEAD
        + """g (bool c, float[2] x) => (float[2] y, float[2] n) { n = Neg(x)
            y = If (c) <then_branch = t () => (float[2] p) { u = Neg(x) p = Exp(u) },
                        else_branch = e () => (float[2] q) { v = Neg(x) w = Abs(v) q = Mul(v, w) }> }""",
    )
    assert done.ops.count("Neg") == 1


def test_a_node_behind_the_body_does_not_serve_it() -> None:
    done = check_pass(
        MergeEqualNodes(),
        HEAD
        + """g (bool c, float[2] x) => (float[2] y, float[2] z) {
            y = If (c) <then_branch = t () => (float[2] p) { u = Neg(x) p = Exp(u) },
                        else_branch = e () => (float[2] q) { q = Abs(x) }>
            n = Neg(x) z = Exp(n) }""",
    )
    assert done.ops.count("Neg") == 2


ENDS = " y = Neg(p) z = Abs(q)"
KEPT = {
    "other attributes": "p = Softmax<axis = 0>(x) q = Softmax<axis = 1>(x)" + ENDS,
    "an operator that does not commute": "p = Sub(x, x2) q = Sub(x2, x)" + ENDS,
    "random numbers": "p = RandomNormalLike(x) q = RandomNormalLike(x)" + ENDS,
    "random choices": "p = Bernoulli(x) q = Bernoulli(x)" + ENDS,
    "zeros of different sign": "p = Div(x, plus) q = Div(x, minus)" + ENDS,
    "an unknown domain": "p = other.Thing(x) q = other.Thing(x)" + ENDS,
    "quantization pairs": "p = DequantizeLinear(w, s) q = DequantizeLinear(w, s)" + ENDS,
    "both are outputs of the model": "y = Neg(x) z = Neg(x)",
}


@pytest.mark.parametrize("body", KEPT.values(), ids=KEPT.keys())
def test_what_only_looks_alike_stays(body: str) -> None:
    done = run_pass(
        MergeEqualNodes(),
        '<ir_version: 9, opset_import: ["" : 19, "other" : 1]>\n'
        "g (float[3, 3] x, float[3, 3] x2, int8[3, 3] w) => (float[3, 3] y, float[3, 3] z) "
        f"<float plus = {{0.0}}, float minus = {{-0.0}}, float s = {{0.5}}> {{ {body} }}",
    )
    assert done.record.patches == 0


def test_constants_of_equal_bytes_but_different_types_differ() -> None:
    zeros = [numpy_helper.from_array(np.zeros(2, kind), name) for kind, name in ((np.int64, "a"), (np.float64, "b"))]
    nodes = [
        helper.make_node("Cast", ["a"], ["y"], to=TensorProto.FLOAT),
        helper.make_node("Cast", ["b"], ["z"], to=TensorProto.FLOAT),
    ]
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [2]) for name in ("y", "z")]
    model = helper.make_model(
        helper.make_graph(nodes, "g", [], ends, zeros), opset_imports=[helper.make_opsetid("", 19)], ir_version=9
    )
    assert run_pass(MergeEqualNodes(), model).record.patches == 0


def test_an_overridable_initializer_equals_only_itself() -> None:
    done = run_pass(
        MergeEqualNodes(),
        HEAD
        + """g (float[2] x, float[2] a) => (float[2] y, float[2] z) <float[2] a = {1, 2}, float[2] b = {1, 2}> {
            p = Add(x, a) q = Add(x, b) y = Neg(p) z = Abs(q) }""",
    )
    assert done.record.patches == 0


@settings(max_examples=60, deadline=None)
@given(small_models())
def test_generated_models_keep_their_outputs(model: object) -> None:
    check_pass(MergeEqualNodes(), model)
