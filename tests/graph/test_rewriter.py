"""Edits through the rewriter: legal order, public names, provenance, exact counters."""

from __future__ import annotations

import numpy as np
import onnx
import onnx.reference
import pytest
from conftest import from_text
from onnx import TensorProto

from graphopt.errors import GraphError
from graphopt.graph import (
    Constant,
    Graph,
    Model,
    Node,
    Rewriter,
    Tensor,
    Variable,
    constant_value,
    is_sorted,
    producer,
    read_model,
    uses,
)
from graphopt.graph.edges import ThinnedUses


def node(model: Model, op: str) -> Node:
    return next(n for _, n in model.walk() if n.op == op)


def made_by(tensor: Tensor) -> Node:
    found = producer(tensor)
    assert found is not None
    return found


def value(tensor: Tensor) -> np.ndarray:
    found = constant_value(tensor)
    assert found is not None
    return found


def run(model: Model, **feeds: np.ndarray) -> list[np.ndarray]:
    proto = model.to_proto()
    onnx.checker.check_model(proto, full_check=True)
    return [np.asarray(item) for item in onnx.reference.ReferenceEvaluator(proto).run(None, feeds)]


def test_new_node_is_placed_named_and_typed(chain: Model) -> None:
    add = node(chain, "Add")
    with Rewriter(chain) as rw:
        two = rw.constant(np.float32(2), near=add)
        scaled = rw.op("Mul", [add.inputs[0], two], near=add, like=add.inputs[0], origin=[node(chain, "Relu")])
        rw.set_input(add, 0, scaled)
    assert [n.op for n in chain.graph.nodes] == ["Relu", "Mul", "Add", "Neg"]
    assert (scaled.onnx_dtype, scaled.shape) == (
        scaled.inputs[0].inputs[0].onnx_dtype,
        scaled.inputs[0].inputs[0].shape,
    )
    assert made_by(scaled).name == "Add__Mul"
    x = np.ones((2, 4), np.float32)
    assert run(chain, x=x)[0].tolist() == (-(x * 2 + [1, 2, 3, 4])).tolist()


def test_new_node_goes_after_its_latest_input(chain: Model) -> None:
    relu, neg = node(chain, "Relu"), node(chain, "Neg")
    with Rewriter(chain) as rw:
        late = rw.op("Abs", [neg.inputs[0]], near=relu)
    assert is_sorted(chain.graph)
    assert [n.op for n in chain.graph.nodes] == ["Relu", "Add", "Abs", "Neg"]
    assert late.name


def test_replacing_by_something_made_later_sorts(chain: Model) -> None:
    model = from_text(
        """<ir_version: 8, opset_import: ["": 17]>
        g (float[4] x) => (float[4] y, float[4] z) { a = Relu(x) y = Neg(a) b = Abs(x) z = Add(b, b) }"""
    )
    with Rewriter(model) as rw:
        rw.replace_uses(node(model, "Relu").outputs[0], node(model, "Abs").outputs[0])
    assert is_sorted(model.graph)
    assert [n.op for n in model.graph.nodes] == ["Relu", "Abs", "Neg", "Add"]


def test_edit_inside_a_body_orders_the_node_around_it(branches: Model) -> None:
    neg = node(branches, "Neg")
    relu = node(branches, "Relu")
    holder = node(branches, "If")
    inner = node(branches, "Add")
    with Rewriter(branches) as rw:
        fresh = rw.op("Abs", [relu.outputs[0]], near=neg, like=relu.outputs[0])
        rw.set_input(inner, 0, fresh)
    assert is_sorted(branches.graph, nested=True)
    assert branches.graph.nodes.index(holder) > branches.graph.nodes.index(made_by(fresh))


def test_cycle_is_refused(chain: Model) -> None:
    relu, neg = node(chain, "Relu"), node(chain, "Neg")

    def close_the_loop() -> None:
        with Rewriter(chain) as rw:
            rw.set_input(relu, 0, neg.outputs[0])

    with pytest.raises(GraphError, match="cycle"):
        close_the_loop()


def test_erased_node_must_not_be_used(chain: Model) -> None:
    def erase() -> None:
        with Rewriter(chain) as rw:
            rw.erase(node(chain, "Add"))

    with pytest.raises(GraphError, match=r"erased.*'s'"):
        erase()


