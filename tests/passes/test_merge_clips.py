"""merge-clips: bounds are clamped in turn, and neither NaN nor the sign of a zero changes."""

# ruff: noqa: E501 - the tables hold one model per line

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import helper, numpy_helper

from graphopt.graph import constant_value
from graphopt.passes.simplify.merge_clips import MergeClips
from odd_numbers import check_on_odd
from pass_oracle import run_pass

if TYPE_CHECKING:
    from collections.abc import Callable

HEAD = '<ir_version: 9, opset_import: ["" : 19]>\n'

MERGED: dict[str, tuple[str, str, list[float]]] = {
    "Relu of Relu": ("{ a = Relu(x) y = Relu(a) }", "Relu", []),
    "Clip of Relu": ("<float l = {0}, float h = {6}> { a = Relu(x) y = Clip(a, l, h) }", "Clip", [0, 6]),
    "Relu of Clip below 0": ("<float l = {-2}, float h = {-1}> { a = Clip(x, l, h) y = Relu(a) }", "", []),
    "Relu of Clip": ("<float l = {-2}, float h = {3}> { a = Clip(x, l, h) y = Relu(a) }", "Clip", [0, 3]),
    "Clip of Clip": ("<float l = {-2}, float h = {3}, float m = {1}, float k = {9}> { a = Clip(x, l, h) y = Clip(a, m, k) }", "Clip", [1, 3]),
    "Clip apart from Clip": ("<float l = {-2}, float h = {-1}, float m = {1}, float k = {9}> { a = Clip(x, l, h) y = Clip(a, m, k) }", "Clip", [1, 1]),
    "bounds the wrong way round": ("<float l = {5}, float h = {3}, float m = {1}, float k = {4}> { a = Clip(x, l, h) y = Clip(a, m, k) }", "Clip", [3, 3]),
    "Clip without an upper bound": ("<float l = {1}, float h = {6}> { a = Clip(x, l) y = Clip(a, , h) }", "Clip", [1, 6]),
    "Relu of Clip without bounds": ("{ a = Clip(x) y = Relu(a) }", "Clip", [0, float(np.finfo(np.float32).max)]),
    "Min of Relu": ("<float h = {6}> { a = Relu(x) y = Min(h, a) }", "Clip", [0, 6]),
    "Min of Max": ("<float l = {-1}, float[1] h = {6}> { a = Max(x, l) y = Min(a, h) }", "Clip", [-1, 6]),
    "Max of Max": ("<float l = {-1}, float h = {2}> { a = Max(x, l) y = Max(a, h) }", "Clip", [2, float("inf")]),
    "-0 below 0": ("<float l = {-0.0}, float h = {6}> { a = Clip(x, l, h) y = Relu(a) }", "Clip", [-0.0, 6]),
}  # fmt: skip

STAYS: dict[str, str] = {
    "another reader": "g (float[n] x) => (float[n] y, float[n] z) { a = Relu(x) y = Relu(a) z = Neg(a) }",
    "bound not constant": "g (float[n] x, float l) => (float[n] y) { a = Relu(x) y = Clip(a, l) }",
    "Max with 0": "g (float[n] x) => (float[n] y) <float l = {0}, float h = {6}> { a = Max(x, l) y = Min(a, h) }",
    "Max with a vector": "g (float[n, 2] x) => (float[n, 2] y) <float[2] l = {1, 2}> { a = Relu(x) y = Max(a, l) }",
    "Max that broadcasts": "g (float[2] x) => (float[3, 2] y) <float[3, 1] l = {1, 1, 1}> { a = Relu(x) y = Max(a, l) }",
    "Max of three": "g (float[n] x, float[n] z) => (float[n] y) <float l = {1}> { a = Relu(x) y = Max(a, l, z) }",
    "alone": "g (float[n] x) => (float[n] y) { y = Relu(x) }",
}  # fmt: skip


@pytest.mark.parametrize("case", MERGED)
def test_chain_becomes_one_clamp(case: str) -> None:
    body, op, bounds = MERGED[case]
    done = check_on_odd(MergeClips(), f"{HEAD}g (float[n] x) => (float[n] y) {body}")
    if not op:
        assert done.ops == ["Clip", "Relu"]
        assert "do not overlap" in done.skips.popitem()[1]
        return
    assert done.ops == [op], done.text
    found = np.array([constant_value(tensor) for tensor in done.model.graph.nodes[0].inputs[1:]], np.float64)
    assert found.tolist() == bounds
    assert np.signbit(found).tolist() == np.signbit(np.array(bounds, np.float64)).tolist()


@pytest.mark.parametrize("case", STAYS)
def test_what_is_not_proved_stays(case: str) -> None:
    done = run_pass(MergeClips(), HEAD + STAYS[case], verify="fast")
    assert done.record.patches == 0, done.text


def test_integers() -> None:
    text = (
        "g (int32[n] x) => (int32[n] y) <int32 l = {0}, int32 h = {6}> { a = Max(x, l) b = Clip(a, l) y = Min(b, h) }"
    )
    done = check_on_odd(MergeClips(), HEAD + text)
    assert done.ops == ["Clip"]


def test_attributes_of_old_opsets(golden: Callable[[str], None]) -> None:
    text = '<ir_version: 5, opset_import: ["" : 10]> g (float[n] x) => (float[n] y) { a = Relu(x) b = Clip<max = 6.0>(a) y = Clip<min = 1.0>(b) }'
    done = check_on_odd(MergeClips(), text)
    golden(done.text)
    assert done.ops == ["Clip"]


BOUNDS = st.sampled_from([-np.inf, -3.0, -1.0, -0.0, 0.0, 1.0, 6.0, np.inf])


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    st.lists(st.tuples(st.sampled_from(["Relu", "Clip", "Min", "Max"]), BOUNDS, BOUNDS), min_size=2, max_size=4),
    st.sampled_from([np.float32, np.float64, np.float16]),
)
def test_generated_chains_keep_every_bit(chain: list[tuple[str, float, float]], dtype: Any) -> None:
    nodes, constants, before = [], [], "x"
    for step, (op, low, high) in enumerate(chain):
        names = {"Relu": [], "Clip": [f"l{step}", f"h{step}"], "Min": [f"h{step}"], "Max": [f"l{step}"]}[op]
        nodes.append(helper.make_node(op, [before, *names], [f"t{step}"]))
        bounds = {name: np.array(low if name[0] == "l" else high, dtype) for name in names}
        constants += [numpy_helper.from_array(value, name) for name, value in bounds.items()]
        before = f"t{step}"
    nodes.append(helper.make_node("Identity", [before], ["y"]))
    kind = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    given_, made = (helper.make_tensor_value_info(name, kind, ["n"]) for name in "xy")
    graph = helper.make_graph(nodes, "g", [given_], [made], constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)], ir_version=9)
    onnx.checker.check_model(model)
    check_on_odd(MergeClips(), model, interpreted=False)
