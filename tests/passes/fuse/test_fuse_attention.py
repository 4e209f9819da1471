"""fuse-attention: two products with a softmax between them become one Attention."""

# ruff: noqa: E501 - the tables hold one model per line

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import onnx.parser
import pytest

from graphopt.graph import Model, read_model
from graphopt.passes.convert.raise_opset import RaiseOpset
from graphopt.passes.fuse.fuse_attention import FuseAttention
from graphopt.rewrite.manager import PassManager
from pass_oracle import check_pass, run_pass

CONSTANTS = (
    "c = Constant<value_float = 2.0>() d = Constant<value_float = 0.5>() heads = Constant<value_ints = [0, 0, 2, 4]>() "
    "merged = Constant<value_ints = [0, 0, 8]>()"
)
FOUR = "float[B, 2, S, 4] q, float[B, 2, T, 4] k, float[B, 2, T, 4] v"
THREE = "float[B, S, 8] q, float[B, T, 8] k, float[B, T, 8] v"
SPLIT = (
    "q1 = Reshape(q, heads) q2 = Transpose<perm = [0, 2, 1, 3]>(q1) k1 = Reshape(k, heads) "
    "v1 = Reshape(v, heads) v2 = Transpose<perm = [0, 2, 1, 3]>(v1)"
)
KEYS = "k2 = Transpose<perm = [0, 2, 3, 1]>(k1)"
MERGE = "o1 = Transpose<perm = [0, 2, 1, 3]>(o) y = Reshape(o1, merged)"


def model_of(inputs: str, body: str, opset: int = 23, y: str = "float[B, 2, S, 4]") -> Model:
    text = f'<ir_version: 10, opset_import: ["" : {opset}]> g ({inputs}) => ({y} y) {{ {CONSTANTS} {body} }}'
    return read_model(onnx.parser.parse_model(text))


def ops(done_ops: list[str]) -> list[str]:
    return [op for op in done_ops if op != "Constant"]


