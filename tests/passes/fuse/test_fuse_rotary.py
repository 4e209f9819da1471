"""fuse-rotary: the steps of a rotary embedding become one RotaryEmbedding."""

# ruff: noqa: E501 - the tables hold one model per line

from __future__ import annotations

import onnx.parser
import pytest

from graphopt.graph import Model, read_model
from graphopt.passes.fuse.fuse_attention import FuseAttention
from graphopt.passes.fuse.fuse_rotary import FuseRotary
from pass_oracle import check_pass, run_pass

CONSTANTS = (
    "z = Constant<value_ints = [0]>() h = Constant<value_ints = [4]>() d = Constant<value_ints = [8]>() "
    "big = Constant<value_ints = [9223372036854775807]>() ax = Constant<value_ints = [-1]>() a1 = Constant<value_ints = [1]>() "
    "one = Constant<value_ints = [1]>() two = Constant<value_ints = [2]>() i0 = Constant<value_int = 0>() i1 = Constant<value_int = 1>()"
)
ANGLES = "f2 = Concat<axis = -1>(f, f) c0 = Cos(f2) s0 = Sin(f2) both = Constant<value_ints = [0, 1]>() c = Unsqueeze(c0, both) s = Unsqueeze(s0, both)"


def model_of(inputs: str, outputs: str, body: str, opset: int = 23) -> Model:
    text = f'<ir_version: 10, opset_import: ["" : {opset}]> g ({inputs}) => ({outputs}) {{ {CONSTANTS} {body} }}'
    return read_model(onnx.parser.parse_model(text))


def turned(x: str, y: str, halves: str = "slice") -> str:
    """Return x cos + turned(x) sin."""
    taken = {
        "slice": f"{x}1 = Slice({x}, z, h, ax) {x}2 = Slice({x}, h, big, ax)",
        "split": f"{x}1, {x}2 = Split<axis = -1, num_outputs = 2>({x})",
        "split by sizes": f"hh = Constant<value_ints = [4, 4]>() {x}1, {x}2 = Split<axis = 3>({x}, hh)",
    }[halves]
    return f"{taken} {x}n = Neg({x}2) {x}r = Concat<axis = -1>({x}n, {x}1) {x}c = Mul({x}, c) {x}s = Mul({x}r, s) {y} = Add({x}c, {x}s)"


@pytest.mark.parametrize("halves", ["slice", "split"])
def test_turned_halves(halves: str) -> None:
    body = f"{ANGLES} {turned('q', 'y', halves)} {turned('k', 'w', halves)}"
    done = check_pass(
        FuseRotary(),
        model_of(
            "float[B, 4, S, 8] q, float[B, 2, S, 8] k, float[S, 4] f", "float[B, 4, S, 8] y, float[B, 2, S, 8] w", body
        ),
    )
    assert done.ops.count("RotaryEmbedding") == 2
    assert done.ops.count("Expand") == 2
    assert "Neg" not in done.ops


def test_one_rotation_is_fused_where_that_saves_nodes() -> None:
    body = "c0 = Cos(f) s0 = Sin(f) c = Concat<axis = -1>(c0, c0) s = Concat<axis = -1>(s0, s0) " + turned(
        "q", "y", "split by sizes"
    )
    done = check_pass(FuseRotary(), model_of("float[1, 4, 5, 8] q, float[1, 1, 5, 4] f", "float[1, 4, 5, 8] y", body))
    assert done.ops.count("RotaryEmbedding") == 1


def test_one_rotation_stays_where_it_costs_nodes() -> None:
    done = run_pass(
        FuseRotary(),
        model_of("float[B, 4, S, 8] q, float[S, 4] f", "float[B, 4, S, 8] y", f"{ANGLES} {turned('q', 'y', 'split')}"),
    )
    assert done.record.patches == 0


def test_sign_in_the_sines() -> None:
    signs = "signs = Constant<value_floats = [-1.0, -1.0, -1.0, -1.0, 1.0, 1.0, 1.0, 1.0]>() sg = Mul(s, signs)"
    steps = "{x}1, {x}2 = Split<axis = -1, num_outputs = 2>({x}) {x}r = Concat<axis = -1>({x}2, {x}1) {x}c = Mul({x}, c) {x}s = Mul({x}r, sg) {y} = Add({x}c, {x}s)"
    body = f"{ANGLES} {signs} {steps.format(x='q', y='y')} {steps.format(x='k', y='w')} {steps.format(x='v', y='u')}"
    inputs = "float[B, 4, S, 8] q, float[B, 2, S, 8] k, float[B, 2, S, 8] v, float[S, 4] f"
    done = check_pass(
        FuseRotary(), model_of(inputs, "float[B, 4, S, 8] y, float[B, 2, S, 8] w, float[B, 2, S, 8] u", body)
    )
    assert done.ops.count("RotaryEmbedding") == 3


