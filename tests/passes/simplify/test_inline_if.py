"""inline-if: the branch that is taken comes out, what only looks decided stays."""

# ruff: noqa: E501 - the tables hold one model per line

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import onnx
import onnx.parser
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from graphopt.graph import Constant, read_model
from graphopt.passes.simplify.inline_if import InlineIf
from graphopt.runtime import Feeds
from pass_oracle import check_pass, run_pass

if TYPE_CHECKING:
    from collections.abc import Callable

HEAD = '<ir_version: 9, opset_import: ["" : 19]>\n'
BOTH = "<then_branch = t () => (float[n] a) { a = Neg(x) }, else_branch = e () => (float[n] b) { b = Exp(x) }>"

GONE: dict[str, tuple[str, list[str]]] = {
    "true": (f"g (float[n] x) => (float[n] y) <bool c = {{1}}> {{ y = If {BOTH} (c) }}", ["Neg"]),
    "false": (f"g (float[n] x) => (float[n] y) <bool c = {{0}}> {{ y = If {BOTH} (c) }}", ["Exp"]),
    "true, of one axis": (f"g (float[n] x) => (float[n] y) <bool[1] c = {{1}}> {{ y = If {BOTH} (c) }}", ["Neg"]),
    "Constant node": (f"g (float[n] x) => (float[n] y) {{ c = Constant<value = bool {{1}}>() y = If {BOTH} (c) }}", ["Constant", "Neg"]),
    "read twice": (f"g (float[n] x) => (float[n] y) <bool c = {{1}}> {{ i = If {BOTH} (c) y = Add(i, i) }}", ["Neg", "Add"]),
    "rank": (f"g (float[n] x) => (float[n] y) <int64 one = {{1}}> {{ s = Shape(x) r = Size(s) q = Equal(r, one) y = If {BOTH} (q) }}", ["Shape", "Size", "Equal", "Neg"]),
    "not the rank": (f"g (float[n] x) => (float[n] y) <int64 one = {{1}}> {{ s = Shape(x) r = Size(s) q = Equal(r, one) m = Not(q) y = If {BOTH} (m) }}", ["Shape", "Size", "Equal", "Exp"]),
    "size": (f"g (float[n] x, float[2, 3] z) => (float[n] y) <int64 i = {{1}}, int64 t = {{3}}> {{ s = Shape(z) r = Gather(s, i) q = Less(r, t) y = If {BOTH} (q) }}", ["Shape", "Gather", "Less", "Exp"]),
    "nested": ("g (float[n] x, bool[] p) => (float[n] y) <bool c = {1}> { y = If (p) <then_branch = t () => (float[n] a) { a = If (c) <then_branch = tt () => (float[n] k) { k = Neg(x) }, else_branch = te () => (float[n] l) { l = Exp(x) }> }, else_branch = e () => (float[n] b) { b = Abs(x) }> }", ["If", "Neg", "Abs"]),
    "the same condition inside": ("g (float[n] x, bool[] p) => (float[n] y) { y = If (p) <then_branch = t () => (float[n] a) { a = If (p) <then_branch = tt () => (float[n] k) { k = Neg(x) }, else_branch = te () => (float[n] l) { l = Exp(x) }> }, else_branch = e () => (float[n] b) { b = If (p) <then_branch = et () => (float[n] k) { k = Sin(x) }, else_branch = ee () => (float[n] l) { l = Abs(x) }> }> }", ["If", "Abs", "Neg"]),
    "outer tensor as public output": ("g (float[n] x) => (float[n] y) <bool c = {1}> { k = Neg(x) w = Abs(k) y = If (c) <then_branch = t () => (float[n] a) { a = Identity(k) }, else_branch = e () => (float[n] b) { b = Exp(w) }> }", ["Neg", "Abs", "Identity"]),
    "initializer as public output": ("g (float[n] x) => (float[2] y) <bool c = {1}> { y = If (c) <then_branch = t () => (float[2] a) <float[2] a = {1, 2}> { }, else_branch = e () => (float[2] b) { b = Exp(x) }> }", ["Identity"]),
    "initializer that is read": ("g (float[n] x) => (float[n] y) <bool c = {1}> { k = If (c) <then_branch = t () => (float[1] a) <float[1] a = {2}> { }, else_branch = e () => (float[1] b) <float[1] b = {3}> { }> y = Mul(x, k) }", ["Mul"]),
    "initializer inside": ("g (float[n] x) => (float[n] y) <bool c = {1}> { y = If (c) <then_branch = t () => (float[n] a) <float[1] w = {2}> { a = Mul(x, w) }, else_branch = e () => (float[n] b) { b = Exp(x) }> }", ["Mul"]),
    "one result under two public names": ("g (float[n] x) => (float[n] y, float[n] z) <bool c = {1}> { y, z = If (c) <then_branch = t () => (float[n] a, float[n] aa) { a = Neg(x) aa = Identity(a) }, else_branch = e () => (float[n] b, float[n] bb) { b = Exp(x) bb = Abs(x) }> }", ["Neg", "Identity"]),
    "names of a sibling": ("g (float[n] x, bool[] p) => (float[n] y) <bool c = {1}> { y = If (p) <then_branch = t () => (float[n] a) { a = If (c) <then_branch = tt () => (float[n] k) { h = Neg(x) k = Abs(h) }, else_branch = te () => (float[n] l) { l = Exp(x) }> }, else_branch = e () => (float[n] b) { h = Sin(x) k = Cos(h) b = Abs(k) }> }", ["If", "Neg", "Abs", "Sin", "Cos", "Abs"]),
    "names of both branches": ("g (float[n] x) => (float[n] y) <bool c = {1}> { u = If (c) <then_branch = t () => (float[n] k) { h = Neg(x) k = Abs(h) }, else_branch = e () => (float[n] k) { h = Exp(x) k = Sin(h) }> v = If (c) <then_branch = t2 () => (float[n] k) { h = Cos(x) k = Tan(h) }, else_branch = e2 () => (float[n] k) { h = Exp(x) k = Sin(h) }> y = Add(u, v) }", ["Neg", "Abs", "Cos", "Tan", "Add"]),
    "inside a Loop": ("g (float[n] x) => (float[n] y) <bool c = {1}, int64 m = {3}> { y = Loop (m, c, x) <body = b (int64 i, bool k, float[n] s) => (bool kk, float[n] r) { kk = Identity(k) r = If (c) <then_branch = t () => (float[n] a) { a = Neg(s) }, else_branch = e () => (float[n] b) { b = Exp(s) }> }> }", ["Loop", "Identity", "Neg"]),
    "the same branches": ("g (float[n] x, bool[] p) => (float[n] y) { y = If (p) <then_branch = t () => (float[n] a) <float[1] w = {2}> { h = Mul(x, w) a = Neg(h) }, else_branch = e () => (float[n] b) <float[1] v = {2}> { j = Mul(x, v) b = Neg(j) }> }", ["Mul", "Neg"]),
    "the same branches, one level deeper": ("g (float[n] x, bool[] p, bool[] q) => (float[n] y) { y = If (p) <then_branch = t () => (float[n] a) { a = If (q) <then_branch = tt () => (float[n] k) { k = Neg(x) }, else_branch = te () => (float[n] l) { l = Exp(x) }> }, else_branch = e () => (float[n] b) { b = If (q) <then_branch = et () => (float[n] k) { k = Neg(x) }, else_branch = ee () => (float[n] l) { l = Exp(x) }> }> }", ["If", "Exp", "Neg"]),
    "the same outer tensor": ("g (float[n] x, bool[] p) => (float[n] y) { h = Neg(x) k = If (p) <then_branch = t () => (float[n] a) { a = Identity(h) }, else_branch = e () => (float[n] b) { j = Identity(h) b = Identity(j) }> y = Abs(k) }", ["Neg", "Abs"]),
    "the same outer tensor, among others": ("g (float[n] x, bool[] p) => (float[n] y) { h = Neg(x) k, l = If (p) <then_branch = t () => (float[n] a, float[n] aa) { a = Identity(h) aa = Exp(h) }, else_branch = e () => (float[n] b, float[n] bb) { b = Identity(h) bb = Sin(h) }> y = Add(k, l) }", ["Neg", "If", "Identity", "Sin", "Identity", "Exp", "Add"]),
    "the same outer tensor as public output": ("g (float[n] x, bool[] p) => (float[n] y) { y = If (p) <then_branch = t () => (float[n] a) { a = Identity(x) }, else_branch = e () => (float[n] b) { b = Identity(x) }> }", ["Identity"]),
    "the same constant": ("g (float[n] x, bool[] p) => (float[n] y) { k, l = If (p) <then_branch = t () => (float[1] a, float[n] aa) <float[1] a = {2}> { aa = Exp(x) }, else_branch = e () => (float[1] b, float[n] bb) <float[1] b = {2}> { bb = Sin(x) }> y = Mul(l, k) }", ["If", "Sin", "Exp", "Mul"]),
    "negated condition": (f"g (float[n] x, bool[] p) => (float[n] y) {{ q = Not(p) y = If {BOTH} (q) }}", ["If", "Neg", "Exp"]),
    "negated condition of two": (f"g (float[n] x, bool[] p) => (float[n] y) {{ q = Not(p) u = If {BOTH} (q) v = If <then_branch = t2 () => (float[n] k) {{ k = Cos(x) }}, else_branch = e2 () => (float[n] l) {{ l = Sin(x) }}> (q) y = Add(u, v) }}", ["If", "Neg", "Exp", "If", "Cos", "Sin", "Add"]),
    "output nobody reads": ("g (float[n] x) => (float[n] y) <bool c = {1}> { y, z = If (c) <then_branch = t () => (float[n] a, float[n] aa) { a = Neg(x) aa = Abs(x) }, else_branch = e () => (float[n] b, float[n] bb) { b = Exp(x) bb = Sin(x) }> }", ["Neg", "Abs"]),
}  # fmt: skip

