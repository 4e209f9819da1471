"""Moving out of bodies: objects and edges stay, names become unique only where they have to."""

from __future__ import annotations

import numpy as np
import onnx.parser

from graphopt.graph import Constant, Rewriter, producer, read_model
from graphopt.graph.moving import holds_initializers, move_initializer, move_nodes
from graphopt.verify.legality import check_legal

TEXT = """<ir_version: {ir}, opset_import: ["" : 19]>
g (float[n] x, bool[] p) => (float[n] y) {{
  y = If (p) <
    then_branch = t () => (float[n] a) <float[1] w = {{2}}> {{ h = Mul(x, w) a = Neg(h) }},
    else_branch = e () => (float[n] b) {{ h = Exp(x) b = Abs(h) }}>
}}"""


def test_nodes_keep_their_objects_and_unique_names() -> None:
    model = read_model(onnx.parser.parse_model(TEXT.format(ir=9)))
    holder = model.graph.nodes[0]
    body = holder.attrs["then_branch"]
    (constant,) = body.initializers
    product = body.nodes[0]
    with Rewriter(model) as rewriter:
        move_initializer(rewriter, constant, holder)
        move_nodes(rewriter, [product], holder)
        assert set(rewriter.touched) >= {product}
    check_legal(model)
    assert list(model.graph.nodes) == [product, holder]
    assert constant.home is model.graph
    assert (constant.name, product.outputs[0].name) == ("w", "h__moved")
    assert body.nodes[0].inputs[0] is product.outputs[0]
    assert read_model(model.to_bytes()).to_bytes() == model.to_bytes()


def test_initializers_move_as_nodes_where_none_may_stand() -> None:
    model = read_model(onnx.parser.parse_model(TEXT.format(ir=9)))
    model.ir_version = 3
    holder = model.graph.nodes[0]
    body = holder.attrs["then_branch"]
    (constant,) = body.initializers
    assert not holds_initializers(model.graph)
    with Rewriter(model) as rewriter:
        move_initializer(rewriter, constant, holder)
    made = producer(body.nodes[0].inputs[1])
    assert made is model.graph.nodes[0]
    value = made.attrs["value"]
    assert isinstance(value, Constant)
    assert np.array_equal(value.array(), [2])
    assert not body.initializers


def test_repeated_names_are_those_of_several_tensors() -> None:
    names = read_model(onnx.parser.parse_model(TEXT.format(ir=9))).names
    assert names.is_repeated("h")
    assert not any(map(names.is_repeated, ("x", "y", "a", "w", "none")))
