"""merge-scatters: regions written one after the other are one Concat; anything less regular stays."""

# ruff: noqa: E501 - the tables hold one model per line

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import onnx
import onnx.parser
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import helper, numpy_helper

from graphopt.graph import read_model
from graphopt.passes.simplify.merge_scatters import MergeScatters
from graphopt.rewrite.manager import PassManager
from pass_oracle import check_pass

if TYPE_CHECKING:
    from collections.abc import Callable

HEAD = '<ir_version: 8, opset_import: ["" : 17]>\n'
ROWS = "int64[1, 1] r0 = {0}, int64[1, 1] r1 = {1}, int64[1, 1] r2 = {2}, int64[2, 1] r12 = {1, 2}, int64[1, 1] last = {-1}, int64[3, 1] all = {0, 1, 2}, int64 one = {1}, int64 two = {2}"

GONE: dict[str, tuple[str, list[str]]] = {
    "everything": (f"g (float[3, 2] x, float[3, 2] u) => (float[3, 2] y) <{ROWS}> {{ s = ScatterND(x, all, u) y = Neg(s) }}", ["Neg"]),
    "row by row": (f"g (float[3, 2] x, float[1, 2] u, float[1, 2] v, float[1, 2] w) => (float[3, 2] y) <{ROWS}> {{ a = ScatterND(x, r0, u) b = ScatterND(a, r1, v) y = ScatterND(b, r2, w) }}", ["Concat"]),
    "in any order": (f"g (float[3, 2] x, float[1, 2] u, float[2, 2] v) => (float[3, 2] y) <{ROWS}> {{ a = ScatterND(x, r12, v) y = ScatterND(a, r0, u) }}", ["Concat"]),
    "counted from the end": (f"g (float[2, 2] x, float[1, 2] u, float[1, 2] v) => (float[2, 2] y) <{ROWS}> {{ a = ScatterND(x, r0, u) y = ScatterND(a, last, v) }}", ["Concat"]),
    "written twice": (f"g (float[2, 2] x, float[1, 2] u, float[1, 2] v, float[1, 2] w) => (float[2, 2] y) <{ROWS}> {{ a = ScatterND(x, r0, u) b = ScatterND(a, r1, v) y = ScatterND(b, r0, w) }}", ["Concat"]),
    "read before it is written": (f"g (float[3, 2] x, float[1, 2] u, float[2, 2] v) => (float[3, 2] y, float[2] z) <{ROWS}> {{ a = ScatterND(x, r0, u) z = Gather(a, two) y = ScatterND(a, r12, v) }}", ["Gather", "Concat"]),
    "read after it is written": (f"g (float[3, 2] x, float[1, 2] u, float[2, 2] v) => (float[3, 2] y, float[1, 2] z) <{ROWS}, int64[1] s = {{0}}, int64[1] e = {{1}}> {{ a = ScatterND(x, r0, u) q = Slice(a, s, e, s) z = Neg(q) y = ScatterND(a, r12, v) }}", ["Neg", "Concat"]),
    "read after it is written, public": (f"g (float[3, 2] x, float[1, 2] u, float[1, 2] v, float[1, 2] w) => (float[3, 2] y, float[1, 2] z) <{ROWS}, int64[1] s = {{0}}, int64[1] e = {{1}}> {{ a = ScatterND(x, r0, u) z = Slice(a, s, e, s) b = ScatterND(a, r1, v) y = ScatterND(b, r2, w) }}", ["Identity", "Concat"]),
    "what is left of the data": (f"g (float[4, 2] x, float[1, 2] u, float[1, 2] v, float[1, 2] w) => (float[4, 2] y) <{ROWS}> {{ a = ScatterND(x, r0, u) b = ScatterND(a, r1, v) y = ScatterND(b, r2, w) }}", ["Slice", "Concat"]),
    "computed indices": (f"g (float[3, 2] x, float[1, 2] u, float[2, 2] v) => (float[3, 2] y) <{ROWS}> {{ d = Sub(r1, r1) a = ScatterND(x, d, u) e = Concat<axis = 0>(r1, r2) y = ScatterND(a, e, v) }}", ["Concat"]),
    "two axes": ("g (float[2, 3] x, float[2, 1] u, float[2, 2] v) => (float[2, 3] y) <int64[2, 1, 2] i = {0, 0, 1, 0}, int64[2, 2, 2] j = {0, 1, 0, 2, 1, 1, 1, 2}> { a = ScatterND(x, i, u) y = ScatterND(a, j, v) }", ["Concat"]),
    "ScatterElements": ("g (float[2, 3] x, float[2, 1] u, float[2, 2] v) => (float[2, 3] y) <int64[2, 1] i = {0, -3}, int64[2, 2] j = {1, 2, 1, 2}> { a = ScatterElements<axis = 1>(x, i, u) y = ScatterElements<axis = -1>(a, j, v) }", ["Concat"]),
}  # fmt: skip

