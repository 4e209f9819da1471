"""absorb-broadcasts: what is repeated for an operator that broadcasts is no longer repeated."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import onnx.parser
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from graphopt.graph import read_model
from graphopt.passes.simplify.absorb_broadcasts import AbsorbBroadcasts
from graphopt.rewrite.manager import PassManager
from graphopt.runtime import run, session
from pass_oracle import check_pass

if TYPE_CHECKING:
    from collections.abc import Callable

HEAD = '<ir_version: 9, opset_import: ["" : 19]>\n'
INPUTS = "float[b, l, 4] x, float[l, 4] p, int64[1, l] i, bool[l, l] m, float[b, 3, l, l] s, float[b, 1, 4] o"
CONSTANTS = (
    "int64[1] v0 = {0}, int64[1] v1 = {1}, int64[2] v01 = {0, 1}, int64[3] t = {1, 5, 1}, int64[3] r = {1, 3, 1}, "
    "float[5, 4] table = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19}, "
    "float zero = {0}, int64 five = {5}"
)


def text(nodes: str, result: str = "float[n, q, w] y", inputs: str = INPUTS) -> str:
    return f"{HEAD} g ({inputs}) => ({result}) <{CONSTANTS}> {{ {nodes} }}"


FOUR = "float[n, q, w, e] y"
ABSORBED: dict[str, tuple[str, str, list[str]]] = {
    "expand before add": ("h = Shape(x) e = Expand(p, h) y = Add(x, e)", "float[n, q, w] y", ["Add"]),
    "expand on the left": ("h = Shape(x) e = Expand(o, h) y = Sub(e, x)", "float[n, q, w] y", ["Sub"]),
    "axes in front": ("e = Unsqueeze(p, v0) y = Mul(e, x)", "float[n, q, w] y", ["Mul"]),
    "axes in front, behind a function": (
        "e = Unsqueeze(p, v0) c = Cos(e) y = Mul(c, x)",
        "float[n, q, w] y",
        ["Cos", "Mul"],
    ),
    "a mask": (
        "e = Unsqueeze(m, v01) k = Not(e) y = Where(k, zero, s)",
        FOUR,
        ["Not", "Where"],
    ),
    "positions": (
        "h = Shape(x) g = Gather(h, v01) j = Mod(i, five) e = Expand(j, g) k = Gather(table, e) y = Add(x, k)",
        "float[n, q, w] y",
        ["Mod", "Gather", "Add"],
    ),
    "several readers": (
        "h = Shape(x) e = Expand(p, h) a = Add(x, e) c = Mul(e, x) y = Sub(a, c)",
        "float[n, q, w] y",
        ["Add", "Mul", "Sub"],
    ),
    "tensor of one number": (
        "h = Shape(x) e = ConstantOfShape<value = float[1] {3.0}>(h) y = Mul(x, e)",
        "float[n, q, w] y",
        ["Mul"],
    ),
    "tensor of zeros": ("h = Shape(x) e = ConstantOfShape(h) y = Sub(e, x)", "float[n, q, w] y", ["Sub"]),
    "smaller sum": ("h = Shape(x) e = Expand(o, h) a = Add(e, o) y = Mul(a, x)", "float[n, q, w] y", ["Add", "Mul"]),
    "both from the same": (
        "h = Shape(x) e = Expand(o, h) a = Neg(e) c = Add(a, e) y = Mul(c, x)",
        "float[n, q, w] y",
        ["Neg", "Add", "Mul"],
    ),
}


@pytest.mark.parametrize("case", ABSORBED)
def test_repeating_is_left_to_the_readers(case: str) -> None:
    nodes, result, left = ABSORBED[case]
    done = check_pass(AbsorbBroadcasts(), text(nodes, result))
    assert sorted(done.ops) == sorted(left)


UNIFORM: dict[str, tuple[str, list[str]]] = {
    "elements of a constant": (
        "j = Abs(i) k = Mod(j, five) u = GatherElements<axis = 1>(sevens, k) y = Mul(u, i)",
        ["Mul"],
    ),
    "rows of a constant": ("u = Gather<axis = 1>(sevens, v0) k = Slice(i, v0, v1, v1) y = Add(u, k)", ["Slice", "Add"]),
    "a count that is never negative": (
        (
            "h = Shape(i) n = Gather(h, k1) q = Range(k0, n, k1) f = GreaterOrEqual(q, k0) c = Greater(i, k0) "
            "a = And(f, c) y = Cast<to = 7>(a)"
        ),
        ["Greater", "And", "Cast"],
    ),
    "a number below every count": (
        (
            "h = Shape(i) n = ReduceMax<keepdims = 0>(h) q = Range(k1, n, k1) e = Unsqueeze(q, v0) f = Less(k0, e)"
            "w = Abs(e) c = Equal(w, e) a = And(f, c) y = Cast<to = 7>(a)"
        ),
        ["Shape", "ReduceMax", "Range", "Unsqueeze", "Abs", "Equal", "And", "Cast"],
    ),
}


@pytest.mark.parametrize("case", UNIFORM)
def test_one_number_in_every_element(case: str) -> None:
    nodes, left = UNIFORM[case]
    source = text(nodes, "int64[n, m] y", "int64[1, l] i")
    source = source.replace(
        "<int64[1] v0", "<int64[1, 5] sevens = {7, 7, 7, 7, 7}, int64 k0 = {0}, int64 k1 = {1}, int64[1] v0"
    )
    done = check_pass(AbsorbBroadcasts(), source)
    assert done.record.patches > 0
    PassManager(["eliminate-dead"]).run(done.model)
    assert sorted(done.ops) == sorted(left)


@pytest.mark.parametrize(
    "compared", ["Greater(q, k0)", "GreaterOrEqual(q, k1)", "Less(q, k0)", "LessOrEqual(k1, q)", "Greater(i, k0)"]
)
def test_comparisons_that_may_fail_stay(compared: str) -> None:
    count = "h = Shape(i) n = Gather(h, k1) q = Range(k0, n, k1)"
    nodes = f"{count} f = {compared} c = Greater(i, k0) a = And(f, c) y = Not(a)"
    source = text(nodes, "bool[n, m] y", "int64[1, l] i").replace(
        "<int64[1] v0", "<int64 k0 = {0}, int64 k1 = {1}, int64[1] v0"
    )
    assert PassManager([AbsorbBroadcasts()]).run(read_model(onnx.parser.parse_model(source))).patches == 0


def test_tile_of_an_axis_of_size_one() -> None:
    done = check_pass(
        AbsorbBroadcasts(), text("e = Tile(o, r) y = Mul(e, z)", inputs="float[b, 1, 4] o, float[b, 3, 4] z")
    )
    assert done.ops == ["Mul"]


KEPT: dict[str, tuple[str, str]] = {
    "nobody else has the size": ("e = Expand(o, t) y = Mul(e, o)", "float[n, q, w] y"),
    "given out": ("h = Shape(x) y = Expand(p, h)", "float[n, q, w] y"),
    "given out on the way": (
        "h = Shape(x) e = Expand(o, h) y = Neg(e) z = Add(y, x)",
        "float[n, q, w] y, float[n, q, w] z",
    ),
    "read by others too": (
        "h = Shape(x) e = Expand(p, h) a = Add(x, e) c = Softmax(e) y = Mul(a, c)",
        "float[n, q, w] y",
    ),
    "the other is of lower rank": ("e = Unsqueeze(p, v0) y = Mul(e, p)", "float[n, q, w] y"),
    "approximated on the way": ("h = Shape(x) e = Expand(o, h) c = Cos(e) y = Mul(c, x)", "float[n, q, w] y"),
    "power": ("h = Shape(x) e = Expand(o, h) y = Pow(x, e)", "float[n, q, w] y"),
    "axis in the middle": ("e = Unsqueeze(p, v1) y = Mul(e, o)", "float[n, q, w] y"),
    "another size that may be one": (
        "h = Shape(z) e = Expand(o, h) y = Mul(e, x)",
        "float[n, q, w] y",
    ),
}


@pytest.mark.parametrize("case", KEPT)
def test_repeating_that_is_needed_stays(case: str) -> None:
    nodes, result = KEPT[case]
    inputs = f"{INPUTS}, float[b, k, 4] z" if "z)" in nodes and "Shape(z)" in nodes else INPUTS
    done = check_pass(AbsorbBroadcasts(), text(nodes, result, inputs), samples=1)
    assert done.record.patches == 0


def test_indices_on_a_later_axis_keep_their_rank() -> None:
    nodes = "e = Unsqueeze(v01, v0) a = Gather<axis = 1>(p, e) y = Add(a, z)"
    done = check_pass(AbsorbBroadcasts(), text(nodes, inputs="float[l, 4] p, float[l, 1, 2] z"))
    assert done.record.patches == 0


def test_old_broadcasting_is_left_alone() -> None:
    source = text("e = Expand(p, t) y = Mul(e, e)", inputs="float[1, 4] p").replace(": 19", ": 6")
    source = source.replace("Expand(p, t)", "Tile(p, v01)").replace("float[n, q, w] y", "float[n, q] y")
    model = read_model(onnx.parser.parse_model(source))
    assert PassManager([AbsorbBroadcasts()]).run(model).patches == 0


def test_golden(golden: Callable[[str], None]) -> None:
    golden(check_pass(AbsorbBroadcasts(), text(ABSORBED["positions"][0])).text)


OPS = ["Add", "Sub", "Mul", "Div", "Where", "Less", "Mod"]
SPECIAL = np.array([0.0, -0.0, np.inf, -np.inf, np.nan, 1.5, -2.25, 1e-40], np.float32)


@settings(max_examples=40, deadline=None)
@given(
    op=st.sampled_from(OPS),
    on_way=st.sampled_from(["", "Neg", "Abs", "Relu", "Floor"]),
    source=st.sampled_from(["o", "p", "w"]),
    left=st.booleans(),
    sizes=st.tuples(st.integers(0, 3), st.integers(0, 3)),
    seed=st.integers(0, 2**16),
)
def test_results_are_the_same_bits(
    op: str, on_way: str, source: str, left: bool, sizes: tuple[int, int], seed: int
) -> None:
    operand = "c" if on_way else "e"
    pair = f"{operand}, x" if left else f"x, {operand}"
    last = {
        "Where": f"k = Less(x, x) y = Where(k, {pair})",
        "Less": f"k = Less({pair}) y = Cast<to = 1>(k)",
        "Mod": f"y = Mod<fmod = 1>({pair})",
    }.get(op, f"y = {op}({pair})")
    way = f"c = {on_way}(e)" if on_way else ""
    model = text(f"h = Shape(x) e = Expand({source}, h) {way} {last}", inputs=f"{INPUTS}, float[1, 1] w")
    before = read_model(onnx.parser.parse_model(model))
    after = before.copy()
    assert PassManager([AbsorbBroadcasts()]).run(after).patches == 1
    b, length = sizes
    draw = np.random.default_rng(seed)
    shapes = {"x": (b, length, 4), "p": (length, 4), "o": (b, 1, 4), "w": (1, 1), "s": (b, 3, length, length)}
    feed = {name: draw.choice(SPECIAL, shape).astype(np.float32) for name, shape in shapes.items()}
    feed |= {"i": np.zeros((1, length), np.int64), "m": np.zeros((length, length), bool)}
    expected = run(session(before, optimize=False), feed)["y"]
    found = run(session(after, optimize=False), feed)["y"]
    assert found.shape == expected.shape
    assert np.array_equal(np.isnan(found), np.isnan(expected))
    numbers = ~np.isnan(expected)
    assert found[numbers].tobytes() == expected[numbers].tobytes()
