"""hoist-scale: what a factor passes through, where it ends, and what stops it."""

# ruff: noqa: E501 - the tables hold one model per line

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import onnx.parser
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import numpy_helper

from graphopt.passes.simplify.hoist_scale import HoistScale
from pass_oracle import check_pass, run_pass

if TYPE_CHECKING:
    from collections.abc import Callable

KINDS = {np.float32: "float", np.float64: "double", np.float16: "float16"}


def model(
    nodes: str,
    *,
    x: str = "n, 3, 4",
    rank: int = 3,
    opset: int = 17,
    dtype: Any = np.float32,
    more: str = "",
    out: str = "",
    **constants: Any,
) -> onnx.ModelProto:
    """Return a model; lists become int64 constants, numbers scalars, tuples random weights of that shape."""
    kind = KINDS[dtype]
    text = f'<ir_version: 8, opset_import: ["" : {opset}]> g ({kind}[{x}] x{more}) => ({kind}[{", ".join(f"d{i}" for i in range(rank))}] y{out}) {{ {nodes} }}'
    proto = onnx.parser.parse_model(text)
    rng = np.random.default_rng(0)
    for name, value in constants.items():
        if isinstance(value, list):
            array = np.array(value, np.int64)
        else:
            array = (rng.normal(size=value) if isinstance(value, tuple) else np.array(value)).astype(dtype)
        proto.graph.initializer.append(numpy_helper.from_array(array, name))
    return proto


QK = "q0 = MatMul(x, wq) q1 = Add(q0, bq) q2 = Reshape(q1, heads) q = Transpose<perm = [0, 2, 1, 3]>(q2) k0 = MatMul(x, wk) k1 = Reshape(k0, heads) k = Transpose<perm = [0, 2, 3, 1]>(k1)"
ATTENTION: dict[str, Any] = {"wq": (4, 4), "bq": (4,), "wk": (4, 4), "heads": [0, 0, 2, 2], "rank": 4}
W: dict[str, Any] = {"w": (4, 4), "c": 0.3}
PASSED: dict[str, dict[str, Any]] = {
    "attention": {**ATTENTION, "nodes": f"{QK} s = MatMul(q, k) y = Div(s, c)", "c": 1.4142135},
    "attention, both sides": {**ATTENTION, "nodes": f"{QK} a = Mul(q, c) b = Mul(k, c) y = MatMul(a, b)", "c": 0.5946},
    "attention, the other side": {**ATTENTION, "nodes": "q0 = MatMul(x, wq) q1 = Add(q0, bq) q2 = Reshape(q1, heads) q = Transpose<perm = [0, 2, 1, 3]>(q2) b = Mul(p, c) y = MatMul(q, b)", "more": ", float[n, 2, 2, 3] p", "c": 0.5946},
    "rotated": {**ATTENTION, "x": "n, 3, 4", "nodes": f"{QK} a, b = Split<axis = -1>(q) e = Neg(b) f = Concat<axis = -1>(e, a) g = Mul(cos, q) h = Mul(f, cos) i = Add(g, h) s = MatMul(i, k) y = Mul(s, c)", "more": ", float[3, 2] cos", "c": 0.7},
    "Slice": {**W, "nodes": "a = MatMul(x, w) s = Slice(a, b, e, t) y = Mul(s, c)", "b": [0], "e": [2], "t": [1]},
    "two Slices": {**W, "nodes": "a = MatMul(x, w) s = Slice(a, b, e, t) r = Slice(a, e, f, t) z = Concat<axis = 1>(r, s) y = Mul(z, c)", "b": [0], "e": [2], "t": [1], "f": [3]},
    "Gather": {**W, "nodes": "a = MatMul(x, w) s = Gather<axis = 1>(a, b) y = Div(s, c)", "b": [2, 0]},
    "table": {"nodes": "i = Cast<to = 7>(x) s = Gather(w, i) y = Mul(s, c)", "w": (9, 2), "c": 4.0, "rank": 4},
    "Unsqueeze, Expand, Squeeze": {**W, "nodes": "a = MatMul(x, w) u = Unsqueeze(a, z) e = Expand(u, s) f = ReduceSum<keepdims = 0>(e, z) y = Mul(f, c)", "z": [1], "s": [1, 2, 1, 1]},
    "sum of two layers": {**W, "nodes": "a = MatMul(x, w) b = MatMul(x, v) s = Sub(a, b) y = Mul(s, c)", "v": (4, 4)},
    "sum with a constant": {**W, "nodes": "a = MatMul(x, w) s = Sub(v, a) r = Relu(s) y = Mul(r, c)", "v": (4,)},
    "Where": {**W, "nodes": "a = MatMul(x, w) b = Greater(x, x) s = Where(b, v, a) y = Mul(s, c)", "v": -1e9},
    "product with data": {**W, "nodes": "r = Sigmoid(x) a = MatMul(x, w) s = Mul(r, a) y = Mul(s, c)"},
    "gated": {**W, "nodes": "a = MatMul(x, w) r = Sigmoid(a) g = Mul(a, r) u = MatMul(x, v) s = Mul(g, u) y = Mul(s, c)", "v": (4, 4)},
    "another factor": {**W, "nodes": "r = Sigmoid(x) t = Mul(r, w) u = Transpose<perm = [0, 2, 1]>(t) y = Mul(u, c)", "w": (4,)},
    "reciprocal": {"nodes": "r = Exp(x) t = Div(one, r) u = Transpose<perm = [0, 2, 1]>(t) y = Mul(u, c)", "one": 1.0, "c": 3.0},
    "pools": {"x": "n, 2, 8", "nodes": "a = Conv(x, w, b) r = Relu(a) p = MaxPool<kernel_shape = [2]>(r) q = AveragePool<kernel_shape = [2]>(p) y = Mul(q, c)", "w": (3, 2, 2), "b": (3,), "c": 2.0},
    "negative": {"x": "n, 2, 8", "nodes": "a = Conv(x, w, b) q = AveragePool<kernel_shape = [2]>(a) y = Neg(q)", "w": (3, 2, 2), "b": (3,)},
    "Gemm": {"x": "n, 4", "nodes": "a = Gemm<transB = 1, beta = 2.0>(x, w, b) q = Transpose(a) y = Mul(q, c)", "w": (3, 4), "b": (3,), "c": 2.0, "rank": 2},
    "LayerNormalization": {"nodes": "a = LayerNormalization(x, w, b) q = Transpose<perm = [0, 2, 1]>(a) y = Mul(q, c)", "w": (4,), "b": (4,), "c": 2.0},
    "LayerNormalization without bias": {"nodes": "a = LayerNormalization(x, w) q = Transpose<perm = [0, 2, 1]>(a) y = Mul(q, c)", "w": (4,), "c": 2.0},
    "constant of rank 3": {**W, "nodes": "a = MatMul(x, w) t = Transpose<perm = [0, 2, 1]>(a) y = Mul(one, t)", "one": (1, 1, 1)},
    "half precision": {**W, "nodes": "a = MatMul(x, w) t = Transpose<perm = [0, 2, 1]>(a) y = Mul(t, c)", "dtype": np.float16},
    "double precision": {**W, "nodes": "a = MatMul(x, w) t = Transpose<perm = [0, 2, 1]>(a) y = Mul(t, c)", "dtype": np.float64},
}  # fmt: skip


