"""unroll-loops: one iteration, none, or as many as may be; with early ends, stacks, slices and bodies in bodies."""

# ruff: noqa: E501 - the tables hold one model per line

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import onnx
import onnx.parser
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import helper

from graphopt.graph import read_model
from graphopt.passes.simplify.unroll_loops import UnrollLoops
from graphopt.runtime import Feeds
from pass_oracle import check_pass, run_pass

if TYPE_CHECKING:
    from collections.abc import Callable

HEAD = '<ir_version: 8, opset_import: ["" : 17]>\n'


def loop(
    body: str,
    *,
    states: str = "float[n] s",
    results: str = "float[n] r",
    limit: str = "m",
    start: str = "c",
    given: str = "x",
    outputs: str = "y",
) -> str:
    return f"{outputs} = Loop ({limit}, {start}, {given}) <body = b (int64 i, bool k, {states}) => (bool kk, {results}) {{ {body} }}>"


NOT_INTERPRETED = ("start", "whatever", "limit", "its own input")
"""Loops that onnx.reference runs otherwise: it counts in vectors, and takes an omitted condition for false."""

ONCE: dict[str, tuple[str, list[str]]] = {
    "once": (f"g (float[n] x) => (float[n] y) <int64 m = {{1}}, bool c = {{1}}> {{ {loop('kk = Identity(k) r = Neg(s)')} }}", ["Neg"]),
    "once, whatever the condition": (f"g (float[n] x, bool f) => (float[n] y) <int64 m = {{1}}, bool c = {{1}}> {{ {loop('kk = Not(f) r = Neg(s)')} }}", ["Neg"]),
    "ends after the first": (f"g (float[n] x) => (float[n] y) <int64 m = {{7}}, bool c = {{1}}> {{ {loop('kk = Constant<value = bool {0}>() r = Neg(s)')} }}", ["Neg"]),
    "ends after the first, no limit": (f"g (float[n] x) => (float[n] y) <bool c = {{1}}> {{ {loop('kk = Constant<value = bool {0}>() r = Neg(s)', limit='')} }}", ["Neg"]),
    "no start condition": (f"g (float[n] x) => (float[n] y) <int64 m = {{1}}> {{ {loop('kk = Identity(k) r = Neg(s)', start='')} }}", ["Neg"]),
    "reads its number": (f"g (float[n] x) => (float[n] y) <int64 m = {{1}}, bool c = {{1}}> {{ {loop('kk = Identity(k) f = Cast<to = 1>(i) r = Add(s, f)')} }}", ["Cast", "Add"]),
    "stacks": (f"g (float[n] x) => (float[n] y, float[l, n] z) <int64 m = {{1}}, bool c = {{1}}> {{ {loop('kk = Identity(k) r = Neg(s) u = Exp(s)', results='float[n] r, float[n] u', outputs='y, z')} }}", ["Neg", "Exp", "Unsqueeze"]),
    "stacks its own input": (f"g (float[n] x) => (float[n] y, int64[l] z) <int64 m = {{1}}, bool c = {{1}}> {{ {loop('kk = Identity(k) r = Neg(s) u = Identity(i)', results='float[n] r, int64 u', outputs='y, z')} }}", ["Neg", "Identity", "Unsqueeze"]),
    "exchanges states": (f"g (float[n] x, float[n] w) => (float[n] y, float[n] z) <int64 m = {{1}}, bool c = {{1}}> {{ {loop('kk = Identity(k) r = Identity(t) q = Neg(s)', states='float[n] s, float[n] t', results='float[n] r, float[n] q', given='x, w', outputs='y, z')} }}", ["Identity", "Neg"]),
    "body in the body": (f"g (float[n] x, bool p) => (float[n] y) <int64 m = {{1}}, bool c = {{1}}> {{ {loop('kk = Identity(k) r = If (p) <then_branch = t () => (float[n] a) { h = Neg(s) a = Exp(h) }, else_branch = e () => (float[n] b) { b = Abs(s) }>')} }}", ["If", "Neg", "Exp", "Abs"]),
    "initializer in the body": ("g (float[n] x) => (float[n] y) <int64 m = {1}, bool c = {1}> { y = Loop (m, c, x) <body = b (int64 i, bool k, float[n] s) => (bool kk, float[n] r) <float[1] w = {2}> { kk = Identity(k) r = Mul(s, w) }> }", ["Mul"]),
    "Scan": ("g (float[1, n] x, float[n] h) => (float[n] f, float[1, n] y) { f, y = Scan<num_scan_inputs = 1, body = b (float[n] s, float[n] t) => (float[n] ss, float[n] u) { ss = Add(s, t) u = Neg(ss) }> (h, x) }", ["Squeeze", "Add", "Neg", "Unsqueeze"]),
    "Scan over other axes": ("g (float[n, 1] x, float[n] h) => (float[n] f, float[n, 1] y) { f, y = Scan<num_scan_inputs = 1, scan_input_axes = [1], scan_output_axes = [-1], scan_input_directions = [1], scan_output_directions = [1], body = b (float[n] s, float[n] t) => (float[n] ss, float[n] u) { ss = Add(s, t) u = Neg(ss) }> (h, x) }", ["Squeeze", "Add", "Neg", "Unsqueeze"]),
}  # fmt: skip

