"""hoist-invariants: what is the same in every iteration or either branch comes out, unless it could fail there."""

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
from graphopt.passes.simplify.hoist_invariants import HoistInvariants
from graphopt.runtime import Feeds
from pass_oracle import check_pass, run_pass

if TYPE_CHECKING:
    from collections.abc import Callable

    from graphopt.graph import Model

HEAD = '<ir_version: 8, opset_import: ["" : 17]>\n'
TRIPS = "int64 m = {3}, bool c = {1}"


def branch(then: str, other: str, outputs: str = "y", kind: str = "float[n]") -> str:
    count = outputs.count(",") + 1
    then_outputs = ", ".join(f"{kind} a{i or ''}" for i in range(count))
    else_outputs = ", ".join(f"{kind} b{i or ''}" for i in range(count))
    return f"{outputs} = If (p) <then_branch = t () => ({then_outputs}) {{ {then} }}, else_branch = e () => ({else_outputs}) {{ {other} }}>"


OUT: dict[str, tuple[str, str]] = {
    "element-wise node in a Loop": (f"g (float[n] x, float[n] z) => (float[n] y) <{TRIPS}> {{ y = Loop (m, c, x) <body = b (int64 i, bool k, float[n] s) => (bool kk, float[n] r) {{ kk = Identity(k) h = Exp(z) r = Add(s, h) }}> }}", "Exp Loop(Identity Add)"),
    "chain in a Loop": (f"g (float[n] x, float[n] z) => (float[n] y) <{TRIPS}> {{ y = Loop (m, c, x) <body = b (int64 i, bool k, float[n] s) => (bool kk, float[n] r) {{ kk = Identity(k) h = Exp(z) j = Neg(h) r = Add(s, j) }}> }}", "Exp Neg Loop(Identity Add)"),
    "static product with an inner constant": (f"g (float[2] x, float[2, 2] z) => (float[2] y) <{TRIPS}> {{ y = Loop (m, c, x) <body = b (int64 i, bool k, float[2] s) => (bool kk, float[2] r) <float[2] w = {{1, 2}}> {{ kk = Identity(k) h = MatMul(w, z) r = Add(s, h) }}> }}", "MatMul Loop(Identity Add)"),
    "node in a Scan": ("g (float[3, n] x, float[n] z) => (float[3, n] y) { y = Scan<num_scan_inputs = 1, body = b (float[n] t) => (float[n] u) { h = Sin(z) u = Add(t, h) }> (x) }", "Sin Scan(Add)"),
    "carried value": (f"g (float[n] x, float[n] z) => (float[n] y, float[n] w) <{TRIPS}> {{ y, w = Loop (m, c, x, z) <body = b (int64 i, bool k, float[n] s, float[n] t) => (bool kk, float[n] r, float[n] q) {{ kk = Identity(k) r = Add(s, t) j = Identity(t) q = Identity(j) }}> }}", "Loop(Identity Add Identity) Identity"),
    "carried value of a Scan": ("g (float[3, n] x, float[n] z) => (float[3, n] y) { w, y = Scan<num_scan_inputs = 1, body = b (float[n] s, float[n] t) => (float[n] q, float[n] u) { q = Identity(s) u = Add(t, s) }> (z, x) }", "Scan(Add)"),
    "nothing but carried values that stay": (f"g (float[n] x) => (float[n] y) <{TRIPS}> {{ z = Neg(x) w = Loop (m, c, z) <body = b (int64 i, bool k, float[n] s) => (bool kk, float[n] r) {{ kk = Identity(k) r = Identity(s) }}> y = Abs(w) }}", "Neg Abs"),
    "node in both branches": (f"g (float[n] x, bool p) => (float[n] y) {{ {branch('h = Exp(x) a = Neg(h)', 'j = Exp(x) b = Abs(j)')} }}", "Exp If(Neg)(Abs)"),
    "chain in both branches": (f"g (float[n] x, bool p) => (float[n] y) {{ {branch('h = Exp(x) i = Sin(h) a = Neg(i)', 'j = Exp(x) k = Sin(j) b = Abs(k)')} }}", "Exp Sin If(Neg)(Abs)"),
    "equal constants in both branches": ("g (float[n] x, bool p) => (float[n] y) { y = If (p) <then_branch = t () => (float[n] a) <float[1] w = {2}> { h = Mul(x, w) a = Neg(h) }, else_branch = e () => (float[n] b) <float[1] v = {2}> { j = Mul(x, v) b = Abs(j) }> }", "Mul If(Neg)(Abs)"),
    "a result of both branches": (f"g (float[n] x, bool p) => (float[n] y) {{ {branch('a = Exp(x) a1 = Neg(x)', 'b = Exp(x) b1 = Abs(x)', 'u, v')} y = Add(u, v) }}", "Exp If(Neg)(Abs) Add"),
    "a public result of both branches": (f"g (float[n] x, bool p) => (float[n] y, float[n] z) {{ {branch('a = Exp(x) a1 = Neg(a)', 'b = Exp(x) b1 = Abs(b)', 'y, z')} }}", "Exp If(Neg)(Abs)"),
    "the only result of both branches": (f"g (float[n] x, bool p) => (float[n] y) {{ {branch('h = Exp(x) a = Neg(h)', 'j = Exp(x) b = Neg(j)')} }}", "Exp Neg"),
}  # fmt: skip

