"""inline-functions: attributes, optional inputs, nesting, overloads, opsets; names are new, meanings are not."""

# ruff: noqa: E501 - the tables hold one model per line

from __future__ import annotations

from typing import TYPE_CHECKING

import onnx
import onnx.parser
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import helper

from graphopt.passes.simplify.inline_functions import InlineFunctions
from pass_oracle import check_pass, run_pass

if TYPE_CHECKING:
    from collections.abc import Callable

HEAD = '<ir_version: 10, opset_import: ["" : 19, "f" : 1]>\n'
BODY = '<opset_import: ["" : 19, "f" : 1], domain: "f">\n'

GONE: dict[str, tuple[str, list[str]]] = {
    "plain": (f"g (float[n] x) => (float[n] y) {{ y = f.act(x) }} {BODY} act(a) => (b) {{ h = Neg(a) b = Exp(h) }}", ["Neg", "Exp"]),
    "called twice": (f"g (float[n] x) => (float[n] y) {{ h = f.act(x) y = f.act(h) }} {BODY} act(a) => (b) {{ h = Neg(a) b = Exp(h) }}", ["Neg", "Exp", "Neg", "Exp"]),
    "attribute": (f"g (float[n] x) => (float[n] y) {{ y = f.act<slope = 0.25>(x) }} {BODY} act<slope>(a) => (b) {{ b = LeakyRelu<alpha: float = @slope>(a) }}", ["LeakyRelu"]),
    "attribute with a default": (f"g (float[n] x) => (float[n] y) {{ h = f.act(x) y = f.act<slope = 0.5>(h) }} {BODY} act<slope: float = 0.125>(a) => (b) {{ b = LeakyRelu<alpha: float = @slope>(a) }}", ["LeakyRelu", "LeakyRelu"]),
    "attribute that is not given": (f"g (float[n] x) => (float[n] y) {{ y = f.act(x) }} {BODY} act<slope>(a) => (b) {{ b = LeakyRelu<alpha: float = @slope>(a) }}", ["LeakyRelu"]),
    "attribute in a body": (f"g (float[n] x, bool p) => (float[n] y) {{ y = f.act<slope = 0.25>(x, p) }} {BODY} act<slope>(a, q) => (b) {{ b = If (q) <then_branch = t () => (c) {{ c = LeakyRelu<alpha: float = @slope>(a) }}, else_branch = e () => (d) {{ d = Neg(a) }}> }}", ["If", "LeakyRelu", "Neg"]),
    "attribute handed on": (f"g (float[n] x) => (float[n] y) {{ y = f.outer<s = 0.25>(x) }} {BODY} outer<s>(a) => (b) {{ h = f.act<slope: float = @s>(a) b = Neg(h) }} {BODY} act<slope>(a) => (b) {{ b = LeakyRelu<alpha: float = @slope>(a) }}", ["LeakyRelu", "Neg"]),
    "call in a body": (f"g (float[n] x, bool p) => (float[n] y) {{ y = If (p) <then_branch = t () => (float[n] c) {{ c = f.act(x) }}, else_branch = e () => (float[n] d) {{ d = Neg(x) }}> }} {BODY} act(a) => (b) {{ h = Neg(a) b = Exp(h) }}", ["If", "Neg", "Exp", "Neg"]),
    "omitted input": (f"g (float[n] x) => (float[n] y) {{ y = f.cap(x) }} {BODY} cap(a, low, high) => (b) {{ b = Clip(a, low, high) }}", ["Clip"]),
    "omitted input in between": (f"g (float[n] x, float m) => (float[n] y) {{ y = f.cap(x, , m) }} {BODY} cap(a, low, high) => (b) {{ b = Clip(a, low, high) }}", ["Clip"]),
    "output nobody reads": (f"g (float[n] x) => (float[n] y) {{ y, z = f.two(x) }} {BODY} two(a) => (b, c) {{ b = Neg(a) c = Exp(a) }}", ["Neg", "Exp"]),
    "constants": (f"g (float[n] x) => (float[n] y) {{ y = f.scale<by = 3.0>(x) }} {BODY} scale<by>(a) => (b) {{ w = Constant<value_float: float = @by>() b = Mul(a, w) }}", ["Constant", "Mul"]),
    "older opset, same operators": ('g (float[n] x) => (float[n] y) { y = f.act(x) } <opset_import: ["" : 14], domain: "f"> act(a) => (b) { h = Neg(a) b = Exp(h) }', ["Neg", "Exp"]),
}  # fmt: skip


@pytest.mark.parametrize("case", GONE)
def test_calls_are_inlined(case: str) -> None:
    source, ops = GONE[case]
    done = check_pass(InlineFunctions(), HEAD + source, interpreted=case != "attribute that is not given")
    assert sorted(done.ops) == sorted(ops)
    assert not done.model.functions
    names = [tensor.name for _, node in done.model.walk() for tensor in node.outputs if tensor.name]
    assert len(names) == len(set(names))


def test_an_operator_that_changed_is_a_reason() -> None:
    source = (
        HEAD
        + 'g (float[n, 2] x) => (float[n] y) { y = f.act(x) } <opset_import: ["" : 11], domain: "f"> act(a) => (b) { b = ReduceSum<axes = [1], keepdims = 0>(a) }'
    )
    done = run_pass(InlineFunctions(), source, verify="fast")
    assert done.skips == {
        "act -> y": "ReduceSum of ai.onnx 11, as the function has it, may differ from that of ai.onnx 19"
    }
    assert len(done.model.functions) == 1


def test_domains_of_the_function_are_imported() -> None:
    source = (
        HEAD
        + 'g (float[n] x) => (float[n] y) { y = f.act(x) } <opset_import: ["ai.onnx.ml" : 3], domain: "f"> act(a) => (b) { b = ai.onnx.ml.Binarizer(a) }'
    )
    done = check_pass(InlineFunctions(), source)
    assert done.model.opset_imports["ai.onnx.ml"] == 3