@pytest.mark.parametrize("case", PASSED)
def test_factor_becomes_part_of_constants(case: str) -> None:
    proto = model(**PASSED[case])
    done = check_pass(HoistScale(), proto, samples=3)
    gone = 2 if case == "attention, both sides" else 1
    assert len(done.ops) == len(proto.graph.node) - gone
    assert done.record.patches == gone
    assert [tensor.name for tensor in done.model.graph.outputs] == ["y"]


def test_golden(golden: Callable[[str], None]) -> None:
    proto = model(
        "a = MatMul(x, w) t = Transpose<perm = [0, 2, 1]>(a) s = Mul(t, c) y = Relu(s)", x="n, 1, 1", w=1.0, c=0.5
    )
    proto.graph.initializer[0].CopyFrom(numpy_helper.from_array(np.full((1, 1), 3, np.float32), "w"))
    for index, name in enumerate(("project", "turn", "scale", "act")):
        proto.graph.node[index].name = name
    golden(check_pass(HoistScale(), proto).text)


T = "a = MatMul(x, w) t = Transpose<perm = [0, 2, 1]>(a)"
STOPPED: dict[str, dict[str, Any]] = {
    "activation": {**W, "nodes": "a = MatMul(x, w) t = Tanh(a) u = Transpose<perm = [0, 2, 1]>(t) y = Mul(u, c)"},
    "negative factor of Relu": {**W, "nodes": "a = MatMul(x, w) t = Relu(a) y = Mul(t, c)", "c": -2.0},
    "one number per channel": {**W, "nodes": f"{T} y = Mul(t, c)", "c": (4, 1)},
    "result read twice": {**W, "nodes": f"{T} s = Mul(t, c) y = Add(s, t)"},
    "something on the way read twice": {**W, "nodes": f"{T} s = Mul(t, c) u = Transpose<perm = [0, 2, 1]>(s) y = Add(u, a)"},
    "something on the way given out": {**W, "nodes": f"{T} y = Mul(t, c)", "out": ", float[a0, b0, c0] a"},
    "squared": {**W, "nodes": "a = MatMul(x, w) s = Mul(a, a) y = Mul(s, c)"},
    "divisor": {**W, "nodes": "a = MatMul(x, w) r = Abs(x) s = Div(r, a) y = Mul(s, c)"},
    "one part of a Split": {**W, "nodes": "a = MatMul(x, w) s, r = Split<axis = -1>(a) t = Mul(s, c) y = Concat<axis = -1>(t, r)"},
    "GELU": {**W, "nodes": "b = MatMul(x, w) a = Div(b, r) e = Erf(a) f = Add(e, one) g = Mul(b, f) y = Mul(g, c)", "r": 1.4142135, "one": 1.0, "c": 0.5},
    "input of the graph": {"nodes": "t = Transpose<perm = [0, 2, 1]>(x) y = Mul(t, c)", "c": 2.0},
    "more axes than the input": {**W, "nodes": f"{T} y = Mul(t, c)", "c": (1, 1, 1, 1), "rank": 4},
    "very small": {**W, "nodes": f"{T} y = Mul(t, c)", "c": 1e-12},
    "large, half precision": {**W, "nodes": f"{T} y = Mul(t, c)", "c": 8.0, "dtype": np.float16},
    "zero": {**W, "nodes": f"{T} y = Mul(t, c)", "c": 0.0},
    "weight of two large layers": {"x": "n, 3, 40", "nodes": f"{T} s = Mul(t, c) b = MatMul(x, w) u = Transpose<perm = [0, 2, 1]>(b) y = Add(s, u)", "w": (40, 40), "c": 0.5},
}  # fmt: skip


