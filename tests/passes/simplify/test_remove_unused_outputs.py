"""remove-unused-outputs: what nobody reads goes, with the work behind it; what counts stays."""

# ruff: noqa: E501 - the tables hold one model per line

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import onnx
import onnx.parser
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from graphopt.graph import read_model
from graphopt.passes.simplify.remove_unused_outputs import RemoveUnusedOutputs
from graphopt.runtime import Feeds
from pass_oracle import check_pass, run_pass

if TYPE_CHECKING:
    from collections.abc import Callable

    from graphopt.graph import Model

HEAD = '<ir_version: 8, opset_import: ["" : 17]>\n'
LOOP = "<body = b (int64 i, bool k, float[n] s, float[n] t) => (bool kk, float[n] ss, float[n] tt, float[n] u) {{ kk = Identity(k) {} }}>"

GONE: dict[str, tuple[str, list[str]]] = {
    "mask of Dropout": ("g (float[n] x) => (float[n] y) { y, m = Dropout(x) }", ["Dropout:1"]),
    "indices of MaxPool": ("g (float[1, 1, 4, 4] x) => (float[1, 1, a, b] y) { y, i = MaxPool<kernel_shape = [2, 2]>(x) }", ["MaxPool:1"]),
    "inverse of Unique": ("g (float[n] x) => (float[m] y, int64[m] c) { y, i, j, c = Unique(x) }", ["Unique:y__c"]),
    "statistics of LayerNormalization": ("g (float[n, 3] x) => (float[n, 3] y) <float[3] s = {1, 2, 3}> { y, m, v = LayerNormalization(x, s) }", ["LayerNormalization:1"]),
    "Split into one of three": ("g (float[n, 6] x) => (float[n, m] y) <int64[3] s = {1, 2, 3}> { a, b, c = Split<axis = -1>(x, s) y = Neg(b) }", ["Slice:1", "Neg:1"]),
    "Split into even parts": ("g (float[n, 6] x) => (float[n, m] y) { a, b, c = Split<axis = 1>(x) y = Neg(c) }", ["Slice:1", "Neg:1"]),
    "first of a free Split": ("g (float[n, 3] x) => (float[n, m] y) <int64[3] s = {1, 2, 0}> { y, b, c = Split<axis = 1>(x, s) }", ["Slice:1"]),
    "output of If": ("g (float[n] x, bool[] p) => (float[n] y) { y, z = If (p) <then_branch = t () => (float[n] a, float[n] aa) { a = Neg(x) aa = Sin(x) }, else_branch = e () => (float[n] b, float[n] bb) { b = Exp(x) bb = Cos(x) }> }", ["If:1", "Neg:1", "Sin:1", "Exp:1", "Cos:1"]),
    "stack of Loop": ("g (float[n] x) => (float[n] y, float[n] z) <int64 m = {3}, bool c = {1}> { y, z, w = Loop (m, c, x, x) " + LOOP.format("ss = Neg(s) tt = Add(t, s) u = Exp(t)") + " }", ["Loop:2", "Identity:1", "Neg:1", "Add:1"]),
    "carried value of Loop": ("g (float[n] x) => (float[n] y, float[l, n] w) <int64 m = {3}, bool c = {1}> { y, z, w = Loop (m, c, x, x) " + LOOP.format("ss = Neg(s) tt = Add(t, s) u = Exp(s)") + " }", ["Loop:2", "Identity:1", "Neg:1", "Exp:1"]),
    "carried values that need only each other": ("g (float[n] x) => (float[l, n] w) <int64 m = {3}, bool c = {1}> { y, z, w = Loop (m, c, x, x) " + LOOP.format("ss = Neg(t) tt = Add(t, s) u = Exp(x)") + " }", ["Loop:1", "Identity:1", "Exp:1"]),
    "scanned tensor": ("g (float[3, n] x, float[3, n] z) => (float[3, n] y) { y = Scan<num_scan_inputs = 2, scan_input_axes = [0, 0], body = b (float[n] s, float[n] t) => (float[n] u) { u = Neg(t) }> (x, z) }", ["Scan:1", "Neg:1"]),
    "stack of Scan": ("g (float[3, n] x, float[n] h) => (float[n] f, float[n, 3] y) { f, v, y = Scan<num_scan_inputs = 1, scan_output_axes = [0, 1], body = b (float[n] s, float[n] t) => (float[n] ss, float[n] u, float[n] w) { ss = Add(s, t) u = Neg(t) w = Exp(ss) }> (h, x) }", ["Scan:2", "Add:1", "Exp:1"]),
    "carried value of Scan": ("g (float[3, n] x, float[n] h) => (float[3, n] y) { f, y = Scan<num_scan_inputs = 1, body = b (float[n] s, float[n] t) => (float[n] ss, float[n] u) { ss = Add(s, t) u = Neg(t) }> (h, x) }", ["Scan:1", "Neg:1"]),
}  # fmt: skip