def test_erase_and_replace_in_any_order(chain: Model) -> None:
    add = node(chain, "Add")
    with Rewriter(chain) as rw:
        s, h = add.outputs[0], add.inputs[0]
        rw.erase(add)
        rw.erase(add)
        rw.replace_uses(s, h)
    assert [n.op for n in chain.graph.nodes] == ["Relu", "Neg"]
    assert not chain.graph.initializers
    assert add not in rw.touched
    assert node(chain, "Neg") in rw.touched


def test_editing_what_is_gone_is_refused(chain: Model) -> None:
    add, relu = node(chain, "Add"), node(chain, "Relu")
    with Rewriter(chain) as rw:
        rw.replace_uses(add.outputs[0], relu.outputs[0])
        rw.erase(add)
    with pytest.raises(GraphError, match="in no graph"):
        Rewriter(chain).set_attr(add, "a", 1)


def test_output_keeps_name_and_type_when_its_producer_changes(chain: Model) -> None:
    neg = node(chain, "Neg")
    with Rewriter(chain) as rw:
        new = rw.op("Abs", [neg.inputs[0]], near=neg)
        rw.replace_tensor(neg.outputs[0], new)
        rw.erase(neg)
    proto = chain.to_proto()
    assert proto.graph.output[0] == onnx.helper.make_tensor_value_info("y", 1, ["N", 4])
    assert proto.graph.node[-1].output[0] == "y"
    onnx.checker.check_model(proto, full_check=True)


def test_output_that_becomes_an_input_or_constant_gets_an_identity() -> None:
    model = from_text(
        """<ir_version: 8, opset_import: ["": 17]>
        g (float[4] x) => (float[4] y, float[4] z) <float[4] w = {1, 2, 3, 4}> { y = Relu(x) z = Add(w, w) }"""
    )
    relu, add = model.graph.nodes
    with Rewriter(model) as rw:
        rw.replace_tensor(relu.outputs[0], model.graph.inputs[0])
        rw.erase(relu)
        rw.replace_tensor(add.outputs[0], add.inputs[0])
        rw.erase(add)
    assert [n.op for n in model.graph.nodes] == ["Identity", "Identity"]
    x = np.array([-1, 0, 1, 2], np.float32)
    got = run(model, x=x)
    assert got[0].tolist() == x.tolist()
    assert got[1].tolist() == [1, 2, 3, 4]


def test_two_outputs_of_one_tensor_after_a_merge() -> None:
    model = from_text(
        """<ir_version: 8, opset_import: ["": 17]>
        g (float[4] x) => (float[4] y, float[4] z) { y = Relu(x) z = Relu(x) }"""
    )
    first, second = model.graph.nodes
    with Rewriter(model) as rw:
        rw.replace_tensor(second.outputs[0], first.outputs[0])
        rw.erase(second)
    assert [t.name for t in model.graph.outputs] == ["y", "z"]
    x = np.array([-1, 0, 1, 2], np.float32)
    assert [r.tolist() for r in run(model, x=x)] == [[0, 0, 1, 2]] * 2


def test_output_of_another_type_or_shape_is_refused(chain: Model) -> None:
    neg = node(chain, "Neg")
    rw = Rewriter(chain)
    cast = rw.op("Cast", [neg.inputs[0]], near=neg, like=Variable("like", np.float16, ["N", 4]))
    with pytest.raises(GraphError, match="element type"):
        rw.replace_tensor(neg.outputs[0], cast)
    other = rw.op("Reshape", [neg.inputs[0]], near=neg, like=Variable("like", np.float32, ["N", 5]))
    with pytest.raises(GraphError, match="shape"):
        rw.replace_tensor(neg.outputs[0], other)
    with pytest.raises(GraphError, match="public"):
        rw.set_type(neg.outputs[0], np.float32, ["N", 5])


def test_uses_of_all_scopes_are_replaced(branches: Model) -> None:
    relu, neg = node(branches, "Relu"), node(branches, "Neg")
    h = relu.outputs[0]
    assert [(u.node.op, u.index) for u in uses(h)] == [("Add", 0), ("Sub", 0)]
    with Rewriter(branches) as rw:
        new = rw.op("Abs", [h], near=node(branches, "If"), like=h)
        rw.replace_uses(h, new, where=lambda use: use.node.op != "Abs")
    assert [u.node.op for u in uses(h)] == ["Abs"]
    assert [u.node.op for u in uses(new)] == ["Add", "Sub"]
    assert neg.inputs[0].inputs[0].op == "If"
    onnx.checker.check_model(branches.to_proto(), full_check=True)