STAYS: dict[str, str] = {
    "fed condition": f"g (float[n] x, bool[] p) => (float[n] y) {{ y = If {BOTH} (p) }}",
    "size of a free axis": f"g (float[n] x) => (float[n] y) <int64[1] t = {{3}}> {{ s = Shape(x) q = Less(s, t) y = If {BOTH} (q) }}",
    "negation that somebody else reads": f"g (float[n] x, bool[] p) => (float[n] y, bool[] q) {{ q = Not(p) y = If {BOTH} (q) }}",
    "almost the same branches": "g (float[n] x, bool[] p) => (float[n] y) { y = If (p) <then_branch = t () => (float[n] a) <float[1] w = {2}> { a = Mul(x, w) }, else_branch = e () => (float[n] b) <float[1] v = {3}> { b = Mul(x, v) }> }",
    "the same nodes on other tensors": "g (float[n] x, float[n] z, bool[] p) => (float[n] y) { y = If (p) <then_branch = t () => (float[n] a) { a = Neg(x) }, else_branch = e () => (float[n] b) { b = Neg(z) }> }",
    "the same nodes crossed": "g (float[n] x, bool[] p) => (float[n] y) { k, l = If (p) <then_branch = t () => (float[n] a, float[n] aa) { a = Neg(x) aa = Exp(x) }, else_branch = e () => (float[n] b, float[n] bb) { bb = Neg(x) b = Exp(x) }> y = Sub(k, l) }",
    "0 and -0": "g (float[n] x, bool[] p) => (float[n] y) { k = If (p) <then_branch = t () => (float[1] a) <float[1] a = {0.0}> { }, else_branch = e () => (float[1] b) <float[1] b = {-0.0}> { }> y = Div(x, k) }",
    "attributes that differ": "g (float[n, 2] x, bool[] p) => (float[n, 2] y) { y = If (p) <then_branch = t () => (float[n, 2] a) { a = Softmax<axis = 0>(x) }, else_branch = e () => (float[n, 2] b) { b = Softmax<axis = 1>(x) }> }",
}  # fmt: skip


