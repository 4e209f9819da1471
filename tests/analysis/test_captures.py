"""Uses and captures over nested scopes."""

from __future__ import annotations

import pytest

from graphopt.analysis import Captures, Facts, Uses
from graphopt.graph import Model, Rewriter
from shape_agreement import read_text

TEXT = """<ir_version: 8, opset_import: ["" : 17]>
g (float[b] x, bool c) => (float y) <float[1] w = {1}> {
    a = Relu (x)
    y = If (c) <
        then_branch = then () => (t) {
            t = If (c) < then_branch = deep () => (d) { d = Add (a, w) }, else_branch = rest () => (r) { r = Neg (a) } >
        },
        else_branch = other () => (e) { i = Neg (a)  e = Mul (i, i) }
    >
}"""


@pytest.fixture
def model() -> Model:
    return read_text(TEXT)


def test_captures_of_each_body(model: Model) -> None:
    captures = Facts(model).get(Captures)
    found = {graph.name: [tensor.name for tensor in captures.of(graph)] for graph in model.graphs()}
    assert {name: sorted(names) for name, names in found.items()} == {
        "g": [],
        "then": ["a", "c", "w"],
        "deep": ["a", "w"],
        "rest": ["a"],
        "other": ["a"],
    }
    a = model.graph.nodes[0].outputs[0]
    assert {graph.name for graph in captures.by(a)} == {"then", "deep", "rest", "other"}
    assert captures.by(model.graph.outputs[0]) == ()


def test_a_new_capture_makes_captures_differ(model: Model) -> None:
    before = Facts(model).get(Captures)
    inner = next(node for graph, node in model.walk() if graph.name == "rest")
    with Rewriter(model) as rw:
        rw.set_input(inner, 0, model.graph.inputs[0])
    assert Facts(model).get(Captures) != before


def test_uses_of_all_scopes_with_indices(model: Model) -> None:
    uses = Facts(model).get(Uses)
    a = model.graph.nodes[0].outputs[0]
    assert sorted((use.node.op, use.index) for use in uses.of(a)) == [("Add", 0), ("Neg", 0), ("Neg", 0)]
    mul = next(node for _, node in model.walk() if node.op == "Mul")
    assert [use.index for use in uses.of(mul.inputs[0])] == [0, 1]
    assert uses.count(mul.inputs[0]) == 2


def test_graph_outputs_count_as_uses_of_their_own_kind(model: Model) -> None:
    uses = Facts(model).get(Uses)
    y = model.graph.outputs[0]
    assert uses.of(y) == ()
    assert [graph.name for graph in uses.outputs_of(y)] == ["g"]
    assert uses.count(y) == 1


def test_uses_are_a_snapshot(model: Model) -> None:
    uses = Facts(model).get(Uses)
    a = model.graph.nodes[0].outputs[0]
    with Rewriter(model) as rw:
        rw.replace_uses(a, model.graph.inputs[0])
    assert len(uses.of(a)) == 3