@pytest.mark.parametrize("case", STOPPED)
def test_factor_that_cannot_move_stays(case: str) -> None:
    proto = model(**STOPPED[case])
    done = run_pass(HoistScale(), proto, verify="fast")
    assert done.record.patches == 0
    assert done.ops == [node.op_type for node in proto.graph.node]


def test_power_of_two_is_exact() -> None:
    proto = model(**{**PASSED["attention"], "c": 4.0})
    done = check_pass(HoistScale(), proto)
    feed = {"x": np.random.default_rng(1).normal(size=(2, 3, 4)).astype(np.float32)}
    from graphopt.verify.reference import evaluate

    first, second = (evaluate(part, [feed])[0]["y"] for part in (done.before, done.model))
    assert np.array_equal(first, second)


def test_search_gives_up_in_bounded_time() -> None:
    lines = ["a0 = MatMul(x, w)", "b0 = MatMul(x, w)"]
    lines += [f"a{i + 1} = Mul(a{i}, b{i}) b{i + 1} = Mul(b{i}, a{i})" for i in range(60)]
    done = run_pass(HoistScale(), model(" ".join([*lines, "y = Mul(a60, c)"]), **W), verify="fast")
    assert done.record.patches == 0


_STEPS = ("t = Transpose<perm = [0, 2, 1]>({0})", "t = Neg({0})", "t = Relu({0})", "t = Add({0}, k)", "t = Mul({0}, k)", "t = Tanh({0})", "t = Sub(r, {0})", "t = Concat<axis = 1>({0}, {0})", "t = Slice({0}, one, two, one)", "t = MatMul({0}, m)", "t = Where(cond, {0}, k)", "t = Abs({0})")  # fmt: skip


@settings(max_examples=80, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.data())
def test_generated_chains_hold_the_rounding_bound(data: st.DataObject) -> None:
    lines, current = ["h = MatMul(x, w)", "r = Sigmoid(x)", "cond = Greater(r, k)"], "h"
    for index in range(data.draw(st.integers(1, 5))):
        if data.draw(st.integers(0, 9)) == 0:
            lines.append(f"e{index} = Add({current}, {current})")
            current = f"e{index}"
        step = data.draw(st.sampled_from(_STEPS)).format(current)
        lines.append(step.replace("t =", f"t{index} =", 1))
        current = f"t{index}"
    operands = data.draw(st.sampled_from([f"{current}, c", f"c, {current}"]))
    lines.append(f"y = Mul({operands})")
    factor = data.draw(st.sampled_from([0.3, -2.0, 4.0]))
    proto = model(" ".join(lines), x="1, 4, 4", w=(4, 4), m=(4, 4), k=0.7, c=factor, one=[1], two=[3])
    try:
        onnx.checker.check_model(proto, full_check=True)
    except onnx.shape_inference.InferenceError:
        return
    check_pass(HoistScale(), proto, samples=1)
