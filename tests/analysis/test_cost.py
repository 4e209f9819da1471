"""Cost per node against sums done by hand, and totals over bodies and functions."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest

from graphopt.analysis import Cost, Facts
from graphopt.solve.pack_sparse import pack_sparse
from shape_agreement import read_text

if TYPE_CHECKING:
    from graphopt.graph import Model

HEAD = '<ir_version: 9, opset_import: ["" : 17{}]>\n'


def read(body: str, more: str = "") -> Model:
    return read_text(HEAD.format(more) + body)


def cost_of(body: str, more: str = "") -> tuple[str, str, str, int]:
    model = read(body, more)
    cost = Facts(model).get(Cost).of(next(iter(model.graph.nodes)))
    return str(cost.flops), str(cost.read_bytes), str(cost.written_bytes), cost.dispatches


@pytest.mark.parametrize(
    ("body", "flops", "read_bytes", "written_bytes"),
    [
        ("g (float[b, 8] x, float[8, 5] w) => (float y) { y = MatMul (x, w) }", "80*b", "32*b + 160", "20*b"),
        (
            "g (float[8, b] x, float[8, 5] w, float[5] c) => (float y) { y = Gemm <transA = 1> (x, w, c) }",
            "85*b",
            "32*b + 180",
            "20*b",
        ),
        (
            "g (float[1, 4, 9, 9] x, float[6, 2, 3, 3] w, float[6] c) => (float y) { y = Conv <group = 2> (x, w, c) }",
            str(2 * 6 * 49 * 2 * 9 + 6 * 49),
            str(4 * (4 * 81 + 6 * 18 + 6)),
            str(4 * 6 * 49),
        ),
        (
            "g (float[1, 4, 5, 5] x, float[4, 6, 3, 3] w) => (float y) { y = ConvTranspose (x, w) }",
            str(2 * 4 * 25 * 6 * 9),
            str(4 * (100 + 216)),
            str(4 * 6 * 49),
        ),
        (
            "g (float[1, 2, 6, 6] x) => (float y) { y = MaxPool <kernel_shape = [2, 3], strides = [2, 3]> (x) }",
            str(2 * 3 * 2 * 6),
            "288",
            str(4 * 12),
        ),
        ("g (float[b, 6] x) => (float y) { y = ReduceMean <axes = [1]> (x) }", "6*b", "24*b", "4*b"),
        ("g (float[b, 6] x) => (float y) { y = Softmax (x) }", "72*b", "24*b", "24*b"),
        ("g (float[b, 6] x) => (float y) { y = Erf (x) }", "48*b", "24*b", "24*b"),
        ("g (float[b, 6] x) => (float y) { y = Relu (x) }", "6*b", "24*b", "24*b"),
        ("g (float[b, 6] x) => (float y) { y = Transpose (x) }", "0", "24*b", "24*b"),
        ("g (float[b, 6] x) => (int64 y) { y = Shape (x) }", "0", "0", "0"),
        ("g (float[b, 6] x, int64[2] s) => (float y) { y = Reshape (x, s) }", "0", "0", "0"),
        ("g (float[900, 6] x, int64[n] i) => (float y) { y = Gather (x, i) }", "0", "32*n", "24*n"),
        (
            """g (float[s, b, 4] x, float[1, 12, 4] w, float[1, 12, 3] r) => (float y) {
                y = LSTM <hidden_size = 3> (x, w, r)
            }""",
            "168*b*s",
            "16*b*s + 336",
            "12*b*s",
        ),
        (
            'g (float[b, 8] x, float[8, 5] w) => (float y) { y = Einsum <equation = "bi,io->bo"> (x, w) }',
            "80*b",
            "32*b + 160",
            "20*b",
        ),
        (
            "g (float[b, 8] x, float s, uint8 z) => (float y) { y = QuantizeLinear (x, s, z) }",
            "32*b",
            "32*b + 5",
            "8*b",
        ),
    ],
)
def test_cost_of_one_node(body: str, flops: str, read_bytes: str, written_bytes: str) -> None:
    assert cost_of(body) == (flops, read_bytes, written_bytes, 1)


def test_a_constant_costs_nothing() -> None:
    assert cost_of("g () => (float y) { y = Constant <value = float[2] {1, 2}> () }") == ("0", "0", "0", 0)


@pytest.mark.parametrize("block_rows", [1, 4])
def test_the_sparse_kernel_counts_the_entries_of_its_packed_weight(block_rows: int) -> None:
    dense = np.zeros((64, 16), np.float32)
    dense[::2, :4] = 1
    packed = pack_sparse(dense, block_rows=block_rows)
    numbers = ", ".join(map(str, packed.tolist()))
    node = "y = ai.graphopt.SparseMatMul <K = 64, N = 16> (x, w)"
    body = f"g (float[b, 64] x) => (float y) <uint8[{packed.size}] w = {{{numbers}}}> {{ {node} }}"
    assert cost_of(body, ', "ai.graphopt" : 1') == ("256*b", f"256*b + {packed.size}", "64*b", 1)
    body = f"g (float[b, 64] x) => (float y) <uint8[3] w = {{1, 2, 3}}> {{ {node} }}"
    assert cost_of(body, ', "ai.graphopt" : 1')[0] == "None"


def test_the_sparse_int8_kernel_counts_the_blocks_of_its_packed_weight() -> None:
    node = 'ai.graphopt.SparseInt8MatMul <K = 64, N = 16, output = "uint8", y_scale = 0.1> (x, w)'
    body = f"g (uint8[b, 64] x, uint8[600] w) => (uint8 y) {{ y = {node} }}"
    assert cost_of(body, ', "ai.graphopt" : 1') == ("800*b", "64*b + 600", "16*b", 1)


def test_unknown_shapes_cost_none_and_are_counted() -> None:
    model = read("g (float x, bool c) => (float y) { a = own.Mystery (x)  y = Relu (a) }", ', "own" : 1')
    cost = Facts(model).get(Cost)
    assert cost.of(model.graph.nodes[1]).flops is None
    total = cost.total()
    assert (total.flops, total.unknown, total.dispatches) == (0, 2, 2)


def test_totals_take_sizes_or_a_default() -> None:
    model = read("g (float[b, 8] x, float[8, 5] w) => (float y) { a = MatMul (x, w)  y = Relu (a) }")
    cost = Facts(model).get(Cost)
    total = cost.total({"b": 10})
    assert (total.flops, total.dispatches, total.unknown) == (800 + 50, 2, 0)
    assert total.read_bytes == 4 * (80 + 40 + 50)
    assert total.written_bytes == 4 * (50 + 50)
    assert cost.total(default=10) == total
    assert cost.total().unknown == 2


def test_the_costlier_branch_and_every_iteration_count() -> None:
    model = read(
        """g (float[4] x, bool c) => (float y) <int64 n = {7}, bool go = {1}> {
            a = If (c) <
                then_branch = then () => (t) { t = Exp (x) },
                else_branch = other () => (e) { e = Relu (x) }
            >
            y = Loop (n, go, a) <
                body = step (int64 i, bool k, float[4] s) => (k2, r) { k2 = Identity (k)  r = Neg (s) }>
        }"""
    )
    cost = Facts(model).get(Cost)
    branch, loop = model.graph.nodes
    assert cost.node_total(branch).flops == 8 * 4
    assert cost.node_total(loop).flops == 7 * 4
    assert cost.node_total(loop).dispatches == 1 + 7 * 2
    assert cost.total().flops == 32 + 28


def test_a_call_costs_what_its_function_does() -> None:
    model = read_text(
        """<ir_version: 9, opset_import: ["" : 17, "own" : 1]>
        g (float[4] x) => (float y) { a = own.f (x)  y = own.f (a) }
        <domain: "own", opset_import: ["" : 17]>
        f (p) => (r) { q = Relu (p)  r = Neg (q) }"""
    )
    total = Facts(model).get(Cost).total()
    assert (total.flops, total.dispatches, total.unknown) == (16, 4, 0)