def test_nodes_that_compute_the_replacement_keep_reading_the_original(chain: Model) -> None:
    neg = node(chain, "Neg")
    y = neg.outputs[0]
    with Rewriter(chain) as rw:
        shrunk = rw.op("Abs", [y], near=neg, like=y)
        wrapped = rw.op("Sqrt", [shrunk], near=neg, like=y)
        rw.replace_tensor(y, wrapped)
    assert [n.op for n in chain.graph.nodes] == ["Relu", "Add", "Neg", "Abs", "Sqrt"]
    assert [t.name for t in chain.graph.outputs] == ["y"]
    assert list(chain.graph.outputs) == [wrapped]
    onnx.checker.check_model(chain.to_proto(), full_check=True)


def test_a_use_is_rerouted_alone(chain: Model) -> None:
    add, relu = node(chain, "Add"), node(chain, "Relu")
    with Rewriter(chain) as rw:
        new = rw.op("Abs", [relu.outputs[0]], near=add)
        rw.insert_on_edge(uses(relu.outputs[0])[0], new)
    assert add.inputs[0] is new


def test_optional_inputs_are_set_and_omitted(chain: Model) -> None:
    relu = node(chain, "Relu")
    with Rewriter(chain) as rw:
        low = rw.constant(np.float32(0), near=relu)
        rw.set_op(relu, "Clip")
        rw.set_input(relu, 2, low)
    assert [t.name for t in relu.inputs] == ["x", "", low.name]
    onnx.checker.check_model(chain.to_proto(), full_check=True)
    with Rewriter(chain) as rw:
        rw.set_input(relu, 2, None)
    assert [t.name for t in relu.inputs] == ["x"]
    assert low not in chain.graph.initializers


def test_loop_keeps_its_two_places(chain: Model) -> None:
    """Its schema wants both inputs to be there, even where neither has a name."""
    relu = node(chain, "Relu")
    with Rewriter(chain) as rw:
        count = rw.constant(np.int64(3), near=relu)
        rw.set_op(relu, "Loop")
        rw.set_input(relu, 1, relu.inputs[0])
        rw.set_input(relu, 0, count)
        rw.set_input(relu, 1, None)
    assert [t.name for t in relu.inputs] == [count.name, ""]


def test_provenance_and_metadata_are_merged(chain: Model) -> None:
    proto = chain.to_proto()
    for index, name in enumerate(("first", "second")):
        proto.graph.node[index].name = name
        proto.graph.node[index].metadata_props.add(key="namespace", value=f"model/{name}")
        proto.graph.node[index].metadata_props.add(key="same", value="x")
    model = read_model(proto)
    relu, add = model.graph.nodes[0], model.graph.nodes[1]
    with Rewriter(model) as rw:
        fused = rw.op(
            "Fused", [*relu.inputs, add.inputs[1]], domain="my", near=add, origin=[relu, add], like=add.outputs[0]
        )
        rw.replace_tensor(add.outputs[0], fused)
        rw.erase([relu, add])
    made = producer(fused)
    assert made is not None
    assert made.origin == ("first", "second")
    written = next(n for n in model.to_proto().graph.node if n.op_type == "Fused")
    metadata = {e.key: e.value for e in written.metadata_props}
    assert metadata == {"namespace": "model/first; model/second", "same": "x"}
    assert model.opset_imports["my"] == 1
    with Rewriter(model) as rw:
        again = rw.op("Fused2", [fused], domain="my", near=node(model, "Neg"), origin=[made])
    assert made_by(again).origin == ("first", "second")


def test_domain_of_a_new_node_is_imported() -> None:
    model = from_text(
        """<ir_version: 8, opset_import: ["ai.onnx.ml": 2]>
        g (float[2] x) => (float[2] y) { y = ai.onnx.ml.Binarizer(x) }"""
    )
    first = model.graph.nodes[0]
    with Rewriter(model) as rw:
        rw.replace_tensor(first.outputs[0], rw.op("Abs", [first.outputs[0]], near=first, like=first.outputs[0]))
    assert model.opset == 18
    onnx.checker.check_model(model.to_proto(), full_check=True)


