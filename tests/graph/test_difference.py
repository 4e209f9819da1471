"""What differs between two models, by names."""

from __future__ import annotations

import numpy as np

from graphopt.graph import Rewriter, read_model
from graphopt.graph.difference import Change, difference
from pass_oracle import parse

HEAD = '<ir_version: 8, opset_import: ["" : 17]>\n'
TEXT = (
    HEAD
    + """g (bool c, float[n, 4] x) => (float[n, 4] y) <float[4] w = {1, 2, 3, 4}> {
    a = Mul(x, w)
    y = If (c) <then_branch = t () => (float[n, 4] p) { p = Relu(a) }, else_branch = e () => (float[n, 4] q) { q = Neg(a) }> }"""  # noqa: E501
)


def test_a_model_equals_itself_and_its_copy() -> None:
    model = parse(TEXT)
    assert difference(model, model.copy()).equal
    assert difference(model, read_model(model.to_bytes())).equal


def test_nodes_are_told_apart_in_every_scope() -> None:
    before, after = parse(TEXT), parse(TEXT.replace("p = Relu(a)", "r = Abs(a) p = Relu(r)"))
    found = difference(before, after)
    assert found.operators["Abs"] == (0, 1)
    assert found.operators["If"] == (1, 1)
    assert found.nodes == [
        Change("y.then_branch/p", "Relu(a) -> p", "Relu(r) -> p"),
        Change("y.then_branch/r", "", "Abs(a) -> r"),
    ]


def test_weights_are_compared_by_value() -> None:
    before, after = parse(TEXT), parse(TEXT)
    (weight,) = after.graph.initializers
    with Rewriter(after) as rewriter:
        rewriter.set_weight(weight, np.array([1, 2, 3, 4.5], np.float32))
    (change,) = difference(before, after).weights
    assert change.name == "w"
    assert change.after == "other values, largest difference 0.5"


def test_interface_and_versions_count() -> None:
    found = difference(
        parse(TEXT), parse(TEXT.replace('"" : 17', '"" : 18').replace("(float[n, 4] y)", "(float[n, m] y)"))
    )
    assert [change.name for change in found.properties] == ["operators of ai.onnx"]
    assert [(change.name, change.after) for change in found.interface] == [("output y", "float32 ['n', 'm']")]
