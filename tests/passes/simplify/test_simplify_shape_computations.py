"""simplify-shape-computations: each size is computed once, from the shapes of the inputs of the model."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import onnx.parser
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from graphopt.graph import read_model
from graphopt.passes.simplify.fix_reshape_targets import FixReshapeTargets
from graphopt.passes.simplify.simplify_shape_computations import SimplifyShapeComputations
from graphopt.rewrite.manager import PassManager
from graphopt.runtime import run, session
from pass_oracle import check_pass

if TYPE_CHECKING:
    from collections.abc import Callable

HEAD = '<ir_version: 9, opset_import: ["" : 19]>\n'
CONSTANTS = (
    "int64 k0 = {0}, int64 k1 = {1}, int64 k2 = {2}, int64[1] v0 = {0}, int64[1] v1 = {1}, int64[1] v2 = {2}, "
    "int64[1] v4 = {4}, int64[1] m1 = {-1}, int64[2] m11 = {-1, -1}, int64[2] o11 = {1, 1}, int64[1] v16 = {16}"
)


def text(nodes: str, *, result: str = "int64[n] y", inputs: str = "float[b, l, 64] x, int64[b, l] ids") -> str:
    return f"{HEAD} g ({inputs}) => ({result}) <{CONSTANTS}> {{ {nodes} }}"


SIMPLER: dict[str, tuple[str, list[str]]] = {
    "shape of an intermediate tensor": ("r = Relu(x) t = Shape(r) y = Neg(t)", ["Shape", "Neg"]),
    "sizes one by one": (
        (
            "s = Shape(x) p = Gather(s, k0) q = Gather(s, k1) a = Unsqueeze(p, v0) c = Unsqueeze(q, v0)"
            "t = Concat<axis = 0>(a, c) y = Neg(t)"
        ),
        ["Shape", "Neg"],
    ),
    "sizes and numbers": (
        (
            "r = Relu(x) s = Shape(r) p = Gather(s, k0) q = Gather(s, k1) a = Unsqueeze(p, v0) c = Unsqueeze(q, v0)"
            "t = Concat<axis = 0>(a, v4, c, v16) y = Neg(t)"
        ),
        ["Shape", "Shape", "Concat", "Neg"],
    ),
    "one size twice": (
        (
            "r = Relu(x) s = Shape(r) q = Gather(s, k1) a = Unsqueeze(q, v0) c = Unsqueeze(q, v0)"
            "t = Concat<axis = 0>(a, c) y = Neg(t)"
        ),
        ["Shape", "Gather", "Neg"],
    ),
    "expand of torch": (
        "s = Shape(ids) e = Equal(s, m11) w = Where(e, o11, s) y = Neg(w)",
        ["Shape", "Neg"],
    ),
    "the same size from two tensors": (
        "s = Shape(x) p = Gather(s, v1) t = Shape(ids) q = Gather(t, v1) y = Add(p, q)",
        ["Shape", "Add"],
    ),
    "double and half": (
        "s = Shape(ids) h = Mul(s, v2) d = Div(h, v2) y = Neg(d)",
        ["Shape", "Neg"],
    ),
    "a scalar of an intermediate tensor": (
        "r = Relu(x) s = Shape(r) p = Gather(s, k1) y = Range(k0, p, k1)",
        ["Shape", "Gather", "Range"],
    ),
    "the product of sizes twice": (
        (
            "s = Shape(ids) p = ReduceProd<keepdims = 0>(s) r = Relu(x) u = Shape(r) w = Gather(u, k0)"
            "z = Gather(u, k1)"
            "q = Mul(w, z) a = Range(k0, p, k1) c = Range(k0, q, k1) y = Add(a, c)"
        ),
        ["Shape", "ReduceProd", "Range", "Range", "Add"],
    ),
}


@pytest.mark.parametrize("case", SIMPLER)
def test_sizes_are_computed_from_inputs(case: str) -> None:
    nodes, left = SIMPLER[case]
    done = check_pass(SimplifyShapeComputations(), text(nodes))
    assert sorted(done.ops) == sorted(left)
    inputs = set(done.model.graph.inputs)
    assert all(node.inputs[0] in inputs for _, node in done.model.walk() if node.op == "Shape")


@pytest.mark.parametrize("opset", [11, 13, 14])
def test_old_opsets_pick_from_whole_shapes(opset: int) -> None:
    axes = "Unsqueeze<axes = [0]>(p)" if opset < 13 else "Unsqueeze(p, v0)"
    nodes = f"r = Relu(x) s = Shape(r) p = Gather(s, k1) a = {axes} t = Concat<axis = 0>(a, v4) y = Neg(t)"
    done = check_pass(SimplifyShapeComputations(), text(nodes).replace(": 19", f": {opset}"))
    assert sorted(done.ops) == ["Concat", "Gather", "Neg", "Shape"]


KEPT: dict[str, str] = {
    "already simple": "s = Shape(ids) y = Neg(s)",
    "an unknown size": "n = NonZero(x) s = Shape(n) y = Neg(s)",
    "given out": "r = Relu(x) y = Shape(r)",
    "rounded by floats": ("s = Shape(ids) f = Cast<to = 1>(s) c = Floor(f) i = Cast<to = 7>(c) y = Neg(i)"),
    "shared by others": (
        "s = Shape(ids) p = Gather(s, k1) a = Unsqueeze(p, v0) u = Range(k0, p, k1) w = Shape(u) y = Add(w, a)"
    ),
}


@pytest.mark.parametrize("case", [case for case in KEPT if case != "shared by others"])
def test_what_is_not_simpler_stays(case: str) -> None:
    done = check_pass(SimplifyShapeComputations(), text(KEPT[case]))
    assert done.record.patches == 0


def test_shape_of_a_range_is_the_size_it_was_made_from() -> None:
    done = check_pass(SimplifyShapeComputations(), text(KEPT["shared by others"]))
    assert sorted(done.ops) in (["Add", "Shape"], ["Add", "Gather", "Shape"])


def test_sizes_of_unnamed_dimensions_are_never_taken_for_equal() -> None:
    nodes = "s = Shape(x) p = Gather(s, v0) t = Shape(z) q = Gather(t, v0) y = Add(p, q)"
    done = check_pass(SimplifyShapeComputations(), text(nodes, inputs="float[N, l] x, float[M, l] z"))
    assert done.ops.count("Shape") == 2


def test_shape_of_the_input_that_the_model_asks_stays_the_one_that_is_asked() -> None:
    nodes = "s = Shape(ids) p = Gather(s, k1) a = Unsqueeze(p, v0) y = Neg(a)"
    done = check_pass(SimplifyShapeComputations(), text(nodes, inputs="float[64, b, l] x, int64[b, l] ids, bool[l] m"))
    (node,) = (node for _, node in done.model.walk() if node.op == "Shape")
    assert node.inputs[0].name == "ids"
    assert node.attrs == {"start": 1, "end": 2}


def test_body_of_a_branch_reads_sizes_from_outside() -> None:
    nodes = """
        y = If(c) <
            then_branch = one () => (int64[n] a) { r = Relu(x) s = Shape(r) p = Gather(s, v1) a = Neg(p) },
            else_branch = two () => (int64[n] d) { t = Abs(x) u = Shape(t) q = Gather(u, v1) d = Abs(q) }>
    """
    done = check_pass(SimplifyShapeComputations(), text(nodes, inputs="bool c, float[b, l] x"))
    assert sorted(done.ops) == ["Abs", "If", "Neg", "Shape"]


def test_loop_sizes_of_each_round_stay() -> None:
    nodes = """
        y = Loop(k2, , o) <body = round (int64 i, bool c, float[m, l] s) => (bool d, float[p, l] t) {
            d = Identity(c) t = Concat<axis = 0>(s, s) u = Shape(t) w = Neg(u)
        }>
    """
    source = text(nodes, inputs="float[b, l] o", result="float[q, l] y")
    assert check_pass(SimplifyShapeComputations(), source).record.patches == 0


def test_function_body_is_left_alone() -> None:
    source = """
        <ir_version: 9, opset_import: ["" : 19, "f" : 1]>
        g (float[b, l] x) => (int64[n] y) { y = f.sizes(x) }
        <domain: "f", opset_import: ["" : 19]> sizes (x) => (t) { r = Relu(x) s = Shape(r) t = Neg(s) }
    """
    assert check_pass(SimplifyShapeComputations(), source, interpreted=False).record.patches == 0


def test_golden(golden: Callable[[str], None]) -> None:
    golden(check_pass(SimplifyShapeComputations(), text(SIMPLER["sizes and numbers"][0])).text)


ELEMENT = st.sampled_from(["p", "q", "v4", "pq", "pp", "mx", "qh"])
MAKERS = """
    r = Relu(x) s = Shape(r) i = Shape(ids) p = Gather(s, v0) q1 = Gather(i, k1) q = Unsqueeze(q1, v0)
    pq = Mul(p, q) pp = Add(p, p) mx = Max(p, v2) q2 = Mul(q, v2) qh = Div(q2, v2)