def test_versions_count_what_changed(chain: Model) -> None:
    v = chain.versions
    with Rewriter(chain):
        pass
    assert (v.structure, v.types, v.weights) == (0, 0, 0)
    constant = node(chain, "Add").inputs[1]
    with Rewriter(chain) as rw:
        rw.set_weight(constant, np.zeros(4, np.float32))
    assert (v.structure, v.types, v.weights) == (0, 0, 1)
    assert list(rw.touched) == [node(chain, "Add")]
    with Rewriter(chain) as rw:
        rw.set_weight(constant, np.zeros((1, 4), np.float32))
        rw.set_type(node(chain, "Relu").outputs[0], np.float32, [None, 4])
    assert (v.structure, v.types, v.weights) == (0, 1, 2)
    with Rewriter(chain) as rw:
        rw.set_attr(node(chain, "Relu"), "note", 1)
    assert (v.structure, v.types, v.weights) == (1, 1, 2)
    rw.set_attr(node(chain, "Relu"), "note", None)
    assert "note" not in node(chain, "Relu").attrs


def test_setting_the_value_info_of_a_weight_does_not_go_stale(chain: Model) -> None:
    proto = chain.to_proto()
    proto.graph.value_info.append(onnx.helper.make_tensor_value_info("w", TensorProto.FLOAT, [4]))
    model = read_model(proto)
    with Rewriter(model) as rw:
        rw.set_weight(node(model, "Add").inputs[1], np.zeros((1, 4), np.float32))
    info = next(i for i in model.to_proto().graph.value_info if i.name == "w")
    assert [d.dim_value for d in info.type.tensor_type.shape.dim] == [1, 4]


def test_names_are_new_in_every_scope_and_counted() -> None:
    model = from_text(
        """<ir_version: 8, opset_import: ["": 17]>
        g (float[4] x, bool c) => (float[4] z) {
            z = If (c) <
                then_branch = t () => (float[4] x__dq) { x__dq = Relu(x) },
                else_branch = e () => (float[4] b) { b = Relu(x) }
            >
        }"""
    )
    assert model.names.fresh("x", "dq") == "x__dq_1"
    assert model.names.fresh("x", "dq") == "x__dq_2"
    assert model.names.fresh("new") == "new"
    assert model.names.fresh("new") == "new_1"
    assert model.names.fresh("") == "unnamed"
    assert model.names.is_taken("b")
    assert not model.names.reserve("b")


def test_fresh_names_cost_the_same_each(chain: Model) -> None:
    names = {chain.names.fresh("h", "dq") for _ in range(20_000)}
    assert len(names) == 20_000


def test_constant_in_a_function_is_a_node() -> None:
    model = from_text(
        """<ir_version: 10, opset_import: ["": 17, "local": 1]>
        g (float[4] x) => (float[4] y) { y = local.Twice(x) }
        <opset_import: ["": 17], domain: "local">
        Twice (a) => (b) { b = Add(a, a) }"""
    )
    add = model.functions[0].graph.nodes[0]
    with Rewriter(model) as rw:
        two = rw.constant(np.float32(2), near=add, name="two")
        rw.set_input(add, 1, two)
    assert value(two).tolist() == 2
    x = np.ones(4, np.float32)
    assert run(model, x=x)[0].tolist() == [3, 3, 3, 3]


def test_graphsurgeon_constants_in_a_function_become_nodes() -> None:
    model = from_text(
        """<ir_version: 10, opset_import: ["": 17, "local": 1]>
        g (float[4] x) => (float[4] y) { y = local.Twice(x) }
        <opset_import: ["": 17], domain: "local">
        Twice (a) => (b) { b = Add(a, a) }"""
    )
    model.functions[0].nodes[0].inputs[1] = Constant("three", np.float32(3))
    assert run(model, x=np.ones(4, np.float32))[0].tolist() == [4, 4, 4, 4]


