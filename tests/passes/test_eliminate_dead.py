"""eliminate-dead: nodes, initializers, functions and outputs that nothing depends on, in every scope."""

# ruff: noqa: E501 - the tables hold one model per line

from __future__ import annotations

from typing import TYPE_CHECKING

import onnx
import onnx.parser
from hypothesis import HealthCheck, given, settings
from onnx import TensorProto, helper

from graph_strategies import small_models
from graphopt.passes.simplify.eliminate_dead import EliminateDead
from pass_oracle import check_pass, run_pass

if TYPE_CHECKING:
    from collections.abc import Callable

HEAD = '<ir_version: 9, opset_import: ["" : 19]>\n'


def test_dead_chain_and_its_weights_go(golden: Callable[[str], None]) -> None:
    done = check_pass(
        EliminateDead(),
        HEAD
        + """g (float[2] x, float[2] unread) => (float[2] y)
    <float[2] a = {1, 2}, float[2] b = {3, 4}, float[2] c = {5, 6}>
    { d = Add(x, a) e = Neg(d) f = Mul(e, b) y = Mul(x, b) }""",
    )
    golden(done.text)
    assert done.ops == ["Mul"]
    assert [value.name for value in done.model.graph.inputs] == ["x", "unread"]
    assert [constant.name for constant in done.model.graph.initializers] == ["b"]


def test_bodies_are_cleaned_and_release_what_they_captured(golden: Callable[[str], None]) -> None:
    done = check_pass(
        EliminateDead(),
        HEAD
        + """g (bool c, float[2] x) => (float[2] y) <float[2] a = {1, 2}> {
    n = Neg(x) m = Abs(x)
    y = If (c) <then_branch = t () => (float[2] ty) { u = Add(n, a) v = Exp(u) ty = Add(x, m) },
                else_branch = f () => (float[2] fy) <float[2] b = {1, 1}> { w = Mul(x, b) fy = Identity(x) }> }""",
    )
    golden(done.text)
    assert done.ops == ["Abs", "If", "Add", "Identity"]
    assert sum(len(graph.initializers) for graph in done.model.graphs()) == 0


def test_node_whose_bodies_are_alive_only_for_themselves_goes_with_them() -> None:
    done = check_pass(
        EliminateDead(),
        HEAD
        + """g (bool c, float[2] x) => (float[2] y) { n = Neg(x)
    d = If (c) <then_branch = t () => (float[2] ty) { ty = Add(x, n) }, else_branch = f () => (float[2] fy) { fy = Exp(n) }>
    y = Abs(x) }""",
    )
    assert done.ops == ["Abs"]


def test_functions_nobody_calls_go_and_those_called_through_others_stay() -> None:
    done = check_pass(
        EliminateDead(),
        """<ir_version: 9, opset_import: ["" : 19, "f" : 1]>
    g (float[2] x) => (float[2] y) { y = f.outer(x) }
    <opset_import: ["" : 19, "f" : 1], domain: "f"> outer (x) => (y) { d = Neg(x) y = f.inner(x) }
    <opset_import: ["" : 19], domain: "f"> inner (x) => (y) { y = Abs(x) }
    <opset_import: ["" : 19, "f" : 1], domain: "f"> lost (x) => (y) { y = f.forgotten(x) }
    <opset_import: ["" : 19], domain: "f"> forgotten (x) => (y) { y = Exp(x) }""",
    )
    assert [function.name for function in done.model.functions] == ["outer", "inner"]
    assert done.ops == ["outer", "inner", "Abs"]


def test_node_of_an_unknown_domain_stays_only_on_request() -> None:
    text = '<ir_version: 9, opset_import: ["" : 19, "my" : 1]> g (float[2] x) => (float[2] y) { n = Neg(x) p = my.Print(n) y = Abs(x) }'  # fmt: skip
    assert run_pass(EliminateDead(), text, verify="fast").ops == ["Abs"]
    assert run_pass(EliminateDead(keep_unknown=True), text, verify="fast").ops == ["Neg", "Print", "Abs"]


def test_overridable_initializer_nobody_reads_stays_an_input() -> None:
    model = onnx.parser.parse_model(HEAD + "g (float[2] x) => (float[2] y) <float[2] w = {1, 2}> { y = Abs(x) }")
    model.graph.input.append(helper.make_tensor_value_info("w", TensorProto.FLOAT, [2]))
    done = check_pass(EliminateDead(), model)
    assert done.record.patches == 0
    assert [value.name for value in done.model.to_proto().graph.input] == ["x", "w"]


def test_before_ir_4_an_unread_weight_goes_with_its_input_entry() -> None:
    model = onnx.parser.parse_model("""<ir_version: 3, opset_import: ["" : 8]>
    g (float[2] x, float[2] w, float[2] v) => (float[2] y) <float[2] w = {1, 2}, float[2] v = {3, 4}> { y = Add(x, v) }""")
    done = check_pass(EliminateDead(), model)
    proto = done.model.to_proto()
    assert [value.name for value in proto.graph.input] == ["x", "v"]
    assert [tensor.name for tensor in proto.graph.initializer] == ["v"]
    onnx.checker.check_model(proto)


@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(small_models())
def test_generated_models_keep_their_outputs_and_have_no_dead_node_left(model: onnx.ModelProto) -> None:
    done = check_pass(EliminateDead(), model)
    outputs = {value.name for value in model.graph.output}
    proto = done.model.to_proto()
    read = {name for node in proto.graph.node for name in node.input} | outputs
    for node in proto.graph.node:
        for attribute in node.attribute:
            read |= {name for inner in attribute.g.node for name in inner.input}
            read |= {value.name for value in attribute.g.output}
    assert all(read & set(node.output) for node in proto.graph.node)