def text(body: str) -> str:
    return HEAD + body


@pytest.mark.parametrize("case", GONE)
def test_branch_comes_out(case: str) -> None:
    source, ops = GONE[case]
    done = check_pass(InlineIf(), text(source))
    assert sorted(done.ops) == sorted(ops)
    assert done.record.patches >= 1


@pytest.mark.parametrize("case", STAYS)
def test_undecided_if_stays(case: str) -> None:
    done = check_pass(InlineIf(), text(STAYS[case]))
    assert done.record.patches == 0


def test_overridable_condition_stays() -> None:
    proto = onnx.parser.parse_model(text(f"g (float[n] x, bool[] c) => (float[n] y) {{ y = If {BOTH} (c) }}"))
    proto.graph.initializer.append(onnx.numpy_helper.from_array(np.array(True), "c"))
    assert run_pass(InlineIf(), proto).record.patches == 0


def test_declared_shapes_that_contradict_are_a_reason() -> None:
    proto = onnx.parser.parse_model(
        text(
            "g (float[2] x) => (float[3] y) <bool c = {1}> { y = If (c) <then_branch = t () => (float[2] a) <float[2] a = {1, 2}> { }, else_branch = e () => (float[2] b) { b = Exp(x) }> }"
        )
    )
    record = run_pass(InlineIf(), proto, verify="off").record
    assert record.patches == 0
    assert record.skips == [("If -> y", "it declares the shape [3] for 'y', its branch gives [2]")]


def test_golden(golden: Callable[[str], None]) -> None:
    golden(check_pass(InlineIf(), text(GONE["names of both branches"][0])).text)


def test_metadata_and_names_move_along() -> None:
    proto = onnx.parser.parse_model(text(GONE["true"][0]))
    inner = proto.graph.node[0].attribute[0].g.node[0]
    inner.name = "negate"
    inner.doc_string = "why"
    inner.metadata_props.add(key="k", value="v")
    done = check_pass(InlineIf(), proto)
    (node,) = done.model.to_proto().graph.node
    assert (node.name, node.doc_string, node.metadata_props[0].value) == ("negate", "why", "v")