def test_other_signs_stay() -> None:
    signs = "signs = Constant<value_floats = [1.0, 1.0, 1.0, 1.0, -1.0, -1.0, -1.0, -1.0]>() cc = Concat<axis = -1>(c, c) ss = Concat<axis = -1>(s, s) sg = Mul(ss, signs)"
    body = f"{signs} q1, q2 = Split<axis = -1, num_outputs = 2>(q) r = Concat<axis = -1>(q2, q1) a = Mul(q, cc) b = Mul(r, sg) y = Add(a, b)"
    assert run_pass(FuseRotary(), model_of(HALF, "float[2, 4, 5, 8] y", body)).record.patches == 0


COMPLEX = "{x}3 = Mul({x}1, c) {x}4 = Mul({x}2, s) {x}5 = Sub({x}3, {x}4) {x}6 = Mul({x}1, s) {x}7 = Mul({x}2, c) {x}8 = Add({x}6, {x}7)"
PAIRS = (
    "{x}p = Reshape({x}, pairs) {x}1 = Gather<axis = 4>({x}p, i0) {x}2 = Gather<axis = 4>({x}p, i1) " + COMPLEX +
    " {x}9 = Unsqueeze({x}5, ax) {x}10 = Unsqueeze({x}8, ax) {x}11 = Concat<axis = -1>({x}9, {x}10) {y} = Reshape({x}11, joined)"
)  # fmt: skip


def test_pairs_of_a_tensor_of_three_axes() -> None:
    body = (
        "pairs = Constant<value_ints = [0, 0, 2, 4, 2]>() joined = Constant<value_ints = [0, 0, 2, 8]>() c = Unsqueeze(cc, a1) s = Unsqueeze(ss, a1) "
        + PAIRS.format(x="q", y="y")
        + PAIRS.format(x="k", y="w")
    )
    done = check_pass(
        FuseRotary(),
        model_of(
            "float[B, S, 16] q, float[B, S, 16] k, float[S, 4] cc, float[S, 4] ss",
            "float[B, S, 2, 8] y, float[B, S, 2, 8] w",
            body,
        ),
    )
    nodes = [node for _, node in done.model.walk() if node.op == "RotaryEmbedding"]
    assert [node.attrs["interleaved"] for node in nodes] == [1, 1]
    assert [node.attrs["num_heads"] for node in nodes] == [2, 2]
    assert done.ops.count("Reshape") == 2


def test_halves_of_a_product_of_complex_numbers() -> None:
    body = f"q1, q2 = Split<axis = -1, num_outputs = 2>(q) {COMPLEX.format(x='q')} y = Concat<axis = 3>(q5, q8)"
    done = check_pass(
        FuseRotary(),
        model_of("float[2, 4, S, 8] q, float[2, 1, S, 4] c, float[2, 1, S, 4] s", "float[2, 4, S, 8] y", body),
    )
    assert [op for op in done.ops if op != "Constant"] == ["Squeeze", "Squeeze", "RotaryEmbedding"]


def test_even_and_odd_elements_by_steps() -> None:
    body = f"q1 = Slice(q, z, big, ax, two) q2 = Slice(q, one, big, ax, two) {COMPLEX.format(x='q')} q9 = Unsqueeze(q5, ax) q10 = Unsqueeze(q8, ax) q11 = Concat<axis = -1>(q9, q10) joined = Constant<value_ints = [0, 0, 0, 8]>() y = Reshape(q11, joined)"
    done = check_pass(
        FuseRotary(),
        model_of("float[2, 4, S, 8] q, float[2, 1, S, 4] c, float[2, 1, S, 4] s", "float[2, 4, S, 8] y", body),
    )
    assert [op for op in done.ops if op != "Constant"] == ["Squeeze", "Squeeze", "RotaryEmbedding"]