STAYS: dict[str, str] = {
    "read outputs": "g (float[n] x) => (float[n] y, bool[n] m) { y, m = Dropout(x) }",
    "required outputs": "g (float[4] x) => (float[2] y) <int64[1] k = {2}> { y, i = TopK(x, k) }",
    "two parts of Split": "g (float[n, 6] x) => (float[n, 2] y, float[n, 2] z) { y, b, z = Split<axis = 1>(x) }",
    "carried value that another needs": "g (float[n] x) => (float[n] y, float[l, n] w) <int64 m = {3}, bool c = {1}> { y, z, w = Loop (m, c, x, x) " + LOOP.format("ss = Neg(t) tt = Abs(s) u = Exp(s)") + " }",
    "carried value that decides": "g (float[1] x) => (float[1] y) <int64 m = {5}, bool c = {1}> { y, z = Loop (m, c, x, x) <body = b (int64 i, bool k, float[1] s, float[1] t) => (bool kk, float[1] ss, float[1] tt) { q = Less(t, s) kk = ReduceX(q) ss = Neg(s) tt = Abs(t) }> }".replace("kk = ReduceX(q)", "f = Cast<to = 7>(q) r = ReduceMin<keepdims = 0>(f) kk = Cast<to = 9>(r)"),
    "the one scanned tensor": "g (float[3, n] x, float[n] h) => (float[n] f) { f = Scan<num_scan_inputs = 1, body = b (float[n] s, float[n] t) => (float[n] ss) { ss = Neg(s) }> (h, x) }",
}  # fmt: skip


def outputs(model: Model) -> list[str]:
    """Return for each node its operator and how many outputs it has, or their names where some are omitted."""
    found = []
    for _, node in model.walk():
        names = [str(tensor.name) for tensor in node.outputs]
        found.append(f"{node.op}:{len(names) if all(names) else '_'.join(names)}")
    return found


def text(body: str) -> str:
    return body if body.startswith("<") else HEAD + body


@pytest.mark.parametrize("case", GONE)
def test_unread_outputs_go(case: str) -> None:
    source, expected = GONE[case]
    done = check_pass(RemoveUnusedOutputs(), text(source))
    assert [item.replace("Unique:y___c", "Unique:y__c") for item in outputs(done.model)] == expected


@pytest.mark.parametrize("case", STAYS)
def test_what_counts_stays(case: str) -> None:
    assert check_pass(RemoveUnusedOutputs(), text(STAYS[case])).record.patches == 0


@pytest.mark.parametrize("op", ["LSTM", "GRU", "RNN"])
@pytest.mark.parametrize("read", [0, 1])
def test_outputs_of_recurrent_layers(op: str, read: int) -> None:
    gates = {"LSTM": 4, "GRU": 3, "RNN": 1}[op]
    rng = np.random.default_rng(0)
    names = ["y", "h", "c"][: 3 if op == "LSTM" else 2]
    shape = [5, 1, 2, 3] if read == 0 else [1, 2, 3]
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node(op, ["x", "w", "r"], names, hidden_size=3)],
        "g",
        [onnx.helper.make_tensor_value_info("x", 1, [5, 2, 4])],
        [onnx.helper.make_tensor_value_info(names[read], 1, shape)],
        [
            onnx.numpy_helper.from_array(rng.normal(size=(1, gates * 3, 4)).astype(np.float32), "w"),
            onnx.numpy_helper.from_array(rng.normal(size=(1, gates * 3, 3)).astype(np.float32), "r"),
        ],
    )
    proto = onnx.helper.make_model(graph, ir_version=8, opset_imports=[onnx.helper.make_opsetid("", 17)])
    done = check_pass(RemoveUnusedOutputs(), proto)
    (node,) = done.model.graph.nodes
    assert [bool(tensor.name) for tensor in node.outputs] == [True] if read == 0 else [False, True]


def test_split_before_opset_10_is_sliced_by_attributes() -> None:
    source = '<ir_version: 4, opset_import: ["" : 9]> g (float[n, 6] x) => (float[n, 2] y) { a, b, c = Split<axis = 1, split = [1, 2, 3]>(x) y = Neg(b) }'
    done = check_pass(RemoveUnusedOutputs(), source)
    part = done.model.graph.nodes[0]
    assert (part.op, part.attrs["starts"], part.attrs["ends"], len(part.inputs)) == ("Slice", [1], [3], 1)


def test_later_part_of_an_unknown_split_stays() -> None:
    source = "g (float[n, 6] x, int64[3] s) => (float[n, m] y) { a, b, y = Split<axis = 1>(x, s) }"
    proto = onnx.parser.parse_model(text(source))
    feed = {"x": np.ones((2, 6), np.float32), "s": np.array([1, 2, 3])}
    assert check_pass(RemoveUnusedOutputs(), proto, Feeds.open([feed], read_model(proto))).record.patches == 0


def test_training_mode_of_batch_normalization_stays() -> None:
    source = "g (float[2, 3] x) => (float[2, 3] y) <float[3] s = {1, 2, 3}, float[3] v = {1, 2, 3}> { y, a, b = BatchNormalization<training_mode = 1>(x, s, s, s, v) }"
    assert run_pass(RemoveUnusedOutputs(), text(source)).record.patches == 0


