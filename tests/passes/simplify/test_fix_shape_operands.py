"""fix-shape-operands: operands that are computed from shapes become constants that mean the same."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import onnx.parser
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from graphopt.errors import RunError
from graphopt.graph import read_model
from graphopt.passes.simplify.fix_shape_operands import FixShapeOperands
from graphopt.rewrite.manager import PassManager
from graphopt.runtime import run, session
from pass_oracle import check_pass

if TYPE_CHECKING:
    from collections.abc import Callable

END = 2**63 - 1
CONSTANTS = (
    "int64 k0 = {0}, int64 k1 = {1}, int64[1] v0 = {0}, int64[1] v1 = {1}, int64[1] v2 = {2}, int64[1] v3 = {3}, "
    "int64[2] z2 = {0, 0}, int64[1] v7 = {7}, float[4] twice = {1.0, 1.0, 2.0, 2.0}, float two = {2.0}"
)
SIZES = "s = Shape(x) b = Gather(s, v0) l = Gather(s, v1)"


def text(nodes: str, rank: int = 2, inputs: str = "float[b, l] x", opset: int = 19) -> str:
    result = ", ".join(f"d{axis}" for axis in range(rank))
    head = f'<ir_version: 9, opset_import: ["" : {opset}]>'
    return f"{head} g ({inputs}) => (float[{result}] y) <{CONSTANTS}> {{ {nodes} }}"


FIXED: dict[str, tuple[str, int, str, int, list[int]]] = {
    "expand to more axes": (f"{SIZES} t = Concat<axis = 0>(v7, b, l) y = Expand(x, t)", 3, "Expand", 1, [7, 1, 1]),
    "expand in the middle": (
        f"u = Unsqueeze(x, v1) {SIZES} t = Concat<axis = 0>(b, v7, l) y = Expand(u, t)",
        3,
        "Expand",
        1,
        [1, 7, 1],
    ),
    "expand to fewer axes": (
        f"u = Unsqueeze(x, v1) {SIZES} t = Concat<axis = 0>(v7, l) y = Expand(u, t)",
        3,
        "Expand",
        1,
        [7, 1],
    ),
    "slice to the end": (f"{SIZES} y = Slice(x, v1, l, v1)", 2, "Slice", 2, [END]),
    "slice beyond the end": (f"{SIZES} m = Add(l, v2) y = Slice(x, v1, m, v1)", 2, "Slice", 2, [END]),
    "slice of the last": (f"{SIZES} m = Sub(l, v1) y = Slice(x, m, v7, v1)", 2, "Slice", 1, [-1]),
    "slice without the last": (f"{SIZES} m = Sub(l, v1) y = Slice(x, v0, m, v1)", 2, "Slice", 2, [-1]),
    "slice of two axes": (
        f"{SIZES} m = Sub(l, v1) e = Concat<axis = 0>(b, m) y = Slice(x, z2, e)",
        2,
        "Slice",
        2,
        [END, -1],
    ),
    "slice near the end of what is long enough": (
        "w = Concat<axis = 1>(x, x, o) u = Shape(w) n = Gather(u, v1) m = Sub(n, v2) y = Slice(w, m, v7, v1)",
        2,
        "Slice",
        1,
        [-2],
    ),
    "the last element": (f"{SIZES} m = Sub(l, v1) y = Gather<axis = 1>(x, m)", 2, "Gather", 1, [-1]),
}


@pytest.mark.parametrize("case", FIXED)
def test_operand_becomes_constant(case: str) -> None:
    nodes, rank, op, index, value = FIXED[case]
    inputs = "float[b, l] x, float[b, 3] o" if ", o)" in nodes else "float[b, l] x"
    done = check_pass(FixShapeOperands(), text(nodes, rank, inputs))
    PassManager(["eliminate-dead"]).run(done.model)
    assert not {"Shape", "Sub", "Add"} & set(done.ops)
    (node,) = (node for _, node in done.model.walk() if node.op == op)
    assert node.inputs[index].array().ravel().tolist() == value


RESIZED: dict[str, str] = {
    "sizes": "h = Gather(s, v2) w = Gather(s, v3) p = Mul(h, v2) q = Mul(w, v3)",
    "sizes by floats": (
        "h = Gather(s, v2) w = Gather(s, v3) f = Cast<to = 1>(h) g = Mul(f, two) i = Floor(g) p = Cast<to = 7>(i)"
        "q = Add(w, w)"
    ),
}


@pytest.mark.parametrize("case", RESIZED)
@pytest.mark.parametrize("mode", ["nearest", "linear"])
@pytest.mark.parametrize("opset", [13, 19])
def test_sizes_become_scales(case: str, mode: str, opset: int) -> None:
    nodes = (
        f"s = Shape(x) b = Gather(s, v0) c = Gather(s, v1) {RESIZED[case]} t = Concat<axis = 0>(b, c, p, q)"
        f'y = Resize<mode = "{mode}", coordinate_transformation_mode = "asymmetric">(x, , , t)'
    )
    done = check_pass(FixShapeOperands(), text(nodes, 4, "float[1, 2, h, w] x", opset), interpreted=False)
    assert done.ops == ["Resize"]
    scales = done.model.graph.nodes[0].inputs[2]
    assert scales.array().tolist() == [1.0, 1.0, 2.0, 3.0 if case == "sizes" else 2.0]


KEPT: dict[str, tuple[str, int]] = {
    "expand to another size": (f"{SIZES} t = Concat<axis = 0>(l, b) y = Expand(o, t)", 2),
    "slice that may be too short": (f"{SIZES} m = Sub(l, v2) y = Slice(x, m, v7, v1)", 2),
    "slice to another size": (f"{SIZES} y = Slice(x, v0, b, v1)", 2),
    "slice with computed steps": (f"{SIZES} t = Shape(o) r = Gather(t, v0) y = Slice(x, v0, l, v1, r)", 2),
    "element that may be missing": (f"{SIZES} m = Sub(l, v2) y = Gather<axis = 1>(x, m)", 2),
}


@pytest.mark.parametrize("case", KEPT)
def test_operand_that_no_constant_says_stays(case: str) -> None:
    nodes, rank = KEPT[case]
    model = read_model(onnx.parser.parse_model(text(nodes, rank, "float[b, l] x, float[n, 1] o")))
    assert PassManager([FixShapeOperands()]).run(model).patches == 0


@pytest.mark.parametrize(
    "attributes",
    ['keep_aspect_ratio_policy = "not_larger"', 'coordinate_transformation_mode = "tf_crop_and_resize"'],
)
def test_resize_that_does_not_stretch_stays(attributes: str) -> None:
    nodes = (
        "s = Shape(x) h = Gather(s, v2) w = Gather(s, v3) p = Mul(h, v2) q = Mul(w, v2) b = Gather(s, v0)"
        f"c = Gather(s, v1) t = Concat<axis = 0>(b, c, p, q) y = Resize<{attributes}>(x, , , t)"
    )
    model = read_model(onnx.parser.parse_model(text(nodes, 4, "float[1, 2, h, w] x")))
    assert PassManager([FixShapeOperands()]).run(model).patches == 0


def test_golden(golden: Callable[[str], None]) -> None:
    nodes, rank, *_ = FIXED["slice without the last"]
    golden(check_pass(FixShapeOperands(), text(nodes, rank)).text)


BOUNDS = ["l", "b", "Sub(l, v1)", "Sub(l, v2)", "Add(l, v1)", "Sub(b, v1)", "Max(l, v2)", "Min(l, v2)"]


@settings(max_examples=60, deadline=None)
@given(
    start=st.sampled_from([*BOUNDS, "v0", "v1"]),
    end=st.sampled_from([*BOUNDS, "v3"]),
    axis=st.sampled_from(["v0", "v1"]),
    longer=st.booleans(),
    sizes=st.tuples(st.integers(0, 4), st.integers(0, 4)),
)
def test_bounds_mean_the_same_for_every_size(
    start: str, end: str, axis: str, longer: bool, sizes: tuple[int, int]
) -> None:
    def named(name: str, value: str) -> str:
        return f"{name} = {value}" if "(" in value else f"{name} = Identity({value})"

    data = "w = Concat<axis = 1>(x, x)" if longer else "w = Identity(x)"
    source = text(f"{SIZES} {named('from', start)} {named('to', end)} {data} y = Slice(w, from, to, {axis})")
    _check_same(source, {"x": np.arange(sizes[0] * sizes[1], dtype=np.float32).reshape(sizes)})


@settings(max_examples=40, deadline=None)
@given(
    target=st.lists(st.sampled_from(["b", "l", "v1", "v2", "v7"]), min_size=1, max_size=3),
    sizes=st.tuples(st.integers(0, 3), st.integers(0, 3)),
)
def test_targets_mean_the_same_for_every_size(target: list[str], sizes: tuple[int, int]) -> None:
    source = text(f"{SIZES} t = Concat<axis = 0>({', '.join(target)}) y = Expand(x, t)", max(len(target), 2))
    _check_same(source, {"x": np.arange(sizes[0] * sizes[1], dtype=np.float32).reshape(sizes)})


def _check_same(source: str, feed: dict[str, Any]) -> None:
    before = read_model(onnx.parser.parse_model(source))
    after = before.copy()
    PassManager([FixShapeOperands()]).run(after)
    try:
        expected = run(session(before, optimize=False), feed)["y"]
    except RunError:
        return  # the operands do not fit sizes like these: nothing to compare with
    found = run(session(after, optimize=False), feed)["y"]
    assert found.shape == expected.shape
    assert np.array_equal(found, expected)