FUSED: dict[str, tuple[str, str, list[str]]] = {
    "scale behind": (FOUR, "t = Transpose<perm = [0, 1, 3, 2]>(k) s = MatMul(q, t) z = Div(s, c) p = Softmax(z) y = MatMul(p, v)", ["Attention"]),
    "scale on q": (FOUR, "t = Transpose<perm = [0, 1, 3, 2]>(k) r = Mul(q, d) s = MatMul(r, t) p = Softmax(s) y = MatMul(p, v)", ["Attention"]),
    "scale on both": (FOUR, "t = Transpose<perm = [0, 1, 3, 2]>(k) r = Mul(d, q) u = Mul(t, d) s = MatMul(r, u) p = Softmax<axis = 3>(s) y = MatMul(p, v)", ["Attention"]),
    "scale on k before the turn": (FOUR, "u = Mul(k, d) t = Transpose<perm = [0, 1, 3, 2]>(u) s = MatMul(q, t) p = Softmax(s) y = MatMul(p, v)", ["Attention"]),
    "no scale": (FOUR, "t = Transpose<perm = [0, 1, 3, 2]>(k) s = MatMul(q, t) p = Softmax(s) y = MatMul(p, v)", ["Attention"]),
    "full mask": (f"{FOUR}, float[B, 1, S, T] n", "t = Transpose<perm = [0, 1, 3, 2]>(k) s = MatMul(q, t) a = Add(n, s) p = Softmax(a) y = MatMul(p, v)", ["Attention"]),
    "mask of rows and columns": (f"{FOUR}, float[S, T] n", "t = Transpose<perm = [0, 1, 3, 2]>(k) s = MatMul(q, t) z = Mul(s, d) a = Add(z, n) p = Softmax(a) y = MatMul(p, v)", ["Attention"]),
    "mask of one row": (f"{FOUR}, float[B, 1, 1, T] n", "t = Transpose<perm = [0, 1, 3, 2]>(k) s = MatMul(q, t) z = Mul(s, d) a = Add(z, n) p = Softmax(a) y = MatMul(p, v)", ["Shape", "Concat", "Expand", "Attention"]),
    "replaced scores": (f"{FOUR}, bool[S, T] n", "t = Transpose<perm = [0, 1, 3, 2]>(k) s = MatMul(q, t) z = Div(s, c) low = Constant<value_float = -1000000000.0>() a = Where(n, z, low) p = Softmax(a) y = MatMul(p, v)", ["Where", "Attention"]),
    "replaced scores and a summand": (f"{FOUR}, bool[1, 1, S, T] n, float[B, 1, 1, T] n2", "t = Transpose<perm = [0, 1, 3, 2]>(k) s = MatMul(q, t) z = Div(s, c) low = Constant<value_float = -1000000000.0>() closed = Not(n) w = Where(closed, low, z) a = Add(n2, w) p = Softmax(a) y = MatMul(p, v)", ["Not", "Where", "Add", "Attention"]),
    "turned keys": ("float[B, 2, S, 4] q, float[B, 2, 4, T] k, float[B, 2, T, 4] v", "s = MatMul(q, k) z = Mul(s, d) p = Softmax(z) y = MatMul(p, v)", ["Transpose", "Attention"]),
    "three axes": (THREE, f"{SPLIT} {KEYS} s = MatMul(q2, k2) z = Div(s, c) p = Softmax(z) o = MatMul(p, v2) {MERGE}", ["Attention"]),
    "three axes, two turns of k": (THREE, f"{SPLIT} k3 = Transpose<perm = [0, 2, 1, 3]>(k1) k2 = Transpose<perm = [0, 1, 3, 2]>(k3) s = MatMul(q2, k2) p = Softmax(s) o = MatMul(p, v2) {MERGE}", ["Attention"]),
    "three axes, mask": (f"{THREE}, float[B, 1, 1, T] n", f"{SPLIT} {KEYS} s = MatMul(q2, k2) z = Div(s, c) a = Add(z, n) p = Softmax(a) o = MatMul(p, v2) {MERGE}", ["Shape", "Concat", "Expand", "Attention"]),
    "three axes, result of four": (THREE, f"{SPLIT} {KEYS} s = MatMul(q2, k2) z = Div(s, c) p = Softmax(z) y = MatMul(p, v2)", ["Reshape", "Transpose", "Reshape", "Reshape", "Transpose", "Transpose", "Attention"]),
}  # fmt: skip
SHARED_HEADS = {
    "Gather": "i = Constant<value_ints = [0, 0, 1, 1]>() k4 = Gather<axis = 1>(k, i) v4 = Gather<axis = 1>(v, i)",
    "Expand": "two = Constant<value_ints = [2]>() w = Shape(k) n = Constant<value_ints = [1, 1, 2, 1, 1]>() m = Constant<value_ints = [0, 4, -1, 4]>() k5 = Unsqueeze(k, two) k6 = Expand(k5, n) k4 = Reshape(k6, m) v5 = Unsqueeze(v, two) v6 = Expand(v5, n) v4 = Reshape(v6, m)",
}


@pytest.mark.parametrize("name", FUSED)
def test_attention(name: str) -> None:
    inputs, body, expected = FUSED[name]
    y = "float[B, S, 8]" if "y = Reshape" in body else "float[B, 2, S, 4]"
    done = check_pass(FuseAttention(ordinary_masks=True), model_of(inputs, body, y=y))
    assert ops(done.ops) == expected


@pytest.mark.parametrize("name", SHARED_HEADS)
def test_repeated_heads_are_shared(name: str) -> None:
    inputs = "float[B, 4, S, 4] q, float[B, 2, 5, 4] k, float[B, 2, 5, 4] v"
    body = f"{SHARED_HEADS[name]} t = Transpose<perm = [0, 1, 3, 2]>(k4) s = MatMul(q, t) z = Mul(s, d) p = Softmax(z) y = MatMul(p, v4)"
    done = check_pass(FuseAttention(), model_of(inputs, body, y="float[B, 4, S, 4]"))
    assert [op for op in ops(done.ops) if op != "Shape"] == ["Attention"]


