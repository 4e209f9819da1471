"""Code written for graphsurgeon works on our graphs, and its graphs become ours."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import onnx
import onnx.reference
import onnx_graphsurgeon as gs
import pytest
from conftest import from_text
from crafted import crafted_models
from onnx import TensorProto, helper, numpy_helper

from graphopt.errors import GraphError
from graphopt.graph import Constant, Function, Graph, Model, Node, Variable, from_gs, gs_pass, read_model

if TYPE_CHECKING:
    from pathlib import Path

TEXT = """<ir_version: 8, opset_import: ["": 17]>
g (float[N, 4] x) => (float[N, 4] y) <float[4] w = {1, 2, 3, 4}> {
    h = Relu(x)
    s = Add(h, w)
    y = Neg(s)
}"""


def evaluate(model: Model | onnx.ModelProto) -> np.ndarray:
    proto = model.to_proto() if isinstance(model, Model) else model
    onnx.checker.check_model(proto, full_check=True)
    feeds = {"x": np.linspace(-1, 1, 8, dtype=np.float32).reshape(2, 4)}
    return np.asarray(onnx.reference.ReferenceEvaluator(proto).run(None, feeds)[0])


def test_graph_of_graphsurgeon_is_adopted_in_place() -> None:
    stock = gs.import_onnx(onnx.parser.parse_model(TEXT))
    first = stock.nodes[0]
    model = from_gs(stock)
    assert model.graph is stock
    assert model.graph.nodes[0] is first
    assert isinstance(first, Node)
    assert all(isinstance(t, Variable | Constant) for _, n in model.walk() for t in (*n.inputs, *n.outputs))
    assert model.opset == 17
    assert evaluate(model).tolist() == evaluate(onnx.parser.parse_model(TEXT)).tolist()


def test_bodies_and_functions_are_adopted() -> None:
    models = dict(crafted_models())
    model = from_gs(gs.import_onnx(models["initializer_captured_by_both_branches"]))
    assert all(isinstance(g, Graph) for g in model.graphs())
    assert len(list(model.graphs())) == 3
    onnx.checker.check_model(model.to_proto())
    called = from_gs(gs.import_onnx(models["function_called"]))
    assert isinstance(called.functions[0], Function)
    assert called.functions[0].unique_id == ("local", "Twice", "")
    onnx.checker.check_model(called.to_proto())


def test_graph_built_by_hand_with_stock_classes() -> None:
    x = gs.Variable("x", np.float32, ["N", 4])
    y = gs.Variable("y", np.float32, ["N", 4])
    node = gs.Node("Add", "add", inputs=[x, gs.Constant("w", np.ones(4, np.float32))], outputs=[y])
    model = from_gs(gs.Graph([node], [x], [y], opset=17, ir_version=8))
    assert [t.name for t in model.to_proto().graph.initializer] == ["w"]
    assert evaluate(model).shape == (2, 4)


@gs_pass
def insert_scale(graph: gs.Graph, factor: float) -> int:
    """Multiply the input of every Add, as code for graphsurgeon does."""
    count = 0
    for node in [n for n in graph.nodes if n.op == "Add"]:
        scaled = gs.Variable(f"{node.name or 'add'}_scaled", np.float32)
        source = node.inputs[0]
        node.inputs[0] = scaled
        constant = gs.Constant(f"factor{count}", np.array(factor, np.float32))
        graph.nodes.append(gs.Node("Mul", f"mul{count}", inputs=[source, constant], outputs=[scaled]))
        count += 1
    graph.cleanup().toposort()
    return count


def test_pass_for_graphsurgeon_runs_on_a_model() -> None:
    model = from_text(TEXT)
    plain = evaluate(model)
    assert insert_scale(model, 1.0) == 1
    assert all(isinstance(n, Node) for n in model.graph.nodes)
    assert [n.op for n in model.graph.nodes] == ["Relu", "Mul", "Add", "Neg"]
    assert model.versions.structure == 1
    assert evaluate(model).tolist() == plain.tolist()


def test_pass_for_graphsurgeon_may_write_values_in_place() -> None:
    @gs_pass
    def double(graph: gs.Graph) -> None:
        for tensor in graph.tensors().values():
            if isinstance(tensor, gs.Constant):
                tensor.values[:] *= 2

    model = from_text(TEXT)
    twin = model.copy()
    double(model)
    assert model.graph.nodes[1].inputs[1].array().tolist() == [2, 4, 6, 8]
    assert twin.graph.nodes[1].inputs[1].array().tolist() == [1, 2, 3, 4]


def test_values_that_a_pass_only_reads_are_written_verbatim() -> None:
    @gs_pass
    def look(graph: gs.Graph) -> float:
        return float(sum(t.values.sum() for t in graph.tensors().values() if isinstance(t, gs.Constant)))

    proto = onnx.parser.parse_model(TEXT)
    model = read_model(proto)
    assert look(model) == 10
    assert model.to_bytes() == proto.SerializeToString(deterministic=True)


def test_edges_that_stock_lists_lose_are_linked_again() -> None:
    @gs_pass
    def careless(graph: gs.Graph) -> None:
        source = graph.nodes[0].outputs[0]
        extra = gs.Node(
            "Identity", "extra", inputs=(t for t in [source]), outputs=[gs.Variable("e", np.float32, ["N", 4])]
        )
        graph.nodes.insert(1, extra)
        graph.nodes[2].inputs[0] = extra.outputs[0]

    model = from_text(TEXT)
    careless(model)
    extra = model.graph.nodes[1]
    assert extra.op == "Identity"
    assert list(model.graph.nodes[0].outputs[0].outputs) == [extra]
    evaluate(model)


def test_stock_body_set_as_an_attribute_becomes_ours(branches: Model) -> None:
    holder = branches.graph.nodes[1]
    h = branches.graph.nodes[0].outputs[0]
    out = gs.Variable("stock_out", np.float32, ["N", 4])
    body = gs.Graph([gs.Node("Abs", "stock", inputs=[h], outputs=[out])], [], [out], name="stock")
    holder.attrs["then_branch"] = body
    assert [n.op for _, n in branches.walk()] == ["Relu", "If", "Abs", "Sub", "Neg"]
    assert isinstance(body, Graph)
    assert body.parent is branches.graph
    onnx.checker.check_model(branches.to_proto(), full_check=True)


@pytest.mark.parametrize("mistake", ["two producers", "two names", "cycle", "undefined"])
def test_mistakes_of_a_pass_are_found(mistake: str) -> None:
    @gs_pass
    def wrong(graph: gs.Graph) -> None:
        h = graph.nodes[0].outputs[0]
        if mistake == "two producers":
            graph.nodes.append(gs.Node("Abs", "again", inputs=[graph.inputs[0]], outputs=[h]))
        elif mistake == "two names":
            graph.nodes.append(gs.Node("Abs", "again", inputs=[h], outputs=[gs.Variable("s", np.float32)]))
        elif mistake == "cycle":
            graph.nodes[0].inputs[0] = graph.outputs[0]
        else:
            graph.nodes[0].inputs[0] = gs.Variable("nothing", np.float32)

    with pytest.raises(GraphError):
        wrong(from_text(TEXT))


def test_gs_pass_needs_a_graph_of_ours() -> None:
    with pytest.raises(GraphError, match="Model or a Graph"):
        insert_scale(gs.Graph(), 1.0)


def test_layer_and_register(chain: Model) -> None:
    @gs.Graph.register()  # type: ignore[untyped-decorator]
    def graphopt_test_abs(self: gs.Graph, tensor: gs.Tensor) -> gs.Tensor:
        return self.layer(op="Abs", inputs=[tensor], outputs=["abs_out"])[0]

    graph = chain.graph
    neg = graph.nodes[2]
    made = graph.graphopt_test_abs(neg.inputs[0])
    added = graph.layer(op="Add", inputs=[made, 1.5, np.ones(4, np.float32), [1, 2]][:2], outputs=["sum"])[0]
    neg.inputs[0] = added
    graph.cleanup().toposort()
    assert isinstance(made, Variable)
    assert made.name == "abs_out_0"
    assert [n.op for n in graph.nodes] == ["Relu", "Add", "Abs", "Add", "Neg"]
    assert evaluate(chain).shape == (2, 4)
    with pytest.raises(GraphError, match=r"Graph\.layer"):
        graph.layer(op="Add", inputs=[object()], outputs=["o"])


def test_export_of_graphsurgeon_is_correct_for_every_dtype() -> None:
    for name, proto in crafted_models():
        if not name.startswith("dtype") or not name.endswith("2x5"):
            continue
        model = read_model(proto)
        before = proto.graph.SerializeToString(deterministic=True)
        exported = gs.export_onnx(model.graph, do_type_check=False)
        want = {t.name: numpy_helper.to_array(t) for t in proto.graph.initializer}
        for tensor in exported.graph.initializer:
            assert numpy_helper.to_array(tensor).tobytes() == want[tensor.name].tobytes(), name
        assert model.to_proto().graph.SerializeToString(deterministic=True) == before


def test_graph_pattern_of_graphsurgeon_matches(chain: Model) -> None:
    pattern = gs.GraphPattern()
    x, w = pattern.variable(), pattern.variable()
    relu = pattern.add("relu", "Relu", inputs=[x])
    add = pattern.add("add", "Add", inputs=[relu, w])
    pattern.set_output_tensors([add])
    chain.graph.nodes[0].name, chain.graph.nodes[1].name = "r", "a"
    matches = pattern.match_all(chain.graph)
    assert len(matches) == 1


def test_real_model_through_graphsurgeon(assets: Path) -> None:
    proto = onnx.load(assets / "models" / "mnist_cntk_op8.onnx")
    onnx.checker.check_model(from_gs(gs.import_onnx(proto)).to_proto())


def test_opset_imports_of_custom_domains_survive_stock_export() -> None:
    node = helper.make_node("Op", ["x"], ["y"], domain="custom")
    graph = helper.make_graph(
        [node],
        "g",
        [helper.make_tensor_value_info("x", 1, [1])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1])],
    )
    model = read_model(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)]))
    exported = gs.export_onnx(model.graph)
    assert {e.domain for e in exported.opset_import} == {"", "custom"}