"""


@settings(max_examples=25, deadline=None)
@given(
    elements=st.lists(st.lists(ELEMENT, min_size=1, max_size=4), min_size=1, max_size=3),
    sizes=st.tuples(st.integers(0, 3), st.integers(0, 3)),
    opset=st.sampled_from([13, 14, 15, 19]),
)
def test_any_vectors_of_sizes(elements: list[list[str]], sizes: tuple[int, int], opset: int) -> None:
    vectors = " ".join(f"t{n} = Concat<axis = 0>({', '.join(each)})" for n, each in enumerate(elements))
    results = ", ".join(f"t{n}" for n in range(len(elements)))
    source = text(f"{MAKERS} {vectors} z = Concat<axis = 0>({results}) y = Neg(z)").replace(": 19", f": {opset}")
    before = read_model(onnx.parser.parse_model(source))
    after = before.copy()
    first = PassManager([SimplifyShapeComputations()]).run(after)
    assert PassManager([SimplifyShapeComputations()]).run(after.copy()).patches == 0, first.records[0].log
    assert sum(1 for _ in after.walk()) <= sum(1 for _ in before.walk())
    feed = {"x": np.ones((*sizes, 64), np.float32), "ids": np.zeros(sizes, np.int64)}
    assert np.array_equal(
        run(session(after, optimize=False), feed)["y"], run(session(before, optimize=False), feed)["y"]
    )


HEADS = text(
    """
    r = Relu(x) s = Shape(r) p = Gather(s, k0) q = Gather(s, k1) a = Unsqueeze(p, v0) c = Unsqueeze(q, v0)
    t = Concat<axis = 0>(a, c, v4, v16) h = Reshape(r, t) u = Concat<axis = 0>(c, a, v4, v16) y = Reshape(h, u)
    """,
    result="float[c, d, e, f] y",
)


@pytest.mark.parametrize("sizes", [(2, 3), (4, 1)])
def test_targets_that_cannot_be_fixed_are_made_of_inputs(sizes: tuple[int, int]) -> None:
    before = read_model(onnx.parser.parse_model(HEADS))
    after = before.copy()
    PassManager([FixReshapeTargets(), SimplifyShapeComputations()]).run(after)
    assert sorted(node.op for _, node in after.walk()) == ["Concat", "Relu", "Reshape", "Reshape", "Shape", "Shape"]
    feed = {"x": np.arange(sizes[0] * sizes[1] * 64, dtype=np.float32).reshape(*sizes, 64)}
    feed["ids"] = np.zeros(sizes, np.int64)
    expected = run(session(before, optimize=False), feed)["y"]
    found = run(session(after, optimize=False), feed)["y"]
    assert found.shape == expected.shape
    assert np.array_equal(found, expected)


ASSETS = os.environ.get("GRAPHOPT_ASSETS", "")
LIMITS = {"bert_ts": 1, "gpt_ts": 1, "llama_ts": 2, "bert_dynamo": 1, "gpt_dynamo": 2, "llama_dynamo": 2}


@pytest.mark.slow
@pytest.mark.skipif(not ASSETS, reason="GRAPHOPT_ASSETS names no folder of models")
@pytest.mark.parametrize("name", LIMITS)
def test_layers_share_their_sizes(name: str) -> None:
    model = read_model(Path(ASSETS) / "graphs" / f"{name}.onnx")
    PassManager(["fold-constants", FixReshapeTargets(), SimplifyShapeComputations(), "eliminate-dead"]).run(model)
    again = PassManager([SimplifyShapeComputations()]).run(model.copy())
    assert again.patches == 0, [patch.reason for patch in again.records[0].log]
    assert sum(1 for _, node in model.walk() if node.op == "Shape") <= LIMITS[name]
