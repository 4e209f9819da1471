"""The networkx view: numbering, edges through bodies, articulation points, critical path."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from graphopt.analysis import Facts, NetworkView
from shape_agreement import read_text

if TYPE_CHECKING:
    from graphopt.graph import Model

HEAD = '<ir_version: 8, opset_import: ["" : 17]>\n'
DIAMOND = (
    HEAD
    + """g (float[b] x) => (float y, float z) {
    a = Relu (x)
    l = Neg (a)
    r = Abs (a)
    m = Add (l, r)
    y = Exp (m)
    z = Log (x)
}"""
)


@pytest.fixture
def model() -> Model:
    return read_text(DIAMOND)


def test_numbers_edges_and_components(model: Model) -> None:
    view = Facts(model).get(NetworkView).of()
    assert [node.op for node in view.nodes] == ["Relu", "Neg", "Abs", "Add", "Exp", "Log"]
    assert sorted(view.digraph.edges) == [(0, 1), (0, 2), (1, 3), (2, 3), (3, 4)]
    assert [[node.op for node in part] for part in view.components()] == [["Relu", "Neg", "Abs", "Add", "Exp"], ["Log"]]
    assert view.number(view.nodes[3]) == 3
    assert view.digraph is view.digraph


def test_articulation_points_are_the_necks(model: Model) -> None:
    view = Facts(model).get(NetworkView).of(model.graph)
    assert [node.op for node in view.articulation_points()] == ["Add"]


def test_longest_path_by_cost(model: Model) -> None:
    view = Facts(model).get(NetworkView).of()
    path, total = view.longest_path(lambda node: {"Abs": 5.0, "Neg": 1.0}.get(node.op, 2.0))
    assert [node.op for node in path] == ["Relu", "Abs", "Add", "Exp"]
    assert total == 11.0


def test_a_captured_tensor_is_an_edge_to_the_holder() -> None:
    model = read_text(
        HEAD
        + """g (float[b] x, bool c) => (float y) {
            a = Relu (x)
            y = If (c) < then_branch = t () => (p) { p = Neg (a) }, else_branch = e () => (q) { q = Abs (a) } >
        }"""
    )
    view = Facts(model).get(NetworkView)
    assert list(view.of().digraph.edges) == [(0, 1)]
    body = next(graph for graph in model.graphs() if graph.name == "t")
    assert len(view.of(body).nodes) == 1
    with pytest.raises(KeyError):
        view.of(read_text(DIAMOND).graph)


def test_an_empty_graph_has_no_path() -> None:
    model = read_text(HEAD + "g (float[b] x) => (float[b] x) { }")
    view = Facts(model).get(NetworkView).of()
    assert view.longest_path(lambda _: 1.0) == ((), 0.0)
    assert view.articulation_points() == ()


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 30), st.integers(0, 30)), min_size=1, max_size=12),
    st.lists(st.integers(0, 9), min_size=12, max_size=12),
)
def test_longest_path_is_the_best_of_all_paths(pairs: list[tuple[int, int]], costs: list[int]) -> None:
    names, lines = ["x"], []
    for index, (left, right) in enumerate(pairs):
        names.append(f"t{index}")
        lines.append(f"t{index} = Add ({names[left % (index + 1)]}, {names[right % (index + 1)]})")
    body = "\n".join(lines)
    view = Facts(read_text(f"{HEAD}g (float[b] x) => (float {names[-1]}) {{ {body} }}")).get(NetworkView).of()
    cost = {node: float(costs[index]) for index, node in enumerate(view.nodes)}

    def best(index: int) -> float:
        return cost[view.nodes[index]] + max(map(best, view.digraph.predecessors(index)), default=0.0)

    path, total = view.longest_path(cost.__getitem__)
    assert total == max(best(index) for index in range(len(view.nodes)))
    assert sum(cost[node] for node in path) == total
