"""Patterns of graphsurgeon, matched by our matcher."""

from __future__ import annotations

import onnx_graphsurgeon as gs
import pytest

from graphopt.errors import UnsupportedError
from graphopt.rewrite.gs_pattern import from_graph_pattern
from pass_oracle import parse

HEAD = '<ir_version: 8, opset_import: ["" : 17, "my" : 1]>\n'


def silu() -> gs.GraphPattern:
    pattern = gs.GraphPattern()
    x = pattern.variable()
    gate = pattern.add("gate", "Sigmoid", inputs=[x])
    pattern.set_output_tensors([pattern.add("product", "Mul", inputs=[x, gate])])
    return pattern


@pytest.mark.parametrize(
    ("body", "found"),
    [
        ("s = Sigmoid(x)\n y = Mul(x, s)", True),
        ("s = Sigmoid(x)\n y = Mul(s, x)", True),
        ("s = my.Sigmoid(x)\n y = Mul(x, s)", False),
        ("s = Sigmoid(x)\n y = Mul(s, s)", False),
        ("s = Sigmoid(x)\n r = Relu(s)\n p = Mul(x, s)\n y = Add(p, r)", False),
    ],
)
def test_silu_is_found_where_it_is(body: str, found: bool) -> None:
    model = parse(HEAD + f"g (float[4] x) => (float[4] y) {{ {body} }}")
    pattern = from_graph_pattern(silu())
    matches = [match for _, node in model.walk() if (match := pattern.match(node, model)) is not None]
    assert len(matches) == found
    for match in matches:
        assert match.node("gate").op == "Sigmoid"
        assert match.tensor("input0") is model.graph.inputs[0]


def test_sub_patterns_constants_and_conditions_are_kept() -> None:
    inner = gs.GraphPattern()
    a, k = inner.variable(), inner.constant("factor")
    inner.set_output_tensors([inner.add("scale", "Mul", inputs=[a, k])])
    outer = gs.GraphPattern()
    x = outer.variable()
    scaled = outer.add("scaled", inner, inputs=[x])
    soft = outer.add("soft", "Softmax", inputs=[scaled], check_func=lambda node: node.attrs.get("axis") == 1)
    outer.set_output_tensors([soft])
    pattern = from_graph_pattern(outer)
    text = "g (float[2,4] x) => (float[2,4] y) <float k = {2}> { s = Mul(k, x)\n y = Softmax<axis=%d>(s) }"
    for axis, matches in ((1, True), (0, False)):
        model = parse(HEAD + text % axis)
        found = pattern.match(model.graph.nodes[-1], model)
        assert (found is not None) is matches
        if found is not None:
            assert found.node("scaled.scale").op == "Mul"
            assert found.value("scaled.factor") == 2


def test_declared_outputs_may_have_other_users() -> None:
    pattern = gs.GraphPattern()
    x = pattern.variable()
    relu = pattern.add("relu", "Relu", inputs=[x])
    pattern.set_output_tensors([pattern.add("neg", "Neg", inputs=[relu]), relu])
    model = parse(HEAD + "g (float[4] x) => (float[4] y, float[4] z) { a = Relu(x)\n y = Neg(a)\n z = Abs(a) }")
    found = from_graph_pattern(pattern).match(model.graph.nodes[1], model)
    assert found is not None
    assert [node.op for node in found.nodes] == ["Neg"]


def test_what_is_not_above_the_first_output_is_refused() -> None:
    pattern = gs.GraphPattern()
    x = pattern.variable()
    first = pattern.add("first", "Relu", inputs=[x])
    pattern.set_output_tensors([first, pattern.add("second", "Neg", inputs=[x])])
    with pytest.raises(UnsupportedError, match="the nodes second of the GraphPattern"):
        from_graph_pattern(pattern)
    with pytest.raises(UnsupportedError, match="has no output"):
        from_graph_pattern(gs.GraphPattern())