def test_old_batch_normalization_keeps_its_mode() -> None:
    source = '<ir_version: 4, opset_import: ["" : 9]> g (float[2, 3] x) => (float[2, 3] y) <float[3] s = {1, 2, 3}, float[3] m = {1, 2, 3}, float[3] v = {1, 2, 3}> { y, a, b, c, d = BatchNormalization(x, s, s, m, v) }'
    assert run_pass(RemoveUnusedOutputs(), source).record.patches == 0


def test_unknown_operators_keep_their_outputs() -> None:
    source = (
        '<ir_version: 8, opset_import: ["" : 17, "custom" : 1]> g (float[n] x) => (float[n] y) { y, z = custom.Two(x) }'
    )
    assert run_pass(RemoveUnusedOutputs(), source, verify="fast").record.patches == 0


def test_old_loops_carry_something() -> None:
    body = "<body = b (int64 i, bool k, float[n] s) => (bool kk, float[n] ss, float[n] u) { kk = Identity(k) ss = Neg(s) u = Exp(x) }>"
    source = f'opset_import: ["" : OPSET]> g (float[n] x) => (float[l, n] w) <int64 m = {{3}}, bool c = {{1}}> {{ y, w = Loop (m, c, x) {body} }}'
    old = check_pass(RemoveUnusedOutputs(), "<ir_version: 5, " + source.replace("OPSET", "10"))
    assert outputs(old.model) == ["Loop:2", "Identity:1", "Neg:1", "Exp:1"]
    new = check_pass(RemoveUnusedOutputs(), "<ir_version: 5, " + source.replace("OPSET", "11"))
    assert outputs(new.model) == ["Loop:1", "Identity:1", "Exp:1"]


def test_golden(golden: Callable[[str], None]) -> None:
    golden(check_pass(RemoveUnusedOutputs(), text(GONE["carried values that need only each other"][0])).text)


@st.composite
def loops(draw: st.DrawFn) -> onnx.ModelProto:
    """A Loop or a Scan with carried, stacked and scanned values in a random web, of which some are read."""
    make, node = onnx.helper.make_tensor_value_info, onnx.helper.make_node
    kind = draw(st.sampled_from(["Loop", "Scan"]))
    count, stacks = draw(st.integers(1, 4)), draw(st.integers(0, 3))
    scans = draw(st.integers(1, 2)) if kind == "Scan" else 0
    carried = [f"s{i}" for i in range(count)]
    scanned = [f"c{i}" for i in range(scans)]
    sources = [*carried, *scanned, "x"]
    nodes: list[onnx.NodeProto] = []
    results: list[str] = []
    for i in range(count + stacks):
        a, b = draw(st.sampled_from(sources)), draw(st.sampled_from([*sources, *results]))
        nodes.append(node(draw(st.sampled_from(["Add", "Max", "Sub"])), [a, b], [f"r{i}"]))
        results.append(f"r{i}")
    info = [make(name, 1, [2]) for name in [*carried, *scanned]]
    given_out = [make(name, 1, [2]) for name in results]
    outputs = [f"o{i}" for i in range(count + stacks)]
    if kind == "Loop":
        nodes.append(node("Identity", ["go"], ["on"]))
        info = [make("i", 7, []), make("go", 9, []), *info]
        body = onnx.helper.make_graph(nodes, "b", info, [make("on", 9, []), *given_out])
        holder = node("Loop", ["m", draw(st.sampled_from(["", "c"])), *["x"] * count], outputs, body=body)
    else:
        body = onnx.helper.make_graph(nodes, "b", info, given_out)
        holder = node("Scan", [*["x"] * count, *["z"] * scans], outputs, body=body, num_scan_inputs=scans)
    read = draw(st.lists(st.sampled_from(outputs), min_size=1, unique=True))
    graph = onnx.helper.make_graph(
        [holder],
        "g",
        [make("x", 1, [2]), make("z", 1, [3, 2]), make("m", 7, []), make("c", 9, [])],
        [make(name, 1, [2] if int(name[1:]) < count else ["k", 2]) for name in read],
    )
    return onnx.helper.make_model(graph, ir_version=8, opset_imports=[onnx.helper.make_opsetid("", 17)])


@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(loops(), st.integers(0, 3))
def test_generated_loops_compute_the_same(proto: onnx.ModelProto, trips: int) -> None:
    rng = np.random.default_rng(trips)
    feed = {
        "x": rng.normal(size=2),
        "z": rng.normal(size=(3, 2)),
    }
    feed = {name: value.astype(np.float32) for name, value in feed.items()}
    feed |= {"m": np.array(trips), "c": np.array(True)}
    node = proto.graph.node[0]
    known = node.op_type == "Scan" or (trips > 0 and bool(node.input[1]))  # onnx.reference stacks nothing else
    done = check_pass(RemoveUnusedOutputs(), proto, Feeds.open([feed], read_model(proto)), samples=1, interpreted=known)
    holder = next(node for node in done.model.graph.nodes if node.op in ("Loop", "Scan"))
    stacked = [t for t in holder.outputs if not (t.outputs or t.roles)]
    assert len(stacked) <= 4