FULL = "float[1, 4, 5, 8] q, float[1, 1, 5, 8] c, float[1, 1, 5, 8] s"
HALF = "float[2, 4, 5, 8] q, float[2, 1, 5, 4] c, float[2, 1, 5, 4] s"
APART: dict[str, tuple[str, str]] = {
    "halves may differ": (FULL, turned("q", "y")),
    "first half negated": (HALF, "cc = Concat<axis = -1>(c, c) sc = Concat<axis = -1>(s, s) q1 = Slice(q, z, h, ax) q2 = Slice(q, h, d, ax) n = Neg(q1) r = Concat<axis = -1>(q2, n) a = Mul(q, cc) b = Mul(r, sc) y = Add(a, b)"),
    "signs swapped": (HALF, f"q1, q2 = Split<axis = -1, num_outputs = 2>(q) {COMPLEX.format(x='q').replace('Sub', 'Add', 1)} y = Concat<axis = 3>(q5, q8)"),
    "parts swapped": (HALF, f"q1, q2 = Split<axis = -1, num_outputs = 2>(q) {COMPLEX.format(x='q')} y = Concat<axis = 3>(q8, q5)"),
    "angles per head": ("float[2, 4, 5, 8] q, float[2, 4, 5, 4] c, float[2, 4, 5, 4] s", f"q1, q2 = Split<axis = -1, num_outputs = 2>(q) {COMPLEX.format(x='q')} y = Concat<axis = 3>(q5, q8)"),
    "part is read": (HALF, f"q1, q2 = Split<axis = -1, num_outputs = 2>(q) {COMPLEX.format(x='q')} j = Concat<axis = 3>(q5, q8) k = Concat<axis = 3>(q5, q5) y = Add(j, k)"),
}  # fmt: skip


@pytest.mark.parametrize("name", APART)
def test_what_is_no_rotation_stays(name: str) -> None:
    inputs, body = APART[name]
    shape = "1, 4, 5, 8" if inputs is FULL else "2, 4, 5, 8"
    assert run_pass(FuseRotary(), model_of(inputs, f"float[{shape}] y", body)).record.patches == 0


def test_old_opset_stays() -> None:
    body = f"q1, q2 = Split<axis = -1, num_outputs = 2>(q) {COMPLEX.format(x='q')} y = Concat<axis = 3>(q5, q8)"
    assert run_pass(FuseRotary(), model_of(HALF, "float[2, 4, 5, 8] y", body, opset=22)).record.patches == 0


def test_attention_reads_three_axes_through_the_rotation() -> None:
    prepare = "t = Constant<value_ints = [0, 0, 2, 8]>() q0 = Reshape(qf, t) q = Transpose<perm = [0, 2, 1, 3]>(q0) k0 = Reshape(kf, t) k = Transpose<perm = [0, 2, 1, 3]>(k0) v0 = Reshape(vf, t) v = Transpose<perm = [0, 2, 1, 3]>(v0)"
    attention = "kt = Transpose<perm = [0, 1, 3, 2]>(kz) sc = MatMul(qz, kt) p = Softmax(sc) o = MatMul(p, v) o1 = Transpose<perm = [0, 2, 1, 3]>(o) m = Constant<value_ints = [0, 0, 16]>() y = Reshape(o1, m)"
    model = model_of(
        "float[B, S, 16] qf, float[B, S, 16] kf, float[B, S, 16] vf, float[S, 4] f",
        "float[B, S, 16] y",
        f"{ANGLES} {prepare} {turned('q', 'qz')} {turned('k', 'kz')} {attention}",
    )
    rotated = check_pass(FuseRotary(), model).model
    done = check_pass(FuseAttention(), rotated)
    assert "Transpose" not in done.ops
    assert done.ops.count("RotaryEmbedding") == 2


def test_attention_reads_parts_of_one_rotation() -> None:
    prepare = "t = Constant<value_ints = [0, 0, 4, 8]>() q0 = Reshape(qkv, t) qk4 = Transpose<perm = [0, 2, 1, 3]>(q0) three = Constant<value_ints = [3, 1]>() q, v = Split<axis = 1>(qk4, three)"
    attention = "heads = Constant<value_ints = [2, 1]>() qr, kr = Split<axis = 1>(qz, heads) r = Constant<value_ints = [0, 0]>() k2 = Gather<axis = 1>(kr, r) v2 = Gather<axis = 1>(v, r) kt = Transpose<perm = [0, 1, 3, 2]>(k2) sc = MatMul(qr, kt) p = Softmax(sc) o = MatMul(p, v2) o1 = Transpose<perm = [0, 2, 1, 3]>(o) m = Constant<value_ints = [0, 0, 16]>() y = Reshape(o1, m)"
    rotation = "qz = RotaryEmbedding(q, ca, sa)"
    model = model_of(
        "float[B, S, 32] qkv, float[B, S, 4] ca, float[B, S, 4] sa",
        "float[B, S, 16] y",
        f"{prepare} {rotation} {attention}",
    )
    done = check_pass(FuseAttention(), model)
    assert [op for op in done.ops if op != "Constant"] == ["Split", "RotaryEmbedding", "Split", "Attention"]


def test_golden(golden) -> None:  # type: ignore[no-untyped-def]
    body = f"{ANGLES} {turned('q', 'y')} {turned('k', 'w')}"
    golden(
        check_pass(
            FuseRotary(),
            model_of(
                "float[B, 4, S, 8] q, float[B, 2, S, 8] k, float[S, 4] f",
                "float[B, 4, S, 8] y, float[B, 2, S, 8] w",
                body,
            ),
        ).text
    )
