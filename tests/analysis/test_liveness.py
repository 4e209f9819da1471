"""Live ranges and the peak of activation memory."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from graphopt.analysis import Facts, Liveness, Types
from shape_agreement import read_text

if TYPE_CHECKING:
    from graphopt.graph import Model

TEXT = """<ir_version: 8, opset_import: ["" : 17]>
g (float[b, 4] x, bool c) => (float y) <float[4] w = {1, 1, 1, 1}> {
    a = Relu (x)
    k = Constant <value = float[1] {2}> ()
    d = Concat <axis = 0> (a, a)
    u = Neg (a)
    y = If (c) <
        then_branch = then () => (t) { t = Mul (d, w) },
        else_branch = other () => (e) { e = Relu (d) }
    >
}"""


@pytest.fixture
def model() -> Model:
    return read_text(TEXT)


def test_spans(model: Model) -> None:
    liveness = Facts(model).get(Liveness)
    found = {tensor.name: (span.first, span.last) for tensor, span in liveness.tensors(model.graph)}
    assert found == {"x": (-1, 0), "c": (-1, 4), "a": (0, 3), "d": (2, 4), "u": (3, 3), "y": (4, 5)}
    weight = next(iter(model.graph.initializers))
    assert liveness.span(weight) is None
    inner = next(node for graph, node in model.walk() if graph.name == "then")
    assert liveness.span(inner.outputs[0]) == (0, 1)


def test_peak_by_hand(model: Model) -> None:
    peak = Facts(model).get(Liveness).peak(model.graph, {"b": 10})
    # x 160, c 1, a 160, d 320, u 160, y 320 bytes: at Neg are live c, a, d, u.
    assert peak.size_bytes == 1 + 160 + 320 + 160
    assert peak.node is not None
    assert peak.node.op in {"Neg", "If"}
    assert peak.unknown == 0


def test_unknown_sizes_are_counted_or_take_the_default(model: Model) -> None:
    liveness = Facts(model).get(Liveness)
    assert liveness.peak(model.graph).unknown == 5
    assert liveness.peak(model.graph).size_bytes == 1
    assert liveness.peak(model.graph, default=10) == liveness.peak(model.graph, {"b": 10})


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 30), st.integers(0, 30)), min_size=1, max_size=12))
def test_peak_is_what_counting_every_tensor_at_every_node_gives(pairs: list[tuple[int, int]]) -> None:
    names = ["x"]
    lines = []
    for index, (left, right) in enumerate(pairs):
        names.append(f"t{index}")
        lines.append(f"t{index} = Concat <axis = 0> ({names[left % (index + 1)]}, {names[right % (index + 1)]})")
    body = "\n".join(lines)
    model = read_text(f'<ir_version: 8, opset_import: ["" : 17]>\ng (float[3] x) => (float {names[-1]}) {{ {body} }}')
    facts = Facts(model)
    types, nodes = facts.get(Types), list(model.graph.nodes)
    most = 0
    for at in range(len(nodes)):
        live = 0
        for tensor in [*model.graph.inputs, *[node.outputs[0] for node in nodes]]:
            born = -1 if tensor in model.graph.inputs else nodes.index(tensor.inputs[0])
            users = [index for index, node in enumerate(nodes) if tensor in list(node.inputs)]
            end = len(nodes) if tensor in model.graph.outputs else max(users, default=born)
            if born <= at <= end:
                live += types.size_bytes(tensor) or 0
        most = max(most, live)
    assert facts.get(Liveness).peak(model.graph).size_bytes == most