def test_heads_repeated_as_a_whole_stay() -> None:
    inputs = "float[B, 4, S, 4] q, float[B, 2, 5, 4] k, float[B, 2, 5, 4] v"
    body = "i = Constant<value_ints = [0, 1, 0, 1]>() k4 = Gather<axis = 1>(k, i) v4 = Gather<axis = 1>(v, i) t = Transpose<perm = [0, 1, 3, 2]>(k4) s = MatMul(q, t) p = Softmax(s) y = MatMul(p, v4)"
    done = check_pass(FuseAttention(), model_of(inputs, body, y="float[B, 4, S, 4]"))
    assert ops(done.ops) == ["Gather", "Gather", "Attention"]


TURN = "t = Transpose<perm = [0, 1, 3, 2]>(k) s = MatMul(q, t)"
APART: dict[str, tuple[str, str]] = {
    "other axis": (FOUR, f"{TURN} p = Softmax<axis = 2>(s) y = MatMul(p, v)"),
    "scale behind the mask": (f"{FOUR}, float[S, T] n", f"{TURN} a = Add(s, n) z = Mul(a, d) p = Softmax(z) y = MatMul(p, v)"),
    "probabilities on the right": ("float[B, 2, S, 4] q, float[B, 2, S, 4] k, float[B, 2, S, S] v", f"{TURN} p = Softmax(s) o = MatMul(v, p) y = MatMul(o, q)"),
    "probabilities are read": (FOUR, f"{TURN} p = Softmax(s) o = MatMul(p, v) r = ReduceSum(p) y = Add(o, r)"),
    "vector scale": (FOUR, f"w = Constant<value_floats = [1.0]>() {TURN} r = ReduceMax(q) z = Mul(s, r) p = Softmax(z) y = MatMul(p, v)"),
    "mask that adds a batch": ("float[1, 2, S, 4] q, float[1, 2, T, 4] k, float[1, 2, T, 4] v, float[B, 1, S, T] n", f"{TURN} a = Add(s, n) p = Softmax(a) y = MatMul(p, v)"),
    "replaced by a small number": (f"{FOUR}, bool[S, T] n", f"{TURN} w = Where(n, s, d) p = Softmax(w) y = MatMul(p, v)"),
    "two summands": (f"{FOUR}, float[S, T] n", f"{TURN} a = Add(s, n) b = Add(a, n) p = Softmax(b) y = MatMul(p, v)"),
    "keys of one batch": ("float[B, 2, S, 4] q, float[1, 2, T, 4] k, float[B, 2, T, 4] v", f"{TURN} p = Softmax(s) y = MatMul(p, v)"),
    "empty": ("float[B, 2, S, 4] q, float[B, 2, 0, 4] k, float[B, 2, 0, 4] v", f"{TURN} p = Softmax(s) y = MatMul(p, v)"),
}  # fmt: skip


@pytest.mark.parametrize("name", APART)
def test_what_is_no_attention_stays(name: str) -> None:
    inputs, body = APART[name]
    done = run_pass(FuseAttention(ordinary_masks=True), model_of(inputs, body), verify="fast")
    assert done.record.patches == 0


def test_old_opset_stays() -> None:
    inputs, body, _ = FUSED["no scale"]
    assert run_pass(FuseAttention(), model_of(inputs, body, opset=22)).record.patches == 0


def test_fed_mask_may_close_a_row() -> None:
    inputs, body, _ = FUSED["full mask"]
    done = run_pass(FuseAttention(), model_of(inputs, body))
    assert "may close all keys" in next(iter(done.skips.values()))


def test_mask_of_integers_is_bounded() -> None:
    body = (
        "f = Cast<to = 1>(n) one = Constant<value_float = 1.0>() big = Constant<value_float = -10000.0>() g1 = Sub(one, f) m = Mul(g1, big) "
        + FUSED["full mask"][1].replace("Add(n, s)", "Add(m, s)")
    )
    done = check_pass(FuseAttention(), model_of(f"{FOUR}, int64[B, 1, S, T] n", body))
    assert "Attention" in done.ops


