"""hoist-signs: what is negated in every product with one factor is negated in the factor."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import onnx.parser
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from graphopt.graph import read_model
from graphopt.passes.simplify.hoist_signs import HoistSigns
from graphopt.rewrite.manager import PassManager
from graphopt.runtime import run, session
from pass_oracle import check_pass

if TYPE_CHECKING:
    from collections.abc import Callable


def text(nodes: str, *, element: str = "float", factor: str = "l, 4", opset: int = 19) -> str:
    return f"""
        <ir_version: 9, opset_import: ["" : {opset}]>
        g ({element}[b, l, 4] q, {element}[b, l, 4] k, {element}[{factor}] s) => ({element}[c, d, e] y) <
            int64[2] h = {{2, 2}}
        > {{ {nodes} }}
    """


HALVES = "{x}1, {x}2 = Split<axis = -1>({x}, h) {x}n = Neg({x}2) {x}c = Concat<axis = -1>({x}n, {x}1) "
BOTH = HALVES.format(x="q") + HALVES.format(x="k")


def test_two_uses(golden: Callable[[str], None]) -> None:
    done = check_pass(HoistSigns(), text(BOTH + "a = Mul(qc, s) c = Mul(s, kc) y = Add(a, c)"))
    assert sorted(done.ops) == ["Add", "Concat", "Concat", "Mul", "Mul", "Mul", "Split", "Split"]
    golden(done.text)


def test_axis_in_the_middle() -> None:
    nodes = "".join(f"{x}n = Neg({x}) {x}c = Concat<axis = 1>({x}, {x}n) {x}m = Mul({x}c, s) " for x in ("q", "k"))
    source = text(nodes + "y = Add(qm, km)", factor="1, 1").replace("[b, l, 4]", "[b, 3, 4]")
    done = check_pass(HoistSigns(), source)
    assert "Neg" not in done.ops
    (signs,) = (node.inputs[1] for _, node in done.model.walk() if node.op == "Mul" and node.inputs[0].name == "s")
    assert signs.array().tolist() == [[1.0]] * 3 + [[-1.0]] * 3


KEPT: dict[str, tuple[str, str]] = {
    "one use": (HALVES.format(x="q") + "a = Mul(qc, s) y = Add(a, k)", "l, 4"),
    "two factors": (BOTH + "t = Abs(s) a = Mul(qc, s) c = Mul(t, kc) y = Add(a, c)", "l, 4"),
    "other places": (
        HALVES.format(x="q")
        + "k1, k2 = Split<axis = -1>(k, h) kn = Neg(k2) kc = Concat<axis = -1>(k1, kn)"
        + "a = Mul(qc, s) c = Mul(s, kc) y = Add(a, c)",
        "l, 4",
    ),
    "negated part is read": (
        BOTH + "a = Mul(qc, s) c = Mul(s, kc) d = Add(a, c) e = ReduceSum(kn) y = Add(d, e)",
        "l, 4",
    ),
    "rotated is read": (BOTH + "a = Mul(qc, s) c = Mul(s, kc) d = Add(a, c) y = Add(d, kc)", "l, 4"),
    "open size": (
        "".join(f"{x}n = Neg({x}) {x}c = Concat<axis = 1>({x}, {x}n) {x}m = Mul({x}c, s) " for x in ("q", "k"))
        + "y = Add(qm, km)",
        "1, 4",
    ),
}


@pytest.mark.parametrize("case", KEPT)
def test_what_saves_nothing_stays(case: str) -> None:
    nodes, factor = KEPT[case]
    model = read_model(onnx.parser.parse_model(text(nodes, factor=factor)))
    assert PassManager([HoistSigns()]).run(model).patches == 0


def test_old_broadcasting_stays() -> None:
    source = text(BOTH + "a = Mul(qc, s) c = Mul(s, kc) y = Add(a, c)", opset=6)
    for x in ("q", "k"):
        source = source.replace(f"Split<axis = -1>({x}, h)", f"Split<axis = 2>({x})")
    model = read_model(onnx.parser.parse_model(source))
    assert PassManager([HoistSigns()]).run(model).patches == 0


SPECIAL = [0.0, -0.0, np.inf, -np.inf, np.nan, 1.5, -2.75, 6e-8, -65504.0]


@settings(max_examples=30, deadline=None)
@given(
    element=st.sampled_from(["float", "float16", "double", "int32", "int64"]),
    factor=st.sampled_from(["l, 4", "4", "1", "b, 1, 4", "b, l, 1"]),
    left=st.booleans(),
    sizes=st.tuples(st.integers(0, 3), st.integers(0, 4)),
    seed=st.integers(0, 2**16),
)
def test_products_are_the_same_bits(element: str, factor: str, left: bool, sizes: tuple[int, int], seed: int) -> None:
    pairs = ("s, qc", "s, kc") if left else ("qc, s", "kc, s")
    source = text(
        f"{BOTH} a = Mul({pairs[0]}) c = Mul({pairs[1]}) y = Concat<axis = 0>(a, c)", element=element, factor=factor
    )
    before = read_model(onnx.parser.parse_model(source))
    after = before.copy()
    assert PassManager([HoistSigns()]).run(after).patches == 1
    dtype = np.dtype({"float": "float32", "double": "float64"}.get(element, element))
    b, length = sizes
    draw = np.random.default_rng(seed)
    named = {"b": b, "l": length}
    shapes = {"q": (b, length, 4), "k": (b, length, 4)}
    shapes["s"] = tuple(named[d] if d in named else int(d) for d in factor.split(", "))  # type: ignore[assignment]
    values = np.array(SPECIAL) if dtype.kind == "f" else np.array([0, 1, -7, np.iinfo(dtype).min, np.iinfo(dtype).max])
    feed = {name: draw.choice(values, shape).astype(dtype) for name, shape in shapes.items()}
    expected = run(session(before, optimize=False), feed)["y"]
    found = run(session(after, optimize=False), feed)["y"]
    numbers = ~np.isnan(expected.astype(np.float64))
    assert found.shape == expected.shape
    assert np.array_equal(~np.isnan(found.astype(np.float64)), numbers)
    assert found[numbers].tobytes() == expected[numbers].tobytes()
