"""Stable order, removal of what nothing needs, walking: over nested scopes, without recursion."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from conftest import from_text
from onnx import TensorProto, helper

from graphopt.errors import GraphError, ReadError
from graphopt.graph import (
    Graph,
    Model,
    Node,
    Variable,
    captures,
    eliminate_unreachable,
    is_sorted,
    read_model,
    sort_graph,
    walk_graphs,
)
from graphopt.graph.read import MAX_DEPTH


def long_chain(length: int) -> Graph:
    tensors = [Variable(f"t{i}", np.float32, [1]) for i in range(length + 1)]
    nodes = [Node("Relu", f"n{i}", {}, [tensors[i]], [tensors[i + 1]]) for i in range(length)]
    return Graph(nodes, [tensors[0]], [tensors[-1]], opset=17)


@pytest.mark.parametrize("length", [10, 5000])
def test_reversed_chain_is_sorted(length: int) -> None:
    graph = long_chain(length)
    want = list(graph.nodes)
    graph.nodes = want[::-1]  # type: ignore[assignment]
    assert not is_sorted(graph)
    sort_graph(graph)
    assert list(graph.nodes) == want


def test_valid_order_is_left_alone() -> None:
    graph = long_chain(4)
    side = long_chain(4)
    interleaved = [n for pair in zip(graph.nodes, side.nodes, strict=True) for n in pair]
    both = Graph(interleaved, [*graph.inputs, *side.inputs], [*graph.outputs, *side.outputs], opset=17)
    both.toposort()
    assert list(both.nodes) == interleaved


def test_only_what_is_out_of_place_moves() -> None:
    graph = long_chain(6)
    want = list(graph.nodes)
    graph.nodes[:] = [want[0], want[2], want[1], *want[3:]]
    sort_graph(graph)
    assert list(graph.nodes) == want


def test_diamond_is_no_cycle() -> None:
    model = from_text(
        """<ir_version: 8, opset_import: ["": 17]>
        g (float[4] x) => (float[4] y) { a = Relu(x) b = Neg(a) c = Abs(a) d = Add(b, c) y = Add(d, a) }"""
    )
    model.sort()
    assert [n.op for n in model.graph.nodes] == ["Relu", "Neg", "Abs", "Add", "Add"]


def test_cycle_names_its_nodes() -> None:
    a, b = Variable("a"), Variable("b")
    graph = Graph(
        [
            Node("Relu", "one", {}, [b], [a]),
            Node("Neg", "two", {}, [a], [b]),
            Node("Abs", "after", {}, [b], [Variable("c")]),
        ]
    )
    with pytest.raises(GraphError, match=r"'two', 'one'|'one', 'two'") as info:
        sort_graph(graph)
    assert "after" not in str(info.value)


def test_cycle_through_a_body_is_found_when_read() -> None:
    body = helper.make_graph(
        [helper.make_node("Relu", ["late"], ["b"])], "b", [], [helper.make_tensor_value_info("b", 1, None)]
    )
    nodes = [
        helper.make_node("If", ["c"], ["z"], name="branch", then_branch=body, else_branch=body),
        helper.make_node("Neg", ["z"], ["late"], name="neg"),
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("c", TensorProto.BOOL, [])],
        [helper.make_tensor_value_info("late", 1, None)],
    )
    with pytest.raises(GraphError, match="branch"):
        read_model(helper.make_model(graph))


def test_captures_order_nodes_and_are_listed(branches: Model) -> None:
    graph = branches.graph
    relu, holder, neg = graph.nodes
    then = holder.attrs["then_branch"]
    assert [t.name for t in captures(then)] == ["h", "w"]
    graph.nodes[:] = [neg, holder, relu]
    branches.sort()
    assert list(graph.nodes) == [relu, holder, neg]


def test_unsorted_model_is_read_kept_and_sorted() -> None:
    model = from_text(
        """<ir_version: 8, opset_import: ["": 17]>
        g (float[4] x) => (float[4] y) { y = Neg(a) a = Relu(x) }"""
    )
    assert [n.op for n in model.graph.nodes] == ["Neg", "Relu"]
    model.sort()
    assert [n.op for n in model.graph.nodes] == ["Relu", "Neg"]
    onnx.checker.check_model(model.to_proto(), full_check=True)


def test_walk_orders(branches: Model) -> None:
    assert [n.op for _, n in branches.walk()] == ["Relu", "If", "Add", "Sub", "Neg"]
    assert [n.op for _, n in branches.walk("post")] == ["Relu", "Add", "Sub", "If", "Neg"]
    for graph, node in branches.walk("post"):
        assert node in graph.nodes
    assert len(list(branches.graphs())) == 3


def test_walk_skips_what_is_erased_meanwhile(chain: Model) -> None:
    seen = []
    for graph, node in chain.walk():
        seen.append(node.op)
        if node.op == "Relu":
            graph.nodes.discard(graph.nodes[1])
    assert seen == ["Relu", "Neg"]


def test_unreachable_nodes_and_initializers_go(branches: Model) -> None:
    graph = branches.graph
    neg = graph.nodes[2]
    neg.inputs[0] = graph.inputs[0]
    assert eliminate_unreachable(graph) == 2
    assert [n.op for n in graph.nodes] == ["Neg"]
    assert not graph.initializers
    assert [t.name for t in graph.inputs] == ["x", "c"]
    graph.cleanup(remove_unused_graph_inputs=True)
    assert [t.name for t in graph.inputs] == ["x"]


def test_a_body_keeps_inputs_that_it_does_not_read() -> None:
    model = from_text(
        """<ir_version: 8, opset_import: ["": 17]>
        g (float[4] x, float[4] unread, int64 n, bool c) => (float[4] z) {
            z = Loop (n, c, x) <body = b (int64 i, bool go, float[4] s) => (bool on, float[4] t) {
                on = Identity(go)
                t = Neg(s)
            }>
        }"""
    )
    model.graph.cleanup(remove_unused_graph_inputs=True)
    assert [t.name for t in model.graph.inputs] == ["x", "n", "c"]
    assert [t.name for t in model.graph.nodes[0].attrs["body"].inputs] == ["i", "go", "s"]


def test_unreachable_nodes_inside_a_body_release_what_they_capture() -> None:
    model = from_text(
        """<ir_version: 8, opset_import: ["": 17]>
        g (float[4] x, bool c) => (float[4] z) {
            only = Neg(x)
            z = If (c) <
                then_branch = t () => (float[4] a) { unused = Abs(only) a = Relu(x) },
                else_branch = e () => (float[4] b) { b = Relu(x) }
            >
        }"""
    )
    assert eliminate_unreachable(model.graph) == 2
    assert [n.op for _, n in model.walk()] == ["If", "Relu", "Relu"]


def test_overridable_initializer_is_kept() -> None:
    model = from_text(
        """<ir_version: 8, opset_import: ["": 17]>
        g (float[4] x, float[4] w = {1, 2, 3, 4}) => (float[4] y) { y = Relu(x) }"""
    )
    before = model.to_bytes()
    eliminate_unreachable(model.graph)
    assert model.to_bytes() == before


def nested(depth: int) -> Graph:
    """Return a graph with ``depth`` bodies inside each other, made without protobuf."""
    flag = Variable("flag", np.bool_, [])
    inner: Graph | None = None
    for level in range(depth, -1, -1):
        out = Variable(f"o{level}", np.float32, [1])
        attrs = {} if inner is None else {"then_branch": inner}
        node = Node("If" if inner is not None else "RandomNormal", f"n{level}", attrs, [flag], [out])
        graph = Graph([node], [flag] if level == 0 else [], [out], opset=17)
        if inner is not None:
            inner.parent, inner.parent_node = graph, node
        inner = graph
    assert inner is not None
    return inner


def test_nesting_deeper_than_the_stack_is_walked_sorted_copied_and_refused_when_written() -> None:
    model = Model(nested(3000))
    assert sum(1 for _ in model.walk()) == 3001
    assert sum(1 for _ in model.walk("post")) == 3001
    model.graph.toposort()
    assert sum(1 for _ in walk_graphs([model.copy().graph])) == 3001
    with pytest.raises(GraphError, match="levels deep"):
        model.to_bytes()


def test_nesting_that_protobuf_can_read_back_round_trips() -> None:
    data = Model(nested(MAX_DEPTH - 1)).to_bytes()
    assert read_model(data).to_bytes() == data


def test_message_nested_too_deeply_is_refused() -> None:
    proto = helper.make_model(helper.make_graph([], "g", [], []))
    graph = proto.graph
    for _ in range(60):
        node = graph.node.add(op_type="If")
        attribute = node.attribute.add(name="then_branch", type=onnx.AttributeProto.GRAPH)
        attribute.g.name = "b"
        graph = attribute.g
    with pytest.raises(ReadError, match="nested"):
        read_model(proto)
    with pytest.raises(ReadError):
        read_model(proto.SerializeToString())


def test_labels_say_which_node_is_first() -> None:
    graph = long_chain(5)
    nodes = graph.nodes
    anchor = nodes[2]
    for i in range(3000):
        nodes.insert_before(anchor, Node("New", f"new{i}"))
    listed = list(nodes)
    assert len(nodes) == len(listed) == 3005
    labels = [nodes.label(n) for n in listed]
    assert labels == sorted(labels)
    assert len(set(labels)) == len(labels)
    assert [n.name for n in listed[:4]] == ["n0", "n1", "new0", "new1"]
    assert listed[-3:] == list(long_order(graph))


def long_order(graph: Graph) -> list[Node]:
    return [n for n in graph.nodes if n.op == "Relu"][-3:]


def test_node_list_agrees_with_a_plain_list_after_random_edits() -> None:
    rng = np.random.default_rng(5)
    graph = Graph(opset=17)
    plain: list[Node] = []
    for step in range(2000):
        action = rng.integers(8)
        fresh = Node("Op", str(step))
        at = int(rng.integers(len(plain) + 1))
        if action == 0:
            graph.nodes.append(fresh)
            plain.append(fresh)
        elif action == 1:
            graph.nodes.insert(at, fresh)
            plain.insert(at, fresh)
        elif action == 2:
            graph.nodes.insert_last(fresh)
            plain.append(fresh)
        elif plain:
            anchor = plain[at % len(plain)]
            where = plain.index(anchor)
            if action == 3:
                graph.nodes.insert_before(anchor, fresh)
                plain.insert(where, fresh)
            elif action == 4:
                graph.nodes.insert_after(anchor, fresh)
                plain.insert(where + 1, fresh)
            elif action == 5 and len(plain) > 20:
                graph.nodes.discard(anchor)
                plain.remove(anchor)
                assert anchor.graph is None
            elif action == 6 and len(plain) > 20:
                graph.nodes.remove(anchor)
                plain.remove(anchor)
            elif action == 7 and step % 10 == 0:
                assert list(graph.nodes) == plain
        assert len(graph.nodes) == len(plain)
    assert list(graph.nodes) == plain
    assert all(n.graph is graph for n in plain)