NEVER: dict[str, tuple[str, list[str]]] = {
    "limit of 0": (f"g (float[n] x) => (float[n] y) <int64 m = {{0}}, bool c = {{1}}> {{ q = Neg(x) {loop('kk = Identity(k) r = Neg(s)', given='q')} }}", ["Neg"]),
    "limit below 0": (f"g (float[n] x) => (float[n] y) <int64 m = {{-3}}, bool c = {{1}}> {{ q = Neg(x) {loop('kk = Identity(k) r = Neg(s)', given='q')} }}", ["Neg"]),
    "condition is false": (f"g (float[n] x, int64 m) => (float[n] y) <bool c = {{0}}> {{ q = Neg(x) {loop('kk = Identity(k) r = Neg(s)', given='q')} }}", ["Neg"]),
    "stacks none": (f"g (float[2] x) => (float[2] y, float[l, 2] z) <int64 m = {{0}}, bool c = {{1}}> {{ q = Neg(x) {loop('kk = Identity(k) r = Neg(s) u = Exp(s)', states='float[2] s', results='float[2] r, float[2] u', given='q', outputs='y, v')} z = Abs(v) }}", ["Neg", "Abs"]),
}  # fmt: skip

STAYS: dict[str, str] = {
    "fed limit": f"g (float[n] x, int64 m) => (float[n] y) <bool c = {{1}}> {{ {loop('kk = Identity(k) r = Neg(s)')} }}",
    "fed condition": f"g (float[n] x, bool c) => (float[n] y) <int64 m = {{1}}> {{ {loop('kk = Identity(k) r = Neg(s)')} }}",
    "a condition that changes": f"g (float[1] x) => (float[1] y) <int64 m = {{2}}, bool c = {{1}}, float z = {{0}}> {{ {loop('h = ReduceSum<keepdims = 0>(s) kk = Less(h, z) r = Neg(s)', states='float[1] s', results='float[1] r')} }}",
    "ends after the first, if it begins": f"g (float[n] x, int64 m) => (float[n] y) <bool c = {{1}}> {{ {loop('kk = Constant<value = bool {0}>() r = Neg(s)')} }}",
    "too many nodes": f"g (float[n] x) => (float[n] y) <int64 m = {{3}}, bool c = {{1}}> {{ {loop('kk = Identity(k) h = Neg(s) r = Exp(h)')} }}",
    "a free length": "g (float[l, n] x, float[n] h) => (float[n] f) { f = Scan<num_scan_inputs = 1, body = b (float[n] s, float[n] t) => (float[n] ss) { ss = Add(s, t) }> (h, x) }",
}  # fmt: skip


@pytest.mark.parametrize("case", ONCE)
def test_one_iteration_is_inlined(case: str) -> None:
    source, ops = ONCE[case]
    done = check_pass(UnrollLoops(), HEAD + source, interpreted=not any(word in case for word in NOT_INTERPRETED))
    assert sorted(done.ops) == sorted(ops)


@pytest.mark.parametrize("case", NEVER)
def test_no_iteration_gives_what_it_was_given(case: str) -> None:
    source, ops = NEVER[case]
    done = check_pass(UnrollLoops(), HEAD + source, interpreted=False)
    assert done.ops == ops


@pytest.mark.parametrize("case", STAYS)
def test_unknown_numbers_stay(case: str) -> None:
    assert check_pass(UnrollLoops(), HEAD + STAYS[case], interpreted=False).record.patches == 0


def test_a_number_of_unknown_shape_stays() -> None:
    source = ONCE["reads its number"][0].replace("int64 i", "int64[] i")
    done = run_pass(UnrollLoops(), HEAD + source, verify="fast")
    assert done.skips == {"Loop -> y": "its body does not say whether 'i' is a scalar"}


def test_growth_is_a_reason() -> None:
    done = run_pass(UnrollLoops(), HEAD + STAYS["too many nodes"])
    assert done.skips == {"Loop -> y": "unrolling its 3 iterations adds 2 nodes, and 0 may be added"}
    done = check_pass(UnrollLoops(max_growth=2), HEAD + STAYS["too many nodes"])
    assert done.ops == ["Neg", "Exp"] * 3


def test_several_iterations_that_cost_nothing() -> None:
    source = (
        f"g (float[n] x) => (float[n] y) <int64 m = {{2}}, bool c = {{1}}> {{ {loop('kk = Identity(k) r = Neg(s)')} }}"
    )
    assert check_pass(UnrollLoops(), HEAD + source).ops == ["Neg", "Neg"]


def test_copies_of_inner_bodies_have_new_names(golden: Callable[[str], None]) -> None:
    body = "kk = Identity(k) r = If (p) <then_branch = t () => (float[n] a) <float[1] w = {2}> { h = Mul(s, w) a = Exp(h) }, else_branch = e () => (float[n] b) { b = Abs(s) }>"
    source = f"g (float[n] x, bool p) => (float[n] y) <int64 m = {{2}}, bool c = {{1}}> {{ {loop(body)} }}"
    done = check_pass(UnrollLoops(max_growth=100), HEAD + source)
    names = [tensor.name for graph in done.model.graphs() for node in graph.nodes for tensor in node.outputs]
    assert len(names) == len(set(names))
    golden(done.text)


