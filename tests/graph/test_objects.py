"""What an editing model promises: identity, exact use lists, and no silent loss."""

from __future__ import annotations

import copy

import networkx as nx
import numpy as np
import onnx
import onnx_graphsurgeon as gs
import pytest
from conftest import from_text

from graphopt.errors import GraphError
from graphopt.graph import Constant, Graph, Model, Node, Variable, read_model, uses


def node(model: Model, op: str) -> Node:
    return next(n for _, n in model.walk() if n.op == op)


def test_generators_are_read_before_they_are_linked() -> None:
    tensors = [Variable("a"), Variable("b")]
    made = Node("Add", inputs=(t for t in tensors), outputs=(Variable(n) for n in "c"))
    assert all(list(t.outputs) == [made] for t in tensors)
    made.inputs.extend(t for t in [Variable("d")])
    assert list(made.inputs[2].outputs) == [made]
    assert list(made.outputs[0].inputs) == [made]


def test_inputs_reversed_in_place() -> None:
    a, b = Variable("a"), Variable("b")
    made = Node("Sub", inputs=[a, b])
    made.inputs = reversed(made.inputs)  # type: ignore[assignment]
    assert list(made.inputs) == [b, a]
    assert list(a.outputs) == [made]
    made.inputs = made.inputs
    assert list(made.inputs) == [b, a]


def test_slices_are_assigned_and_deleted() -> None:
    a, b, c = (Variable(n) for n in "abc")
    made = Node("Concat", inputs=[a, b, a])
    made.inputs[1:] = [c]
    assert list(made.inputs) == [a, c]
    assert list(b.outputs) == []
    assert list(a.outputs) == [made]
    del made.inputs[:1]
    assert list(made.inputs) == [c]
    assert list(a.outputs) == []
    made.inputs += [a]  # type: ignore[misc]
    assert made.inputs.pop() is a
    assert list(a.outputs) == []
    made.inputs *= 2  # type: ignore[misc]
    assert list(c.outputs) == [made, made]
    made.inputs.clear()
    assert not c.outputs


def test_consumers_are_changed_while_iterating_over_them() -> None:
    hub, other = Variable("hub"), Variable("other")
    users = [Node("Relu", inputs=[hub]) for _ in range(20)]
    for user in hub.outputs:
        user.inputs[0] = other
    assert list(hub.outputs) == []
    assert list(other.outputs) == users


def test_tensor_side_edits_change_the_node() -> None:
    a, b = Variable("a"), Variable("b")
    made = Node("Add", inputs=[a, b])
    a.outputs.remove(made)
    assert list(made.inputs) == [b]
    a.outputs.append(made)
    assert list(made.inputs) == [b, a]
    a.outputs = []  # type: ignore[assignment]
    assert list(made.inputs) == [b]
    b.outputs.clear()
    assert list(made.inputs) == []


def test_nodes_and_tensors_are_hashed_and_compared_by_identity() -> None:
    one, two = Variable("same"), Variable("same")
    assert one != two
    assert len({one, two, Node("Relu"), Node("Relu")}) == 4
    network: nx.DiGraph[Node] = nx.DiGraph()
    network.add_edge(Node("A"), Node("A"))
    assert len(network) == 2


def test_twin_nodes_in_branches_are_told_apart() -> None:
    model = from_text(
        """<ir_version: 8, opset_import: ["": 17]>
        g (float[4] x, bool c) => (float[4] z) {
            z = If (c) <
                then_branch = t () => (float[4] a) { a = Relu(x) },
                else_branch = e () => (float[4] a) { a = Relu(x) }
            >
        }"""
    )
    first, second = (n for _, n in model.walk() if n.op == "Relu")
    second.inputs.clear()
    assert list(first.inputs) == [model.graph.inputs[0]]
    assert list(model.graph.inputs[0].outputs) == [first]