STAYS: dict[str, str] = {
    "a part": f"g (float[3, 2] x, float[1, 2] u) => (float[3, 2] y) <{ROWS}> {{ y = ScatterND(x, r0, u) }}",
    "sums": f"g (float[3, 2] x, float[3, 2] u) => (float[3, 2] y) <{ROWS}> {{ y = ScatterND<reduction = \"add\">(x, all, u) }}",
    "rows in another order": "g (float[3, 2] x, float[3, 2] u) => (float[3, 2] y) <int64[3, 1] i = {0, 2, 1}> { y = ScatterND(x, i, u) }",
    "a row twice": "g (float[3, 2] x, float[3, 2] u) => (float[3, 2] y) <int64[3, 1] i = {0, 1, 1}> { y = ScatterND(x, i, u) }",
    "elements": "g (float[2, 2] x, float[2] u) => (float[2, 2] y) <int64[2, 2] i = {0, 0, 1, 1}> { y = ScatterND(x, i, u) }",
    "different axes": "g (float[2, 2] x, float[1, 2] u, float[2, 1] v) => (float[2, 2] y) <int64[1, 1] i = {0}, int64[2, 1, 2] j = {0, 0, 1, 0}> { a = ScatterND(x, i, u) y = ScatterND(a, j, v) }",
    "overlapping parts": "g (float[3, 2] x, float[2, 2] u, float[2, 2] v) => (float[3, 2] y) <int64[2, 1] i = {0, 1}, int64[2, 1] j = {1, 2}> { a = ScatterND(x, i, u) y = ScatterND(a, j, v) }",
    "read as a whole in between": f"g (float[3, 2] x, float[1, 2] u, float[2, 2] v) => (float[3, 2] y, float[3, 2] z) <{ROWS}> {{ a = ScatterND(x, r0, u) z = Neg(a) y = ScatterND(a, r12, v) }}",
    "read across the border in between": f"g (float[3, 2] x, float[1, 2] u, float[2, 2] v) => (float[3, 2] y, float[2, 2] z) <{ROWS}, int64[1] s = {{0}}, int64[1] e = {{2}}> {{ a = ScatterND(x, r0, u) z = Slice(a, s, e, s) y = ScatterND(a, r12, v) }}",
    "public in between": f"g (float[3, 2] x, float[1, 2] u, float[2, 2] v) => (float[3, 2] y, float[3, 2] a) <{ROWS}> {{ a = ScatterND(x, r0, u) y = ScatterND(a, r12, v) }}",
    "a free axis": f"g (float[n, 2] x, float[1, 2] u) => (float[n, 2] y) <{ROWS}> {{ y = ScatterND(x, r0, u) }}",
}  # fmt: skip


@pytest.mark.parametrize("case", GONE)
def test_regions_become_a_concat(case: str) -> None:
    source, ops = GONE[case]
    done = check_pass(MergeScatters(), HEAD + source)
    assert [op for op in done.ops if op not in ("Sub", "Constant")] == ops


@pytest.mark.parametrize("case", STAYS)
def test_what_is_no_region_stays(case: str) -> None:
    assert check_pass(MergeScatters(), HEAD + STAYS[case]).record.patches == 0