STAYS: dict[str, str] = {
    "reads a carried value": f"g (float[n] x) => (float[n] y) <{TRIPS}> {{ y = Loop (m, c, x) <body = b (int64 i, bool k, float[n] s) => (bool kk, float[n] r) {{ kk = Identity(k) h = Exp(s) r = Add(s, h) }}> }}",
    "is a result": f"g (float[n] x) => (float[n] y) <{TRIPS}> {{ y = Loop (m, c, x) <body = b (int64 i, bool k, float[n] s) => (bool kk, float[n] r) {{ kk = Identity(k) r = Exp(x) }}> }}",
    "division of integers": f"g (int64[2] x, int64[2] z, int64[2] w) => (int64[2] y) <{TRIPS}> {{ y = Loop (m, c, x) <body = b (int64 i, bool k, int64[2] s) => (bool kk, int64[2] r) {{ kk = Identity(k) h = Div(z, w) r = Add(s, h) }}> }}",
    "sizes that may not fit": f"g (float[n] x, float[k] z, float[l] w) => (float[j] y) <{TRIPS}> {{ y = Loop (m, c, x) <body = b (int64 i, bool k, float[n] s) => (bool kk, float[n] r) {{ kk = Identity(k) h = Add(z, w) r = Max(s, h) }}> }}",
    "indices that may lie outside": f"g (float[2] x, float[2] z, int64[2] w) => (float[2] y) <{TRIPS}> {{ y = Loop (m, c, x) <body = b (int64 i, bool k, float[2] s) => (bool kk, float[2] r) {{ kk = Identity(k) h = Gather(z, w) r = Add(s, h) }}> }}",
    "random numbers": f"g (float[2] x) => (float[2] y) <{TRIPS}> {{ y = Loop (m, c, x) <body = b (int64 i, bool k, float[2] s) => (bool kk, float[2] r) {{ kk = Identity(k) h = RandomNormal<shape = [2], seed = 1.0>() r = Mul(s, h) }}> }}",
    "in one branch": f"g (float[n] x, bool p) => (float[n] y) {{ {branch('h = Exp(x) a = Neg(h)', 'b = Abs(x)')} }}",
    "of other tensors": f"g (float[n] x, float[n] z, bool p) => (float[n] y) {{ {branch('h = Exp(x) a = Neg(h)', 'j = Exp(z) b = Abs(j)')} }}",
    "with other attributes": f"g (float[n, 2] x, bool p) => (float[n, 2] y) {{ {branch('h = Softmax<axis = 0>(x) a = Neg(h)', 'j = Softmax<axis = 1>(x) b = Abs(j)', kind='float[n, 2]')} }}",
    "different results": f"g (float[n] x, bool p) => (float[n] y, float[n] z) {{ {branch('a = Exp(x) a1 = Neg(x)', 'b1 = Exp(x) b = Abs(x)', 'y, z')} }}",
    "exchanged values": f"g (float[n] x, float[n] z) => (float[n] y, float[n] w) <{TRIPS}> {{ y, w = Loop (m, c, x, z) <body = b (int64 i, bool k, float[n] s, float[n] t) => (bool kk, float[n] r, float[n] q) {{ kk = Identity(k) r = Identity(t) q = Identity(s) }}> }}",
}  # fmt: skip


def outline(model: Model) -> str:
    """Return the operators in order, those of bodies in parentheses."""

    def of(graph: object) -> str:
        parts = []
        for node in graph.nodes:  # type: ignore[attr-defined]
            bodies = [value for _, value in sorted(node.attrs.items(), reverse=True) if hasattr(value, "nodes")]
            parts.append(node.op + "".join(f"({of(body)})" for body in bodies))
        return " ".join(parts)

    return of(model.graph)


@pytest.mark.parametrize("case", OUT)
def test_invariants_come_out(case: str) -> None:
    source, expected = OUT[case]
    assert outline(check_pass(HoistInvariants(), HEAD + source).model) == expected