def test_use_lists_are_exact_after_random_edits() -> None:
    rng = np.random.default_rng(3)
    tensors = [Variable(f"t{i}") for i in range(6)]
    nodes = [Node("Op", inputs=[tensors[0]] * 3) for _ in range(30)]
    for _ in range(3000):
        chosen = nodes[rng.integers(len(nodes))]
        action = rng.integers(5)
        if action == 0 and len(chosen.inputs):
            del chosen.inputs[rng.integers(len(chosen.inputs))]
        elif action == 1:
            chosen.inputs.append(tensors[rng.integers(6)])
        elif action == 2 and len(chosen.inputs):
            chosen.inputs[rng.integers(len(chosen.inputs))] = tensors[rng.integers(6)]
        elif action == 3:
            chosen.inputs.insert(0, tensors[rng.integers(6)])
        else:
            tensor = tensors[rng.integers(6)]
            if len(tensor.outputs) > 10:
                tensor.outputs.pop()
    for tensor in tensors:
        edges = [n for n in nodes for t in n.inputs if t is tensor]
        assert sorted(map(id, tensor.outputs)) == sorted(map(id, edges))
        assert len(tensor.outputs) == len(edges)
        assert bool(tensor.outputs) == bool(edges)
        assert len(list(tensor.outputs)) == len(tuple(tensor.outputs)) == len(edges)
        assert len(uses(tensor)) == len(edges)


def test_two_producers_or_two_tensors_of_one_name_are_refused_when_read() -> None:
    for text in (
        "g (float[4] x) => (float[4] y) { y = Relu(x) y = Neg(x) }",
        "g (float[4] x) => (float[4] y) { x = Relu(x) y = Neg(x) }",
        "g (float[4] x, float[4] x) => (float[4] y) { y = Relu(x) }",
    ):
        with pytest.raises(GraphError, match=r"'[xy]'"):
            from_text(f'<ir_version: 8, opset_import: ["": 17]> {text}')


def test_opset_is_what_is_written(chain: Model) -> None:
    chain.graph.opset = 13
    assert chain.opset == 13
    chain.opset_imports["custom"] = 2
    written = {entry.domain: entry.version for entry in chain.to_proto().opset_import}
    assert written == {"": 13, "custom": 2}


def test_renaming_an_initializer_leaves_the_source_alone() -> None:
    proto = onnx.parser.parse_model(
        '<ir_version: 8, opset_import: ["": 17]> g (float[2] x) => (float[2] y) <float[2] w = {1, 2}> { y = Add(x, w) }'
    )
    source = proto.SerializeToString(deterministic=True)
    model = read_model(proto)
    model.graph.nodes[0].inputs[1].name = "renamed"
    model.graph.nodes[0].domain = "other"
    written = model.to_proto()
    assert written.graph.initializer[0].name == "renamed"
    assert list(written.graph.node[0].input) == ["x", "renamed"]
    gs.export_onnx(model.graph)
    assert proto.SerializeToString(deterministic=True) == source


def test_copy_is_independent_and_complete(chain: Model) -> None:
    chain.graph.producer_name = "p"
    before = chain.to_bytes()
    twin = chain.copy()
    assert twin.graph.producer_name == "p"
    assert twin.to_bytes() == before
    node(twin, "Add").op = "Mul"
    node(twin, "Neg").inputs[0] = twin.graph.inputs[0]
    twin.graph.inputs[0].shape = [1, 4]
    with twin.graph.nodes[1].inputs[1].edit() as values:
        values[:] = 0
    assert chain.to_bytes() == before
    assert copy.deepcopy(chain).to_bytes() == before


def test_copy_of_a_body_alone_captures_what_it_is_given(branches: Model) -> None:
    body = node(branches, "If").attrs["then_branch"]
    h = node(branches, "Relu").outputs[0]
    twin = body.copy({"h": h})
    assert twin.nodes[0].inputs[0] is h
    assert twin.nodes[0] in list(h.outputs)
    alone = body.copy()
    assert alone.nodes[0].inputs[0] is not h


def test_sequence_type_survives_a_copy() -> None:
    variable = Variable("s", type="sequence_type")
    assert variable.copy().type == "sequence_type"