def test_loop_in_a_function() -> None:
    source = f'<ir_version: 8, opset_import: ["" : 17, "f" : 1]> g (float[n] x) => (float[n] y) {{ y = f.once<alpha = 0.25>(x) }} <opset_import: ["" : 17], domain: "f"> once<alpha>(x) => (y) {{ m = Constant<value = int64 {{1}}>() c = Constant<value = bool {{1}}>() {loop("kk = Identity(k) r = LeakyRelu<alpha: float = @alpha>(s)")} }}'
    done = check_pass(UnrollLoops(), source)
    assert [op for op in done.ops if op != "Constant"] == ["once", "LeakyRelu"]


@st.composite
def counted_loops(draw: st.DrawFn) -> tuple[onnx.ModelProto, int]:
    """A Loop or Scan of a few iterations with states, stacks, slices and an inner If, and how often it runs."""
    make, node = helper.make_tensor_value_info, helper.make_node
    kind, trips = draw(st.sampled_from(["Loop", "Scan"])), draw(st.integers(0, 3))
    if kind == "Scan":
        trips = max(trips, 1)
    count, stacks, scans = draw(st.integers(1, 3)), draw(st.integers(0, 2)), draw(st.integers(1, 2))
    carried = [f"s{i}" for i in range(count)]
    scanned = [f"c{i}" for i in range(scans)] if kind == "Scan" else []
    sources = [*carried, *scanned, "x"]
    nodes: list[onnx.NodeProto] = []
    results: list[str] = []
    for i in range(count + stacks):
        a, b = draw(st.sampled_from(sources)), draw(st.sampled_from([*sources, *results]))
        if draw(st.integers(0, 3)) == 0:
            bodies = {}
            for key, op in (("then_branch", "Add"), ("else_branch", "Max")):
                info = make(f"in_{key}{i}", 1, [2])
                bodies[key] = helper.make_graph([node(op, [a, b], [info.name])], key, [], [info])
            nodes.append(node("If", ["p"], [f"r{i}"], **bodies))
        elif draw(st.integers(0, 3)) == 0:
            nodes.append(node("Identity", [a], [f"r{i}"]))
        else:
            nodes.append(node(draw(st.sampled_from(["Add", "Max", "Sub"])), [a, b], [f"r{i}"]))
        results.append(f"r{i}")
    info = [make(name, 1, [2]) for name in [*carried, *scanned]]
    given_out = [make(name, 1, [2]) for name in results]
    outputs = [f"o{i}" for i in range(count + stacks)]
    axes = [draw(st.integers(0, 1)) for _ in range(stacks)]
    if kind == "Loop":
        nodes.append(node("Identity", ["go"], ["on"]))
        info = [make("i", 7, []), make("go", 9, []), *info]
        body = helper.make_graph(nodes, "b", info, [make("on", 9, []), *given_out])
        holder = node("Loop", ["m", "c", *["x"] * count], outputs, body=body)
    else:
        body = helper.make_graph(nodes, "b", info, given_out)
        attrs = {"scan_input_directions": [draw(st.integers(0, 1)) for _ in range(scans)]}
        if stacks:
            attrs |= {"scan_output_axes": axes, "scan_output_directions": [draw(st.integers(0, 1)) for _ in axes]}
        holder = node("Scan", [*["x"] * count, *["z"] * scans], outputs, body=body, num_scan_inputs=scans, **attrs)
    shapes = [[2]] * count + [[2, "k"] if kind == "Scan" and axis else ["k", 2] for axis in axes]
    graph = helper.make_graph(
        [holder, *[node("Abs", [name], [f"{name}_"]) for name in outputs]],
        "g",
        [make("x", 1, [2]), make("z", 1, [trips, 2]), make("p", 9, [])],
        [make(f"{name}_", 1, shape) for name, shape in zip(outputs, shapes, strict=True)],
        [onnx.numpy_helper.from_array(np.array(v), k) for k, v in (("m", np.int64(trips)), ("c", True))],
    )
    return helper.make_model(
        graph, ir_version=8, opset_imports=[helper.make_opsetid("", draw(st.sampled_from([12, 17])))]
    ), trips


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(counted_loops(), st.booleans())
def test_generated_loops_compute_the_same(made: tuple[onnx.ModelProto, int], chosen: bool) -> None:
    proto, trips = made
    rng = np.random.default_rng(trips)
    feed = {
        "x": rng.normal(size=2).astype(np.float32),
        "z": rng.normal(size=(trips, 2)).astype(np.float32),
        "p": np.array(chosen),
    }
    done = check_pass(
        UnrollLoops(max_growth=1000), proto, Feeds.open([feed], read_model(proto)), samples=1, interpreted=trips > 0
    )
    assert not {"Loop", "Scan"} & set(done.ops)