@pytest.mark.parametrize("case", STAYS)
def test_what_depends_or_may_fail_stays(case: str) -> None:
    assert run_pass(HoistInvariants(), HEAD + STAYS[case], verify="fast").record.patches == 0


@pytest.mark.parametrize("trips", [0, 2])
def test_loops_that_may_not_run(trips: int) -> None:
    source = OUT["chain in a Loop"][0].replace("int64 m = {3}, ", "").replace("float[n] z)", "float[n] z, int64 m)")
    proto = onnx.parser.parse_model(HEAD + source)
    feed = {"x": np.ones(3, np.float32), "z": np.full(3, 1000, np.float32), "m": np.array(trips)}
    done = check_pass(HoistInvariants(), proto, Feeds.open([feed], read_model(proto)), interpreted=trips > 0, samples=1)
    assert outline(done.model) == "Exp Neg Loop(Identity Add)"


def test_old_loops_carry_something() -> None:
    source = (
        OUT["nothing but carried values that stay"][0]
        .replace("w = Loop (m, c, z)", "v, w = Loop (m, c, z)")
        .replace("float[n] r)", "float[n] r, float[n] u)")
        .replace("r = Identity(s)", "r = Identity(s) u = Neg(s)")
        .replace("(float[n] y)", "(float[l, n] y)")
    )
    assert check_pass(HoistInvariants(), '<ir_version: 5, opset_import: ["" : 10]> ' + source).record.patches == 0
    assert check_pass(HoistInvariants(), '<ir_version: 5, opset_import: ["" : 11]> ' + source).record.patches == 1


def test_golden(golden: Callable[[str], None]) -> None:
    golden(check_pass(HoistInvariants(), HEAD + OUT["static product with an inner constant"][0]).text)


@st.composite
def bodies(draw: st.DrawFn) -> onnx.ModelProto:
    """A Loop around an If: nodes of both read what is outside, what is carried, and each other."""
    make, node = helper.make_tensor_value_info, helper.make_node
    counter = iter(range(1000))

    def nodes(sources: list[str], count: int) -> tuple[list[onnx.NodeProto], list[str]]:
        made: list[onnx.NodeProto] = []
        names: list[str] = []
        for _ in range(count):
            op = draw(st.sampled_from(["Neg", "Abs", "Identity", "Add", "Max"]))
            inputs = [draw(st.sampled_from([*sources, *names])) for _ in range(2 if op in ("Add", "Max") else 1)]
            names.append(f"v{next(counter)}")
            made.append(node(op, inputs, [names[-1]]))
        return made, names

    outer = ["x", "z"]
    state = [f"s{i}" for i in range(draw(st.integers(1, 3)))]
    first, names = nodes([*outer, *state], draw(st.integers(1, 4)))
    branches = {}
    for key in ("then_branch", "else_branch"):
        inner, inside = nodes([*outer, *state, *names], draw(st.integers(2, 4)))
        branches[key] = helper.make_graph(inner, key, [], [make(name, 1, [2]) for name in inside[-2:]])
    chosen = node("If", ["p"], ["c0", "c1"], **branches)
    results = [draw(st.sampled_from([*names, "c0", "c1", s])) for s in state]
    last = [node("Identity", [result], [f"r{i}"]) for i, result in enumerate(results)]
    body = helper.make_graph(
        [*first, chosen, *last, node("Identity", ["go"], ["on"])],
        "b",
        [make("i", 7, []), make("go", 9, []), *[make(s, 1, [2]) for s in state]],
        [make("on", 9, []), *[make(f"r{i}", 1, [2]) for i in range(len(state))]],
    )
    starts = [draw(st.sampled_from(outer)) for _ in state]
    graph = helper.make_graph(
        [node("Loop", ["m", "c", *starts], [f"y{i}" for i in range(len(state))], body=body)],
        "g",
        [make("x", 1, [2]), make("z", 1, [2]), make("p", 9, []), make("m", 7, []), make("c", 9, [])],
        [make(f"y{i}", 1, [2]) for i in range(len(state))],
    )
    return helper.make_model(graph, ir_version=8, opset_imports=[helper.make_opsetid("", 17)])


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(bodies(), st.integers(0, 3), st.booleans())
def test_generated_bodies_compute_the_same(proto: onnx.ModelProto, trips: int, chosen: bool) -> None:
    rng = np.random.default_rng(trips)
    feed = {name: rng.normal(size=2).astype(np.float32) for name in ("x", "z")}
    feed |= {"p": np.array(chosen), "m": np.array(trips), "c": np.array(True)}
    done = check_pass(HoistInvariants(), proto, Feeds.open([feed], read_model(proto)), samples=1, interpreted=trips > 0)
    assert sum(1 for _ in done.model.walk()) <= sum(1 for _ in read_model(proto).walk()) + 3