def test_new_initializer_before_ir_4_is_an_input_too() -> None:
    proto = from_text(
        """<ir_version: 3, opset_import: ["": 8]>
        g (float[4] x, float[4] w = {1, 2, 3, 4}) => (float[4] y) { y = Add(x, w) }"""
    ).to_proto()
    model = read_model(proto)
    add = model.graph.nodes[0]
    assert value(add.inputs[1]).tolist() == [1, 2, 3, 4]
    with Rewriter(model) as rw:
        rw.set_input(add, 1, rw.constant(np.full(4, 2, np.float32), near=add, name="w2"))
    written = model.to_proto()
    onnx.checker.check_model(written, full_check=True)
    assert "w2" in [i.name for i in written.graph.input]


def test_constant_value_respects_what_can_be_fed() -> None:
    model = from_text(
        """<ir_version: 8, opset_import: ["": 17]>
        g (float[4] x, float[4] w = {1, 2, 3, 4}) => (float[4] y) <float[4] v = {1, 2, 3, 4}> {
            a = Add(x, w)
            k = Constant <value_ints: ints = [1, 2]> ()
            y = Add(a, v)
        }"""
    )
    w, v = model.graph.nodes[0].inputs[1], model.graph.nodes[2].inputs[1]
    assert isinstance(w, Constant)
    assert model.graph.is_overridable(w)
    assert constant_value(w) is None
    assert value(v).tolist() == [1, 2, 3, 4]
    k = value(model.graph.nodes[1].outputs[0])
    assert k.dtype == np.int64
    assert k.tolist() == [1, 2]
    assert constant_value(model.graph.inputs[0]) is None


@pytest.mark.parametrize(
    ("key", "value", "dtype", "shape"),
    [
        ("value_float", 2.5, np.float32, ()),
        ("value_floats", [2.5, 1.0], np.float32, (2,)),
        ("value_int", 7, np.int64, ()),
        ("value_string", "s", object, ()),
        ("value_strings", ["s", "t"], object, (2,)),
    ],
)
def test_constant_nodes_have_exact_types(key: str, value: object, dtype: object, shape: tuple[int, ...]) -> None:
    made = Node("Constant", "", {key: value}, [], [Variable("k")])
    Graph([made], outputs=list(made.outputs))
    got = constant_value(made.outputs[0])
    assert got is not None
    assert got.dtype == dtype
    assert got.shape == shape
    assert not got.flags.writeable


def test_node_with_a_body_is_created_and_erased(branches: Model) -> None:
    holder = node(branches, "If")
    relu = node(branches, "Relu")
    body = holder.attrs["then_branch"]
    with Rewriter(branches) as rw:
        attrs = {"then_branch": body.copy({"h": relu.outputs[0]}), "else_branch": body.copy({"h": relu.outputs[0]})}
        z = rw.op("If", [holder.inputs[0]], attrs=attrs, near=holder, like=holder.outputs[0])
        rw.replace_tensor(holder.outputs[0], z)
        rw.erase(holder)
    assert [n.op for n in relu.outputs[0].outputs if hasattr(n, "op")] == ["Add", "Add"]
    assert body.outputs == []
    with Rewriter(branches) as rw:
        neg = node(branches, "Neg")
        rw.set_input(neg, 0, relu.outputs[0])
        rw.erase(made_by(z))
    assert [n.op for _, n in branches.walk()] == ["Relu", "Neg"]
    assert list(relu.outputs[0].outputs) == [node(branches, "Neg")]


@pytest.mark.parametrize("order", ["fifo", "lifo", "random"])
def test_hub_is_repointed_in_any_order(order: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Work per edge does not grow with the number of edges: counted in visits of the use list, not in seconds."""
    hub, other = Variable("hub"), Variable("other")
    users = [Node("Relu", f"n{i}", {}, [hub], [Variable(f"o{i}")]) for i in range(4000)]
    positions = list(range(len(users)))
    if order == "lifo":
        positions.reverse()
    if order == "random":
        np.random.default_rng(1).shuffle(positions)
    settled = []
    original = ThinnedUses._settle

    def counting(self: ThinnedUses) -> None:
        settled.append(list.__len__(self))
        original(self)

    monkeypatch.setattr(ThinnedUses, "_settle", counting)
    for position in positions:
        users[position].inputs[0] = other
    assert 0 < sum(settled) < 4 * len(users)
    assert not hub.outputs
    assert other.outputs == [users[position] for position in positions]
    assert not hub.outputs
    assert list(other.outputs) == [users[p] for p in positions]
