"""NodeForms: malformed nodes are refused before the first pass, with what they should be."""

from __future__ import annotations

from typing import TYPE_CHECKING

import onnx
import onnx.parser
import pytest
from onnx import AttributeProto, helper

from graphopt.analysis import Facts
from graphopt.analysis.node_forms import NodeForms
from graphopt.errors import GraphError
from graphopt.graph import read_model
from graphopt.rewrite import PassManager

if TYPE_CHECKING:
    from collections.abc import Callable

HEAD = '<ir_version: 9, opset_import: ["" : 17, "com.example" : 1]>\n'
TEXT = """g (float[1, 2] x) => (float[1, 4] y) <float[2, 2] w = {1, 2, 3, 4}>
{ [gemm] h = Gemm<alpha = 0.5>(x, w) [concat] y = Concat<axis = 1>(h, x) }"""


def change(edit: Callable[[onnx.NodeProto, onnx.NodeProto], object]) -> onnx.ModelProto:
    model = onnx.parser.parse_model(HEAD + TEXT)
    edit(*model.graph.node)
    return model


def retyped(node: onnx.NodeProto, attribute: AttributeProto) -> None:
    del node.attribute[:]
    node.attribute.append(attribute)


CASES: dict[str, tuple[Callable[[onnx.NodeProto, onnx.NodeProto], object], str]] = {
    "too few inputs": (lambda gemm, _: gemm.input.pop(), "node 'gemm' (Gemm): it has 1 inputs"),
    "no inputs": (lambda _, concat: concat.ClearField("input"), "node 'concat' (Concat): it has 0 inputs"),
    "too many inputs": (lambda gemm, _: gemm.input.extend(["x", "x"]), "it has 4 inputs. Gemm of opset 17 has 2 to 3"),
    "too many outputs": (lambda gemm, _: gemm.output.append("z"), "it has 2 outputs"),
    "required input left out": (lambda gemm, _: gemm.input.__setitem__(0, ""), "its input 0 is left out"),
    "required attribute": (lambda _, concat: concat.ClearField("attribute"), "it has no attribute 'axis'"),
    "attribute type": (
        lambda gemm, _: retyped(gemm, helper.make_attribute("alpha", [1, 2])),
        "its attribute 'alpha' is INTS. Gemm of opset 17 has FLOAT there",
    ),
    "reference outside a function": (
        lambda gemm, _: retyped(gemm, AttributeProto(name="alpha", ref_attr_name="a", type=AttributeProto.FLOAT)),
        "refers to 'a' of a function",
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_malformed_node_is_refused_by_name(case: str) -> None:
    edit, message = CASES[case]
    model = read_model(change(edit))
    with pytest.raises(GraphError) as caught:
        PassManager([]).run(model)
    assert message in str(caught.value)
    assert caught.value.code == "GO-G001"


@pytest.mark.parametrize(
    "text",
    [
        TEXT,
        "g (float[2] x) => (float[2] y) { y = Frobnicate(x) }",
        "g (float[2] x) => (float[2] y) { y = com.example.Relu(x, x, x) }",
        "g (float[2] x) => (float[2] y) <float l = {0}> { y = Clip(x, l, ) }",
        "g (float[2] x) => (float[2] y) <float h = {0}> { y = Clip(x, , h) }",
    ],
)
def test_well_formed_and_unknown_nodes_pass(text: str) -> None:
    model = read_model(onnx.parser.parse_model(HEAD + text))
    assert Facts(model).get(NodeForms) == Facts(model).get(NodeForms)


def test_nodes_of_bodies_and_functions_are_checked() -> None:
    body = """g (bool c, float[2] x) => (float[2] y)
    { y = If (c) <then_branch = t () => (float[2] a) { a = Neg(x) },
                  else_branch = f () => (float[2] b) { b = Neg() }> }"""
    function = """<ir_version: 9, opset_import: ["" : 17, "f" : 1]> g (float[2] x) => (float[2] y) { y = f.id(x) }
    <domain: "f", opset_import: ["" : 17]> id (a) => (b) { b = Add(a) }"""
    for text, message in ((HEAD + body, "(Neg): it has 0 inputs"), (function, "(Add): it has 1 inputs")):
        with pytest.raises(GraphError) as caught:
            Facts(read_model(onnx.parser.parse_model(text))).get(NodeForms)
        assert message in str(caught.value)