def test_causal_mask_is_bounded() -> None:
    body = (
        "sz = Constant<value_ints = [5, 5]>() low = ConstantOfShape<value = float[1] {-1000000000.0}>(sz) m = Trilu<upper = 1>(low, i) "
        + FUSED["full mask"][1].replace("Add(n, s)", "Add(m, s)")
    )
    text = f'<ir_version: 10, opset_import: ["" : 23]> g (float[B, 2, 5, 4] q, float[B, 2, 5, 4] k, float[B, 2, 5, 4] v) => (float[B, 2, 5, 4] y) <int64 i = {{1}}> {{ {CONSTANTS} {body} }}'
    assert "Attention" in check_pass(FuseAttention(), text).ops


def test_one_expanded_mask_for_all_layers() -> None:
    layer = "t{n} = Transpose<perm = [0, 1, 3, 2]>({x}) s{n} = MatMul({x}, t{n}) z{n} = Mul(s{n}, d) a{n} = Add(z{n}, m) p{n} = Softmax(a{n}) {y} = MatMul(p{n}, {x})"
    body = "m = Clip(n, low) " + " ".join(
        layer.format(n=n, x=x, y=y) for n, (x, y) in enumerate([("q", "u"), ("u", "w"), ("w", "y")])
    )
    text = f'<ir_version: 10, opset_import: ["" : 23]> g (float[B, 2, S, 4] q, float[B, 1, 1, S] n) => (float[B, 2, S, 4] y) <float low = {{-9.0}}> {{ {CONSTANTS} {body} }}'
    done = check_pass(FuseAttention(ordinary_masks=True), text)
    assert done.ops.count("Attention") == 3
    assert done.ops.count("Expand") == 1


def test_golden(golden) -> None:  # type: ignore[no-untyped-def]
    inputs, body, _ = FUSED["three axes, mask"]
    golden(check_pass(FuseAttention(ordinary_masks=True), model_of(inputs, body, y="float[B, S, 8]")).text)


@pytest.mark.slow
@pytest.mark.skipif("GRAPHOPT_ASSETS" not in os.environ, reason="needs GRAPHOPT_ASSETS")
def test_exported_bert() -> None:
    path = Path(os.environ["GRAPHOPT_ASSETS"]) / "graphs" / "bert_ts.onnx"
    model = read_model(path)
    PassManager([RaiseOpset(to=23)]).run(model)
    done = check_pass(FuseAttention(), model, interpreted=False)
    assert done.ops.count("Attention") == 12


def test_replaced_scores_need_the_option() -> None:
    inputs, body, _ = FUSED["replaced scores"]
    done = run_pass(FuseAttention(), model_of(inputs, body))
    assert "may close all keys" in next(iter(done.skips.values()))


def test_guard_against_rows_without_keys() -> None:
    body = (
        "zero = Constant<value_float = 0.0>() low = Cast<to = 1>(inf) m = Where(n, zero, low) "
        + TURN
        + " a = Add(s, m) p = Softmax(a) bad = IsNaN(p) o = Where(bad, zero, p) y = MatMul(o, v)"
    )
    text = f'<ir_version: 10, opset_import: ["" : 23]> g (float[2, 2, 3, 4] q, float[2, 2, 5, 4] k, float[2, 2, 5, 4] v, bool[3, 5] n) => (float[2, 2, 3, 4] y) <float low0 = {{-inf}}> {{ {CONSTANTS} {body.replace("low = Cast<to = 1>(inf) ", "").replace("low)", "low0)")} }}'
    closed = np.zeros((3, 5), np.bool_)
    closed[0, :2] = closed[2, 4] = True  # the second row has no key
    random = np.random.default_rng(0)
    shapes = {"q": (2, 2, 3, 4), "k": (2, 2, 5, 4), "v": (2, 2, 5, 4)}
    feed = {name: random.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}
    done = check_pass(FuseAttention(), text, [{**feed, "n": closed}], interpreted=False)  # type: ignore[arg-type]
    assert [op for op in done.ops if op != "Constant"] == ["Where", "Attention"]
