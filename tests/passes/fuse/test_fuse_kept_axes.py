"""fuse-kept-axes: views behind a reduction become its keepdims."""

# ruff: noqa: E501 - the tables hold one model per line

from __future__ import annotations

import pytest

from graphopt.passes.fuse.fuse_kept_axes import FuseKeptAxes
from pass_oracle import check_pass, run_pass

FUSED: dict[str, tuple[int, str, int]] = {
    "Unsqueeze": (13, "g (float[N, 3, 8] x) => (float[N, 1, 8] y) { a = Constant<value_ints = [1]>() r = ReduceMax<axes = [1], keepdims = 0>(x) y = Unsqueeze(r, a) }", 1),
    "Reshape": (13, "g (float[N, 3, 8] x) => (float[N, 3, 1] y) { a = Constant<value_ints = [-1]>() t = Constant<value_ints = [0, 3, 1]>() r = ReduceSum<keepdims = 0>(x, a) y = Reshape(r, t) }", 1),
    "Squeeze": (11, "g (float[N, 3, 8] x) => (float[N, 3] y) { r = ReduceMean<axes = [2]>(x) y = Squeeze<axes = [2]>(r) }", 0),
    "Flatten": (11, "g (float[4, 3, 8, 8] x) => (float[4, 3] y) { r = ReduceMean<axes = [2, 3]>(x) y = Flatten(r) }", 0),
    "all axes": (13, "g (float[2, 3] x) => (float y) { r = ReduceMin(x) y = Squeeze(r) }", 0),
    "ArgMax": (13, "g (float[N, 5] x) => (int64[N] y) { a = Constant<value_ints = [1]>() r = ArgMax<axis = 1>(x) y = Squeeze(r, a) }", 0),
}  # fmt: skip
APART: dict[str, tuple[int, str]] = {
    "other place": (13, "g (float[2, 3, 8] x) => (float[1, 2, 8] y) { a = Constant<value_ints = [0]>() r = ReduceMax<axes = [1], keepdims = 0>(x) y = Unsqueeze(r, a) }"),
    "one of two axes": (11, "g (float[2, 3, 8] x) => (float[2, 1] y) { r = ReduceMean<axes = [1, 2]>(x) y = Squeeze<axes = [2]>(r) }"),
    "read elsewhere": (11, "g (float[2, 3] x) => (float[2] y, float[2, 1] z) { r = ReduceMean<axes = [1]>(x) y = Squeeze<axes = [1]>(r) z = Neg(r) }"),
    "is an output": (11, "g (float[2, 3] x) => (float[2] y, float[2, 1] r) { r = ReduceMean<axes = [1]>(x) y = Squeeze<axes = [1]>(r) }"),
    "nothing reduced": (18, "g (float[2, 1] x) => (float[2] y) { e = Constant<value_ints = [1]>() r = ReduceSum<noop_with_empty_axes = 1>(x) y = Squeeze(r, e) }"),
}  # fmt: skip


@pytest.mark.parametrize("name", FUSED)
def test_view_becomes_keepdims(name: str) -> None:
    opset, graph, keepdims = FUSED[name]
    done = check_pass(FuseKeptAxes(), f'<ir_version: 8, opset_import: ["" : {opset}]> {graph}')
    nodes = [node for _, node in done.model.walk() if node.op != "Constant"]
    assert len(nodes) == 1
    assert nodes[0].attrs["keepdims"] == keepdims


@pytest.mark.parametrize("name", APART)
def test_other_views_stay(name: str) -> None:
    opset, graph = APART[name]
    assert run_pass(FuseKeptAxes(), f'<ir_version: 8, opset_import: ["" : {opset}]> {graph}').record.patches == 0