def test_initializers_of_old_models_become_constant_nodes() -> None:
    proto = onnx.parser.parse_model(
        '<ir_version: 3, opset_import: ["" : 11]> g (float[n] x) => (float[n] y) { c = Constant<value = bool {1}>() y = If (c) <then_branch = t () => (float[n] a) { w = Constant<value = float {2}>() a = Mul(x, w) }, else_branch = e () => (float[n] b) { b = Exp(x) }> }'
    )
    model = read_model(proto)
    then = model.graph.nodes[1].attrs["then_branch"]
    weight = Constant("w2", np.array(3, np.float32))
    then.initializers[weight] = None
    weight.home = then
    then.nodes[1].inputs[1] = weight
    done = run_pass(InlineIf(), model, verify="fast")
    assert sorted(done.ops) == ["Constant", "Constant", "Constant", "Mul"]
    assert not done.model.graph.initializers


def test_if_in_a_function_keeps_references_to_attributes() -> None:
    source = '<ir_version: 9, opset_import: ["" : 19, "f" : 1]> g (float[n] x) => (float[n] y) { y = f.act<alpha = 0.25>(x) } <opset_import: ["" : 19], domain: "f"> act<alpha>(x) => (y) { c = Constant<value = bool {1}>() y = If (c) <then_branch = t () => (float[n] a) { a = LeakyRelu<alpha: float = @alpha>(x) }, else_branch = e () => (float[n] b) { b = Exp(x) }> }'
    done = check_pass(InlineIf(), source)
    assert done.ops == ["act", "Constant", "LeakyRelu"]


def feeds(proto: onnx.ModelProto, **arrays: np.ndarray) -> Feeds:
    return Feeds.open([arrays], read_model(proto), allow_nan=True)


OPS = ("Neg", "Abs", "Sin", "Relu", "Identity")


@st.composite
def branching_models(draw: st.DrawFn) -> onnx.ModelProto:
    """A chain of nodes and If, nested, on conditions that are constant, fed, or follow from a shape."""
    counter = iter(range(10_000))

    def block(source: str, depth: int, visible: list[str]) -> tuple[list[onnx.NodeProto], str]:
        nodes = []
        for _ in range(draw(st.integers(1, 3))):
            result = (
                f"t{next(counter)}" if draw(st.booleans()) else f"s{draw(st.integers(0, 2))}_{depth}_{next(counter)}"
            )
            if depth < 3 and draw(st.booleans()):
                bodies = {}
                for key in ("then_branch", "else_branch"):
                    inner, last = block(draw(st.sampled_from([source, *visible])), depth + 1, [*visible, source])
                    info = onnx.helper.make_tensor_value_info(last, 1, ["n"])
                    bodies[key] = onnx.helper.make_graph(inner, key, [], [info])
                condition = draw(st.sampled_from(["yes", "no", "fed", "flat", "denied"]))
                nodes.append(onnx.helper.make_node("If", [condition], [result], **bodies))
            else:
                nodes.append(onnx.helper.make_node(draw(st.sampled_from(OPS)), [source], [result]))
            source = result
        return nodes, source

    nodes, last = block("x", 0, [])
    first = [
        onnx.helper.make_node("Shape", ["x"], ["shape"]),
        onnx.helper.make_node("Size", ["shape"], ["rank"]),
        onnx.helper.make_node("Equal", ["rank", "one"], ["flat"]),
        onnx.helper.make_node("Not", ["fed"], ["denied"]),
    ]
    make = onnx.helper.make_tensor_value_info
    graph = onnx.helper.make_graph(
        [*first, *nodes, onnx.helper.make_node("Identity", [last], ["y"])],
        "g",
        [make("x", 1, ["n"]), make("fed", 9, [])],
        [make("y", 1, ["n"])],
        [onnx.numpy_helper.from_array(np.array(v), k) for k, v in (("yes", True), ("no", False), ("one", np.int64(1)))],
    )
    return onnx.helper.make_model(graph, ir_version=9, opset_imports=[onnx.helper.make_opsetid("", 19)])


@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(branching_models(), st.booleans())
def test_generated_branches_compute_the_same(proto: onnx.ModelProto, fed: bool) -> None:
    x = np.array([0.5, -1.5, 0.0, -0.0, np.inf], np.float32)
    done = check_pass(InlineIf(), proto, feeds(proto, x=x, fed=np.array(fed)), samples=1)
    remaining = {str(node.inputs[0].name) for _, node in done.model.walk() if node.op == "If"}
    assert remaining <= {"fed", "denied"}