def test_functions_that_call_themselves_stay() -> None:
    source = (
        HEAD
        + f"g (float[n] x) => (float[n] y) {{ h = f.one(x) y = f.three(h) }} {BODY} one(a) => (b) {{ b = f.two(a) }} {BODY} two(a) => (b) {{ b = f.one(a) }} {BODY} three(a) => (b) {{ b = Neg(a) }}"
    )
    done = run_pass(InlineFunctions(), source, verify="off")
    assert done.skips == {"one -> h": "the function f::one calls itself"}
    assert [node.op for node in done.model.graph.nodes] == ["one", "Neg"]
    assert [function.name for function in done.model.functions] == ["one", "two"]


@pytest.mark.parametrize("keep", ["act", "f::act"])
def test_functions_that_are_kept(keep: str) -> None:
    done = check_pass(InlineFunctions(keep=(keep,)), HEAD + GONE["attribute handed on"][0])
    assert [node.op for node in done.model.graph.nodes] == ["act", "Neg"]
    assert [function.name for function in done.model.functions] == ["act"]


def test_growth_is_limited() -> None:
    done = check_pass(
        InlineFunctions(max_nodes=3), HEAD + GONE["called twice"][0]
    )  # two calls become three nodes, then four
    assert [node.op for node in done.model.graph.nodes] == ["Neg", "Exp", "act"]
    assert done.skips == {"act -> y": "the main graph would have more than 3 nodes"}


def test_inputs_that_a_function_gives_out() -> None:
    source = (
        HEAD
        + f"g (float[n] x) => (float[n] y, float[n] z) {{ y, z = f.two(x) }} {BODY} two(a) => (b, a) {{ b = Neg(a) }}"
    )
    assert run_pass(InlineFunctions(), source, verify="fast").ops == ["Neg", "Identity"]


def test_overloads() -> None:
    proto = onnx.parser.parse_model(
        HEAD
        + f"g (float[n] x) => (float[n] y) {{ h = f.act(x) y = f.act(h) }} {BODY} act(a) => (b) {{ b = Neg(a) }} {BODY} act(a) => (b) {{ b = Exp(a) }}"
    )
    proto.functions[1].overload = "second"
    proto.graph.node[1].overload = "second"
    done = run_pass(InlineFunctions(), proto, verify="fast")
    assert done.ops == ["Neg", "Exp"]


def test_names_and_documentation(golden: Callable[[str], None]) -> None:
    proto = onnx.parser.parse_model(HEAD + GONE["attribute handed on"][0])
    proto.graph.node[0].name = "call"
    proto.functions[1].node[0].doc_string = "why"
    done = check_pass(InlineFunctions(), proto)
    written = done.model.to_proto()
    assert [node.doc_string for node in written.graph.node] == ["why", ""]
    assert all(node.origin == ("call",) for node in done.model.graph.nodes)
    golden(done.text)


@st.composite
def calling_models(draw: st.DrawFn) -> onnx.ModelProto:
    """Functions of several levels with attributes, bodies and optional outputs, called from a graph and its bodies."""
    make, node = helper.make_tensor_value_info, helper.make_node
    opsets = [helper.make_opsetid("", 19), helper.make_opsetid("f", 1)]
    functions: list[onnx.FunctionProto] = []

    def step(source: str, result: str, depth: int) -> list[onnx.NodeProto]:
        kind = draw(st.integers(0, 3))
        if kind == 0 and depth:
            chosen = draw(st.integers(0, len(functions) - 1))
            attrs = {"slope": draw(st.sampled_from([0.25, 0.5]))} if draw(st.booleans()) else {}
            return [node(f"f{chosen}", [source, "p"], [result], domain="f", **attrs)]
        if kind == 1:
            bodies = {}
            for key, op in (("then_branch", "Neg"), ("else_branch", "Abs")):
                bodies[key] = helper.make_graph(
                    [node(op, [source], [f"{result}_{key}"])], key, [], [make(f"{result}_{key}", 1, None)]
                )
            return [node("If", ["p"], [result], **bodies)]
        return [node(draw(st.sampled_from(["Neg", "Exp", "Identity"])), [source], [result])]

    for level in range(draw(st.integers(1, 3))):
        nodes = []
        current = "a"
        for index in range(draw(st.integers(1, 3))):
            nodes += step(current, f"t{index}", level)
            current = f"t{index}"
        leaky = node("LeakyRelu", [current], ["b"])
        leaky.attribute.add(name="alpha", type=onnx.AttributeProto.FLOAT, ref_attr_name="slope")
        functions.append(
            helper.make_function(
                "f", f"f{level}", ["a", "p"], ["b"], [*nodes, leaky], opsets, ["slope"] if draw(st.booleans()) else []
            )
        )
        if not functions[-1].attribute:
            functions[-1].attribute_proto.append(helper.make_attribute("slope", 0.75))
    nodes, current = [], "x"
    for index in range(draw(st.integers(1, 4))):
        nodes += step(current, f"t{index}", 1)
        current = f"t{index}"
    graph = helper.make_graph(
        [*nodes, node("Identity", [current], ["y"])],
        "g",
        [make("x", 1, ["n"]), make("p", 9, [])],
        [make("y", 1, ["n"])],
    )
    return helper.make_model(graph, ir_version=10, opset_imports=opsets, functions=functions)


@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(calling_models())
def test_generated_calls_compute_the_same(proto: onnx.ModelProto) -> None:
    done = check_pass(InlineFunctions(), proto, interpreted=False)  # onnx.reference takes no omitted attribute
    assert not done.model.functions