def test_constant_becomes_a_variable_and_back(chain: Model) -> None:
    add = node(chain, "Add")
    constant = add.inputs[1]
    variable = constant.to_variable()
    assert isinstance(variable, Variable)
    assert variable is constant
    assert variable.dtype == np.float32
    assert list(variable.shape) == [4]
    chain.graph.initializers.pop(constant, None)
    chain.graph.inputs.append(variable)
    proto = chain.to_proto()
    onnx.checker.check_model(proto, full_check=True)
    assert [i.name for i in proto.graph.input] == ["x", "w"]
    variable.to_constant(np.zeros(4, np.float32))
    assert isinstance(variable, Constant)
    assert list(add.inputs)[1] is variable


def test_a_node_or_tensor_alone_is_not_deep_copied(chain: Model) -> None:
    for item in (chain.graph.nodes[0], chain.graph.inputs[0], chain.graph.nodes[1].inputs[1]):
        with pytest.raises(GraphError, match="cannot be copied alone"):
            copy.deepcopy(item)


def test_stale_values_do_not_survive_a_removed_use(chain: Model) -> None:
    """An initializer that lost its last reader is not written, one that never had any is."""
    node(chain, "Add").inputs[1] = Constant("new", np.ones(4, np.float32))
    assert [t.name for t in chain.to_proto().graph.initializer] == ["new"]


def test_annotations_and_value_info_follow_the_tensors() -> None:
    from crafted import crafted_models

    models = dict(crafted_models())
    model = read_model(models["quantization_annotation"])
    h = node(model, "Relu").outputs[0]
    h.name = "renamed"
    annotation = model.to_proto().graph.quantization_annotation[0]
    assert annotation.tensor_name == "renamed"
    node(model, "Add").inputs[0] = model.graph.inputs[0]
    model.graph.cleanup()
    graph = model.to_proto().graph
    assert len(graph.quantization_annotation) == 0
    assert len(graph.value_info) == 0


def test_sharding_and_training_information_is_renamed_or_dropped() -> None:
    from crafted import crafted_models

    models = dict(crafted_models())
    sharded = read_model(models["device_configuration"])
    node(sharded, "Add").inputs[1].name = "v"
    configurations = next(n for n in sharded.to_proto().graph.node if n.op_type == "Add").device_configurations
    assert configurations[0].sharding_spec[0].tensor_name == "v"
    trained = read_model(models["training_info"])
    assert len(trained.to_proto().training_info) == 1
    node(trained, "Add").inputs[1].name = "v"
    assert len(trained.to_proto().training_info) == 0


def test_attributes_without_a_value_in_onnx_are_refused(chain: Model) -> None:
    relu = node(chain, "Relu")
    for value, text in (
        ([], "kind"),
        ([1, "a"], "mixes"),
        (object(), "object"),
        (None, "None"),
        (2**70, "64 bits"),
        (np.eye(2), "ndarray"),
    ):
        relu.attrs["bad"] = value
        with pytest.raises(GraphError, match=text):
            chain.to_bytes()


def test_numpy_and_python_attribute_values_are_written(chain: Model) -> None:
    relu = node(chain, "Relu")
    relu.attrs.update(
        flag=True,
        i=np.int32(3),
        f=np.float32(0.5),
        ints=np.array([1, 2]),
        floats=(0.5, 1),
        s="x",
        b=b"\xff",
        t=np.float32,
    )
    written = {a.name: onnx.helper.get_attribute_value(a) for a in chain.to_proto().graph.node[0].attribute}
    assert written["flag"] == 1
    assert written["i"] == 3
    assert written["f"] == 0.5
    assert written["ints"] == [1, 2]
    assert written["floats"] == [0.5, 1]
    assert written["s"] == b"x"
    assert written["b"] == b"\xff"
    assert written["t"] == onnx.TensorProto.FLOAT


def test_graph_is_a_graph_of_graphsurgeon(chain: Model) -> None:
    graph = chain.graph
    assert isinstance(graph, gs.Graph)
    assert isinstance(graph, Graph)
    assert all(isinstance(n, gs.Node) for n in graph.nodes)
    assert node(chain, "Add").i().op == "Relu"
    assert node(chain, "Add").o().op == "Neg"
    assert set(graph.tensors()) == {"x", "h", "w", "s", "y"}
