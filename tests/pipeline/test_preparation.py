"""Parts of models, other input shapes, tensors that stay."""

from __future__ import annotations

import numpy as np
import onnx
import onnx.parser
import pytest

import graphopt
from graphopt import preparation
from graphopt.errors import UsageError
from graphopt.graph import Model, read_model
from graphopt.runtime import run, session
from graphopt.samples import Samples
from graphopt.verify.legality import check_legal
from pass_oracle import parse

HEAD = '<ir_version: 8, opset_import: ["" : 17]>\n'
NET = (
    HEAD
    + """g (float[n, 4] x, float[n, 4] z) => (float[n, 4] y, float[n] s) <float[4] w = {1, 2, 3, 4}> {
    a = Mul(x, w) b = Relu(a) c = Add(b, z) y = Tanh(c) s = ReduceSum<keepdims = 0>(c, axes) }""".replace(
        "<float[4] w", "<int64[1] axes = {1}, float[4] w"
    )
)


def names(model: Model) -> tuple[list[str], list[str]]:
    return [t.name for t in model.graph.inputs], [t.name for t in model.graph.outputs]


def test_a_part_computes_what_it_computed_in_the_whole() -> None:
    model = parse(NET)
    part = preparation.extract(model, ["b", "z"], ["c"])
    check_legal(part)
    assert names(part) == (["b", "z"], ["c"])
    assert [node.op for node in part.graph.nodes] == ["Add"]
    feed = {name: np.ones((2, 4), np.float32) for name in ("b", "z")}
    assert (run(session(part.to_bytes()), feed)["c"] == 2).all()
    assert names(model) == (["x", "z"], ["y", "s"])


def test_an_empty_side_keeps_what_the_model_has() -> None:
    assert names(preparation.extract(parse(NET), [], ["b"])) == (["x"], ["b"])
    assert names(preparation.extract(parse(NET), ["c"], [])) == (["c"], ["y", "s"])


@pytest.mark.parametrize(
    ("inputs", "outputs", "said"),
    [
        (["b"], ["c"], "also reads the input 'z'"),
        (["b", "z"], ["cc"], "no tensor 'cc'.*Did you mean 'c'"),
        (["nothing"], ["c"], "no tensor 'nothing'"),
    ],
)
def test_a_part_that_cannot_be_is_refused(inputs: list[str], outputs: list[str], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        preparation.extract(parse(NET), inputs, outputs)


def test_names_with_colons_divide_where_they_are_known() -> None:
    model = parse(NET)
    model.graph.nodes[1].outputs[0].name = "scope/relu:0"
    assert preparation.ends(model, "scope/relu:0,z:c") == (["scope/relu:0", "z"], ["c"])
    assert preparation.ends(model, ":scope/relu:0") == ([], ["scope/relu:0"])
    with pytest.raises(UsageError, match="no tensor"):
        preparation.ends(model, "x:unknown")
    with pytest.raises(UsageError, match="IN"):
        preparation.ends(model, "x")


def test_a_size_takes_the_place_of_its_symbol_everywhere() -> None:
    fixed = preparation.with_input_shapes(parse(NET), {"x": (3, 4)})
    assert [tensor.shape for tensor in (*fixed.graph.inputs, *fixed.graph.outputs)] == [[3, 4], [3, 4], [3, 4], [3]]
    again = read_model(fixed.to_bytes())
    assert [tensor.shape for tensor in again.graph.inputs] == [[3, 4], [3, 4]]
    renamed = preparation.with_input_shapes(parse(NET), {"x": ("batch", 4)})
    assert renamed.graph.outputs[1].shape == ["batch"]


@pytest.mark.parametrize(
    ("shapes", "said"),
    [
        ({"q": (1, 4)}, "no input 'q'"),
        ({"x": (1,)}, "1 sizes for 'x'"),
        ({"x": (1, 5)}, "5 for an axis of 4"),
        ({"x": (1, 4), "z": (2, 4)}, "'n' becomes 1 and 2"),
    ],
)
def test_shapes_that_contradict_the_model_are_refused(shapes: dict[str, tuple[int, ...]], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        preparation.with_input_shapes(parse(NET), shapes)


def test_frozen_weights_are_constants_and_no_inputs() -> None:
    text = HEAD + "g (float[2] x, float[2] w) => (float[2] y) <float[2] w = {1, 2}> { a = Abs(w) y = Add(x, a) }"
    model = parse(text)
    assert [node.op for node in graphopt.simplify(model).model.graph.nodes] == ["Abs", "Add"]
    frozen = graphopt.simplify(model, freeze_weights=True).model
    assert [node.op for node in frozen.graph.nodes] == ["Add"]
    assert [value.name for value in frozen.to_proto().graph.input] == ["x"]
    assert [value.name for value in model.to_proto().graph.input] == ["x", "w"]


def test_kept_tensors_survive_under_their_names() -> None:
    text = HEAD + "g (float[4] x) => (float[4] y) { b = Exp(x) c = Exp(x) y = Sub(b, c) }"
    plain = graphopt.simplify(parse(text)).model
    assert "c" not in {tensor.name for node in plain.graph.nodes for tensor in node.outputs}
    kept = graphopt.simplify(parse(text), keep=["c"]).model
    assert "c" in {tensor.name for node in kept.graph.nodes for tensor in node.outputs}
    assert names(kept) == (["x"], ["y"])


def test_a_node_is_kept_by_its_name() -> None:
    model = parse(HEAD + "g (float[4] x) => (float[4] y) { a = Neg(x) b = Neg(a) y = Exp(b) }")
    model.graph.nodes[0].name = "negation"
    kept = graphopt.simplify(model, keep=["negation"]).model
    assert "a" in {tensor.name for node in kept.graph.nodes for tensor in node.outputs}
    with pytest.raises(UsageError, match="Did you mean 'negation'"):
        graphopt.simplify(model, keep=["negatio"])


def test_random_feeds_of_which_a_later_one_is_illegal_measure_nothing() -> None:
    proto = onnx.parser.parse_model(
        """<ir_version: 8, opset_import: ["" : 17]>
        g (int64[1, 2] i) => (float[1, 2, 3] y) <float[6, 3] t = {0}> { y = Gather(t, i) }"""
    )
    del proto.graph.initializer[:]
    table = np.arange(18, dtype=np.float32).reshape(6, 3)
    proto.graph.initializer.append(onnx.numpy_helper.from_array(table, "t"))
    model = read_model(proto)
    for seed in range(12):
        samples = Samples.of(model, None, seed)
        if samples.held_back is None:
            assert "nothing was measured" in samples.notes[0]
        else:
            runner = session(model)
            for feed in samples.held_back:
                run(runner, feed)