def test_old_slices_have_attributes() -> None:
    source = GONE["what is left of the data"][0]
    done = check_pass(
        MergeScatters(), '<ir_version: 4, opset_import: ["" : 9]> ' + _as_elements(source), interpreted=False
    )
    assert done.ops == ["Slice", "Concat"]
    assert done.model.graph.nodes[0].attrs["starts"] == [3]


def _as_elements(source: str) -> str:
    """Write single rows of two elements with Scatter, which is older than ScatterND."""
    rows = ", ".join(f"int64[1, 2] r{row} = {{{row}, {row}}}" for row in range(3))
    return source.replace(ROWS, rows).replace("ScatterND", "Scatter")


def test_golden(golden: Callable[[str], None]) -> None:
    golden(check_pass(MergeScatters(), HEAD + GONE["what is left of the data"][0]).text)


@st.composite
def caches(draw: st.DrawFn) -> onnx.ModelProto:
    """A tensor of which parts are overwritten and read in turn, along one axis, now and then along another."""
    shape = draw(st.tuples(st.integers(1, 3), st.integers(2, 5), st.integers(1, 2)))
    main = draw(st.integers(0, 2))
    kind = draw(st.sampled_from(["ScatterND", "ScatterElements"]))
    make, node = helper.make_tensor_value_info, helper.make_node
    nodes, inputs, outputs, constants = [], [make("x", 1, shape)], [], []

    def constant(name: str, value: list[int] | np.ndarray) -> str:
        constants.append(numpy_helper.from_array(np.asarray(value, np.int64), name))
        return name

    current = "x"
    for step in range(draw(st.integers(1, 5))):
        axis = main if draw(st.integers(0, 5)) else draw(st.integers(0, 2))
        start = draw(st.integers(0, shape[axis] - 1))
        stop = draw(st.integers(start + 1, shape[axis]))
        box = [stop - start if i == axis else size for i, size in enumerate(shape)]
        ranges = [np.arange(start, stop) if i == axis else np.arange(size) for i, size in enumerate(shape)]
        grid = np.meshgrid(*ranges, indexing="ij")
        indices = np.stack(grid, -1) if kind == "ScatterND" else grid[axis]
        if draw(st.booleans()):
            indices = indices - (np.array(shape) if kind == "ScatterND" else shape[axis])
        inputs.append(make(f"u{step}", 1, box))
        attrs = {} if kind == "ScatterND" else {"axis": axis}
        nodes.append(node(kind, [current, constant(f"i{step}", indices), f"u{step}"], [f"t{step}"], **attrs))
        current = f"t{step}"
        if draw(st.booleans()):
            first = draw(st.integers(0, shape[main] - 1))
            last = draw(st.integers(first + 1, shape[main]))
            bounds = [constant(f"{name}{step}", [value]) for name, value in (("s", first), ("e", last), ("a", main))]
            nodes.append(node("Slice", [current, *bounds], [f"q{step}"]))
            nodes.append(node("Neg", [f"q{step}"], [f"o{step}"]))
            outputs.append(make(f"o{step}", 1, [last - first if i == main else size for i, size in enumerate(shape)]))
    nodes.append(node("Abs", [current], ["y"]))
    graph = helper.make_graph(nodes, "g", inputs, [make("y", 1, shape), *outputs], constants)
    return helper.make_model(graph, ir_version=8, opset_imports=[helper.make_opsetid("", 17)])


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(caches())
def test_generated_caches_compute_the_same(proto: onnx.ModelProto) -> None:
    done = check_pass(MergeScatters(), proto, samples=1)
    assert sum(1 for _ in done.model.walk()) <= len(proto.graph.node)


@pytest.mark.slow
@pytest.mark.skipif("GRAPHOPT_ASSETS" not in os.environ, reason="needs the model files")
def test_caches_of_a_streaming_model() -> None:
    model = read_model(Path(os.environ["GRAPHOPT_ASSETS"]) / "models/gtcrn_stream_op11_simplified.onnx")
    done = check_pass(MergeScatters(), model, samples=1, interpreted=False)
    assert done.record.patches == 7
    assert "ScatterND" not in done.ops
    assert PassManager(["merge-scatters"]).run(done.model).patches == 0
