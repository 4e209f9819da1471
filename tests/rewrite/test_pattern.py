"""Patterns: what they match, in which order, and why not."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest

from graphopt.errors import PassError
from graphopt.rewrite.pattern import Const, Either, Maybe, Op, Rest, Wild, attribute, filled
from pass_oracle import parse

if TYPE_CHECKING:
    from graphopt.graph import Model, Node

HEAD = '<ir_version: 8, opset_import: ["" : 17, "my" : 1]>\n'


def model_of(body: str) -> Model:
    return parse(HEAD + body)


def node_of(model: Model, output: str) -> Node:
    return next(node for _, node in model.walk() if any(t.name == output for t in node.outputs))


SILU = """g (float[4] x) => (float[4] y) {
    s = Sigmoid(x)
    y = Mul(%s)
}"""


@pytest.mark.parametrize("order", ["x, s", "s, x"])
def test_commutative_inputs_match_in_either_order(order: str) -> None:
    model = model_of(SILU % order)
    x = Wild("x")
    found = Op("Mul", x, Op("Sigmoid", x, name="gate")).match(node_of(model, "y"), model)
    assert found is not None
    assert found.node("gate").op == "Sigmoid"
    assert found.tensor("x") is model.graph.inputs[0]
    assert [node.op for node in found.nodes] == ["Mul", "Sigmoid"]


def test_non_commutative_inputs_match_in_the_written_order_only() -> None:
    model = model_of("g (float[4] x) => (float[4] y) { s = Relu(x)\n y = Sub(x, s) }")
    assert Op("Sub", Wild(), Op("Relu", Wild())).match(node_of(model, "y"), model)
    assert not Op("Sub", Op("Relu", Wild()), Wild()).match(node_of(model, "y"), model)


def test_one_name_is_one_tensor() -> None:
    model = model_of("g (float[4] x, float[4] z) => (float[4] y) { s = Sigmoid(z)\n y = Mul(x, s) }")
    x = Wild("x")
    pattern = Op("Mul", x, Op("Sigmoid", x))
    assert pattern.match(node_of(model, "y"), model) is None
    assert "another tensor than the first 'x'" in pattern.explain(node_of(model, "y"), model)


def test_one_pattern_object_is_one_node() -> None:
    text = "g (float[4] x) => (float[4] y) { a = Relu(x)\n b = Relu(x)\n y = Sub(%s) }"
    relu = Op("Relu", Wild("x"))
    for order, matches in (("a, a", True), ("a, b", False)):
        model = model_of(text % order)
        found = Op("Sub", relu, relu).match(node_of(model, "y"), model)
        assert (found is not None) is matches
    assert "not by" in Op("Sub", relu, relu).explain(node_of(model, "y"), model)


def test_backtracking_finds_the_order_that_fits_all_operands() -> None:
    # The first operand fits both inputs; only the order in which it takes the second one leaves a Sigmoid.
    model = model_of("g (float[4] x) => (float[4] y) { s = Sigmoid(x)\n r = Relu(x)\n y = Add(s, r) }")
    pattern = Op("Add", Op("Relu|Sigmoid", Wild("x")), Op("Sigmoid", Wild("x")))
    found = pattern.match(node_of(model, "y"), model)
    assert found is not None
    assert [node.op for node in found.nodes] == ["Add", "Relu", "Sigmoid"]


def test_optional_input_may_be_absent_and_is_checked_where_present() -> None:
    conv = Op("Conv", Wild("x"), Const("w"), Maybe(Const("b")))
    text = """g (float[1,1,4,4] x, float[1] free) => (float[1,1,4,4] y)
    <float[1,1,1,1] w = {2}, float[1] b = {3}> { y = Conv(%s) }"""
    for inputs, matches, bound in (("x, w", True, False), ("x, w, b", True, True), ("x, w, free", False, False)):
        model = model_of(text % inputs)
        found = conv.match(node_of(model, "y"), model)
        assert (found is not None) is matches
        assert (found is not None and "b" in found) is bound
    assert conv.explain(node_of(model, "y"), model) == "Conv 'Conv -> y': input 2 ('free') is not constant"


def test_middle_input_left_out_is_absent() -> None:
    model = model_of("g (float[4] x) => (float[4] y) <float high = {1}> { y = Clip(x, , high) }")
    node = node_of(model, "y")
    assert Op("Clip", Wild("x"), Maybe(Const("low")), Const("high")).match(node, model)
    wanted = Op("Clip", Wild("x"), Const("low"), Const("high"))
    assert wanted.match(node, model) is None
    assert "input 1 is absent" in wanted.explain(node, model)


def test_more_inputs_than_operands_do_not_match_without_rest() -> None:
    model = model_of("g (float[4] x) => (float[12] y) { y = Concat<axis=0>(x, x, x) }")
    node = node_of(model, "y")
    assert "has 3 inputs, not 1" in Op("Concat", Wild()).explain(node, model)
    found = Op("Concat", Wild("first"), Rest("others")).match(node, model)
    assert found is not None
    assert found.rest("others") == (model.graph.inputs[0],) * 2


def test_rest_must_be_last() -> None:
    with pytest.raises(PassError, match="Rest is not the last operand"):
        Op("Concat", Rest("a"), Wild("b"))


def test_alternatives_are_tried_in_order() -> None:
    act = Either(Op("Relu", Wild("x")), Op("Clip", Wild("x"), Rest("limits")), Wild("x"))
    for body, nodes in (("a = Relu(x)", 2), ("a = Clip(x)", 2), ("a = Tanh(x)", 1)):
        model = model_of(f"g (float[4] x) => (float[4] y) {{ {body}\n y = Neg(a) }}")
        found = Op("Neg", act).match(node_of(model, "y"), model)
        assert found is not None
        assert len(found.nodes) == nodes


def test_constant_predicate_sees_initializers_and_constant_nodes() -> None:
    text = "g (float[4] x) => (float[4] y) %s { %s }"
    halves = (
        ("<float c = {0.5}>", "y = Mul(c, x)"),
        ("", "c = Constant<value_float=0.5>()\n y = Mul(x, c)"),
        ("<float[4] c = {0.5, 0.5, 0.5, 0.5}>", "y = Mul(x, c)"),
    )
    for weights, body in halves:
        model = model_of(text % (weights, body))
        found = Op("Mul", Wild("x"), Const("c", filled(0.5))).match(node_of(model, "y"), model)
        assert found is not None
        assert found.value("c").dtype == np.float32
    model = model_of(text % ("<float c = {0.25}>", "y = Mul(x, c)"))
    explained = Op("Mul", Wild("x"), Const("c", filled(0.5))).explain(node_of(model, "y"), model)
    assert "is not filled(0.5)" in explained or "is not constant" in explained


def test_overridable_initializer_is_not_constant() -> None:
    model = model_of("g (float[4] x, float c = {0.5}) => (float[4] y) { y = Mul(x, c) }")
    assert Op("Mul", Wild("x"), Const("c")).match(node_of(model, "y"), model) is None


def test_attribute_counts_with_the_default_of_the_schema() -> None:
    model = model_of("g (float[4,4] x) => (float[4,4] y) { y = Softmax(x) }")
    node = node_of(model, "y")
    assert attribute(node, "axis", model) == -1
    assert Op("Softmax", Wild(), attrs={"axis": -1}).match(node, model)
    wrong = Op("Softmax", Wild(), attrs={"axis": 1})
    assert wrong.explain(node, model) == "Softmax 'Softmax -> y': attribute axis is -1, not 1"
    model.opset = 11
    assert Op("Softmax", Wild(), attrs={"axis": lambda axis: axis == 1}).match(node, model)


def test_operator_of_another_domain_is_another_operator() -> None:
    model = model_of("g (float[4] x) => (float[4] y) { y = my.Relu(x) }")
    node = node_of(model, "y")
    assert Op("Relu", Wild()).match(node, model) is None
    assert Op("Relu", Wild(), domain="my").match(node, model)


def test_interior_with_a_second_user_is_rejected_unless_shared() -> None:
    model = model_of("g (float[4] x) => (float[4] y, float[4] z) { a = Relu(x)\n y = Neg(a)\n z = Abs(a) }")
    node = node_of(model, "y")
    assert Op("Neg", Op("Relu", Wild())).match(node, model) is None
    assert "'a' is also used by Abs" in Op("Neg", Op("Relu", Wild())).explain(node, model)
    found = Op("Neg", Op("Relu", Wild(), shared=True)).match(node, model)
    assert found is not None
    assert found.nodes == (node,)


def test_interior_that_is_a_graph_output_is_rejected() -> None:
    model = model_of("g (float[4] x) => (float[4] y, float[4] a) { a = Relu(x)\n y = Neg(a) }")
    node = node_of(model, "y")
    assert "is a graph output" in Op("Neg", Op("Relu", Wild())).explain(node, model)


def test_two_uses_inside_the_match_are_no_second_user() -> None:
    model = model_of("g (float[4] x) => (float[4] y) { a = Relu(x)\n y = Mul(a, a) }")
    inner = Op("Relu", Wild("x"))
    assert Op("Mul", inner, inner).match(node_of(model, "y"), model)


CAPTURE = """g (bool c, float[4] x) => (float[4] y) <float k = {2}> {
    a = Relu(x)
    y = If (c) <then_branch = t () => (float[4] p) { p = Mul(a, k) },
                else_branch = e () => (float[4] q) { q = Neg(k2)
                k2 = Identity(x) }>
}"""


def test_captured_tensors_match_as_operands_but_not_as_interior() -> None:
    model = model_of(CAPTURE.replace("q = Neg(k2)\n                k2 = Identity(x)", "q = Neg(x)"))
    node = node_of(model, "p")
    found = Op("Mul", Wild("a"), Const("k")).match(node, model)
    assert found is not None
    assert found.tensor("a").name == "a"
    inner = Op("Mul", Op("Relu", Wild("x")), Const("k"))
    assert inner.match(node, model) is None
    assert "lies in another graph" in inner.explain(node, model)


def test_second_output_is_told_from_the_first() -> None:
    model = model_of("g (float[8] x) => (float[4] y) { a, b = Split<axis=0>(x)\n y = Neg(b) }")
    node = node_of(model, "y")
    assert Op("Neg", Op("Split", Wild(), output=1)).match(node, model)
    assert Op("Neg", Op("Split", Wild())).match(node, model) is None
    assert "another output of 'Split -> a' than 0" in Op("Neg", Op("Split", Wild())).explain(node, model)


def test_unnamed_twins_are_told_apart_by_identity() -> None:
    # gs.GraphPattern takes this diamond of two equal nodes for one node.
    model = model_of("g (float[4] x) => (float[4] y) { a = Relu(x)\n b = Relu(x)\n y = Add(a, b) }")
    inner = Op("Relu", Wild("x"))
    assert Op("Add", inner, inner).match(node_of(model, "y"), model) is None


def test_depth_counts_nodes() -> None:
    assert Op("Relu", Wild()).depth == 1
    assert Op("Add", Op("Relu", Wild()), Either(Wild(), Op("Neg", Maybe(Op("Abs", Wild()))))).depth == 3
