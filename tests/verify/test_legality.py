"""The grammar of graphs: every rule is broken once, and real models break none."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import given, settings

from graph_strategies import small_models
from graphopt.errors import GraphError
from graphopt.graph import Constant, Node, Variable
from graphopt.verify.legality import Interface, check_legal, in_model
from pass_oracle import parse

if TYPE_CHECKING:
    from collections.abc import Callable

    import onnx

    from graphopt.graph import Graph, Model

HEAD = '<ir_version: 8, opset_import: ["" : 17]>\n'
TEXT = (
    HEAD
    + """g (bool c, float[4] x) => (float[4] y) <float[4] w = {1, 2, 3, 4}> {
    [first] a = Add(x, w)
    [second] b = Neg(a)
    [choice] y = If (c) <then_branch = t () => (float[4] p) { [inner] p = Mul(b, w) },
                         else_branch = e () => (float[4] q) { [other] q = Neg(a) }>
}"""
)


def node(model: Model, name: str) -> Node:
    return next(node for _, node in model.walk() if node.name == name)


def body(model: Model, key: str) -> Graph:
    found = node(model, "choice").attrs[key]
    assert found.parent_node is node(model, "choice")
    return found  # type: ignore[no-any-return]


def test_legal_model_passes_whole_and_touched() -> None:
    model = parse(TEXT)
    check_legal(model, interface=Interface.of(model))
    check_legal(model, [node for _, node in model.walk()], interface=Interface.of(model))


@settings(max_examples=40, deadline=None)
@given(small_models())
def test_random_models_are_legal(model: onnx.ModelProto) -> None:
    check_legal(parse(model))


def unknown_domain(model: Model) -> None:
    node(model, "first").domain = "far.away"


def no_operator(model: Model) -> None:
    node(model, "first").op = ""


def nothing_computes(model: Model) -> None:
    node(model, "second").inputs[0] = Variable("ghost", np.float32, [4])


def two_producers(model: Model) -> None:
    node(model, "second").outputs[0] = node(model, "first").outputs[0]


def produces_an_input(model: Model) -> None:
    node(model, "second").outputs[0] = model.graph.inputs[1]


def produces_a_constant(model: Model) -> None:
    node(model, "second").outputs[0] = next(iter(model.graph.initializers))


def one_sided_edge(model: Model) -> None:
    list.append(node(model, "first").outputs[0].outputs, node(model, "second"))


def producer_in_no_graph(model: Model) -> None:
    stray = Node("Relu", "stray", {}, [model.graph.inputs[1]], [Variable("s", np.float32, [4])])
    node(model, "second").inputs[0] = stray.outputs[0]


def reads_from_inside_a_body(model: Model) -> None:
    node(model, "second").inputs[0] = node(model, "inner").outputs[0]


def constant_of_a_body_outside(model: Model) -> None:
    constant = Constant("k", np.ones(4, np.float32))
    constant.home = body(model, "then_branch")
    constant.home.initializers[constant] = None
    node(model, "second").inputs[0] = constant


LOCAL: list[tuple[Callable[[Model], None], str, str]] = [
    (unknown_domain, "first", "domain 'far.away', which is not imported"),
    (no_operator, "first", "has no operator type"),
    (nothing_computes, "second", "'ghost', which nothing computes or feeds"),
    (two_producers, "second", "'a' is produced by node 'first' .*, node 'second'"),
    (produces_an_input, "second", "produces 'x', which is an input of a graph"),
    (produces_a_constant, "second", "produces the constant 'w'"),
    (one_sided_edge, "second", "uses tensor 'a' 1 times, but that tensor records 2 uses"),
    (producer_in_no_graph, "second", "node 'stray' .*, which is not in the model"),
    (reads_from_inside_a_body, "second", "'p' of a graph that does not surround it"),
    (constant_of_a_body_outside, "second", "'k' of a graph that does not surround it"),
]


@pytest.mark.parametrize(("damage", "at", "said"), LOCAL, ids=lambda value: getattr(value, "__name__", ""))
def test_local_damage_is_found_at_the_touched_node_and_in_the_whole(
    damage: Callable[[Model], None], at: str, said: str
) -> None:
    model = parse(TEXT)
    damage(model)
    with pytest.raises(GraphError, match=said):
        check_legal(model, [node(model, at)])
    with pytest.raises(GraphError):
        check_legal(model)


def unsorted(model: Model) -> None:
    first, second, *others = model.graph.nodes
    model.graph.nodes[:] = [second, first, *others]


def cyclic(model: Model) -> None:
    node(model, "first").inputs[1] = node(model, "second").outputs[0]


def one_name_twice(model: Model) -> None:
    node(model, "second").outputs[0].name = "a"


def inner_name_hides_a_capture(model: Model) -> None:
    inner = node(model, "inner")
    graph = body(model, "then_branch")
    twin = Node("Relu", "twin", {}, [node(model, "first").outputs[0]], [Variable("b", np.float32, [4])])
    graph.nodes[:] = [twin, inner]


def foreign_list(model: Model) -> None:
    node(model, "first").graph = body(model, "then_branch")


def output_from_outside(model: Model) -> None:
    body(model, "then_branch").outputs[0] = node(model, "second").outputs[0]


def body_of_another_node(model: Model) -> None:
    body(model, "then_branch").parent_node = node(model, "first")


GLOBAL: list[tuple[Callable[[Model], None], str]] = [
    (unsorted, "node 'second' .*: it uses tensor 'a' before it is computed"),
    (cyclic, "uses tensor 'b' before it is computed"),
    (one_name_twice, "graph 'g': two tensors are named 'a'"),
    (inner_name_hides_a_capture, "node 'inner' .*'b', but that name means another tensor there"),
    (foreign_list, "node list of a graph that is not its own"),
    (output_from_outside, "graph 't': its output 'b' is not computed in it"),
    (body_of_another_node, "attribute then_branch holds a graph of another node"),
]


@pytest.mark.parametrize(("damage", "said"), GLOBAL, ids=lambda value: getattr(value, "__name__", ""))
def test_global_damage_is_found_in_the_whole(damage: Callable[[Model], None], said: str) -> None:
    model = parse(TEXT)
    damage(model)
    with pytest.raises(GraphError, match=said):
        check_legal(model)


def test_users_of_an_erased_node_are_found_through_its_tensors() -> None:
    model = parse(TEXT)
    first = node(model, "first")
    (tensor,) = first.outputs
    model.graph.nodes.discard(first)
    with pytest.raises(GraphError, match=r"'a' of node 'first' .*, which is not in the model"):
        check_legal(model, [], tensors=[tensor])


def test_nodes_of_an_erased_body_are_not_in_the_model() -> None:
    model = parse(TEXT)
    inner, choice = node(model, "inner"), node(model, "choice")
    assert in_model(inner)
    model.graph.nodes.discard(choice)
    assert not in_model(inner)
    check_legal(model, [inner])


# ---------------------------------------------------------------------------------------------------- the interface


def drop_input(model: Model) -> None:
    del model.graph.inputs[0]


def swap_inputs(model: Model) -> None:
    model.graph.inputs[:] = list(reversed(model.graph.inputs))


def other_shape(model: Model) -> None:
    model.graph.inputs[1].shape = ["n"]


def other_type(model: Model) -> None:
    model.graph.outputs[0].dtype = np.dtype(np.float64)


def rename_output(model: Model) -> None:
    model.graph.outputs[0].name = "z"


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (drop_input, r"the public inputs changed: c: type 9 \[\] became x"),
        (swap_inputs, "the public inputs changed"),
        (other_shape, r"x: type 1 \[4\] became x: type 1 \['n'\]"),
        (other_type, "y: type 1 .* became y: type 11"),
        (rename_output, "y: .* became z"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_public_interface_never_changes(damage: Callable[[Model], None], said: str) -> None:
    model = parse(TEXT)
    interface = Interface.of(model)
    damage(model)
    with pytest.raises(GraphError, match=said):
        interface.check(model)


def test_overridable_initializer_is_part_of_the_interface() -> None:
    model = parse(HEAD + "g (float[4] x, float[4] w = {1, 2, 3, 4}) => (float[4] y) { y = Add(x, w) }")
    interface = Interface.of(model)
    assert interface.overridable == ("w",)
    model.graph.initializer_inputs.clear()
    with pytest.raises(GraphError, match=r"overridable initializers changed: \['w'\]"):
        interface.check(model)
