"""replace-flat-gathers: indices that list everything in order are not computed."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import onnx.parser
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from graphopt.errors import RunError
from graphopt.graph import read_model
from graphopt.passes.simplify.replace_flat_gathers import ReplaceFlatGathers
from graphopt.rewrite.manager import PassManager
from graphopt.runtime import run, session
from pass_oracle import check_pass

if TYPE_CHECKING:
    from collections.abc import Callable

CONSTANTS = (
    "int64 k0 = {0}, int64 k1 = {1}, int64 k2 = {2}, int64[1] v0 = {0}, int64[1] v1 = {1}, int64[1] m = {-1}, "
    "int64[3] v123 = {1, 2, 3}, int64[2] z3 = {-1, 3}"
)
COUNTS = """
    s = Shape(x) b = Gather(s, k0) l = Gather(s, k1) p = Range(k0, b, k1) q = Range(k0, l, k1)
    pb = Unsqueeze(p, v123) pl = Mul(pb, l) i = Add(pl, q)
"""


def text(nodes: str, inputs: str = "float[b, l] x", rank: int = 5, opset: int = 17) -> str:
    result = ", ".join(f"d{axis}" for axis in range(rank))
    head = f'<ir_version: 8, opset_import: ["" : {opset}]>'
    return f"{head} g ({inputs}) => (float[{result}] y) <{CONSTANTS}> {{ {nodes} }}"


def test_rows_of_one_element(golden: Callable[[str], None]) -> None:
    done = check_pass(ReplaceFlatGathers(), text(f"{COUNTS} f = Flatten<axis = 2>(x) y = Gather(f, i)"))
    assert done.ops == ["Unsqueeze"]
    golden(done.text)


@pytest.mark.parametrize(
    ("nodes", "inputs", "rank", "axes"),
    [
        (f"{COUNTS} f = Reshape(x, m) y = Gather(f, i)", "float[b, l] x", 4, [1, 2]),
        (f"{COUNTS} f = Reshape(x, z3) y = Gather(f, i)", "float[b, l, 3] x", 5, [1, 2]),
        (f"{COUNTS} j = Unsqueeze(i, v0) f = Reshape(x, m) y = Gather(f, j)", "float[b, l] x", 5, [0, 2, 3]),
        (f"{COUNTS} f = Reshape(z, m) j = Add(q, pl) y = Gather(f, j)", "float[b, l] x, float[b, l] z", 4, [1, 2]),
    ],
)
def test_all_elements_are_taken_in_order(nodes: str, inputs: str, rank: int, axes: list[int]) -> None:
    done = check_pass(ReplaceFlatGathers(), text(nodes, inputs, rank))
    PassManager(["eliminate-dead"]).run(done.model)
    (node,) = done.model.graph.nodes
    assert node.op == "Unsqueeze"
    assert node.inputs[1].array().tolist() == axes


@pytest.mark.parametrize("opset", [11, 12])
def test_old_opsets(opset: int) -> None:
    counts = COUNTS.replace("Unsqueeze(p, v123)", "Unsqueeze<axes = [1, 2, 3]>(p)")
    done = check_pass(ReplaceFlatGathers(), text(f"{counts} f = Reshape(x, m) y = Gather(f, i)", rank=4, opset=opset))
    assert done.ops == ["Unsqueeze"]


KEPT: dict[str, tuple[str, int]] = {
    "columns first": (
        (
            "s = Shape(x) b = Gather(s, k0) l = Gather(s, k1) p = Range(k0, b, k1) q = Range(k0, l, k1)"
            "qb = Unsqueeze(q, v1) pl = Mul(qb, b) i = Add(pl, p) f = Reshape(x, m) y = Gather(f, i)"
        ),
        2,
    ),
    "every second": (
        "s = Size(x) q = Range(k0, s, k2) f = Reshape(x, m) y = Gather(f, q)",
        1,
    ),
    "from the second": ("s = Size(x) q = Range(k1, s, k1) f = Reshape(x, m) y = Gather(f, q)", 1),
    "first row only": (
        "s = Shape(x) l = Gather(s, k1) q = Range(k0, l, k1) f = Reshape(x, m) y = Gather(f, q)",
        1,
    ),
    "another axis": (f"{COUNTS} f = Flatten<axis = 0>(x) y = Gather<axis = 1>(f, i)", 5),
    "another order of axes": (f"{COUNTS} t = Transpose(x) f = Reshape(t, m) y = Gather(f, i)", 4),
}


@pytest.mark.parametrize("case", KEPT)
def test_other_indices_are_gathered(case: str) -> None:
    nodes, rank = KEPT[case]
    assert (
        PassManager([ReplaceFlatGathers()]).run(read_model(onnx.parser.parse_model(text(nodes, rank=rank)))).patches
        == 0
    )


@settings(max_examples=30, deadline=None)
@given(
    factor=st.sampled_from(["l", "b", "k2"]),
    first=st.sampled_from(["b", "l"]),
    second=st.sampled_from(["l", "b"]),
    swapped=st.booleans(),
    sizes=st.tuples(st.integers(0, 3), st.integers(0, 3)),
)
def test_results_are_the_same(factor: str, first: str, second: str, swapped: bool, sizes: tuple[int, int]) -> None:
    pair = "pl, q" if swapped else "q, pl"
    source = text(
        f"s = Shape(x) b = Gather(s, k0) l = Gather(s, k1) p = Range(k0, {first}, k1) q = Range(k0, {second}, k1)"
        f"pb = Unsqueeze(p, v1) pl = Mul({factor}, pb) i = Add({pair}) f = Reshape(x, m) y = Gather(f, i)",
        rank=2,
    )
    before = read_model(onnx.parser.parse_model(source))
    after = before.copy()
    patches = PassManager([ReplaceFlatGathers()]).run(after).patches
    assert patches == 0 or (factor, first, second) == ("l", "b", "l")
    feed = {"x": np.arange(sizes[0] * sizes[1], dtype=np.float32).reshape(sizes)}
    try:
        expected = run(session(before, optimize=False), feed)["y"]
    except RunError:
        return  # an index is too large: nothing to compare with
    found = run(session(after, optimize=False), feed)["y"]
    assert found.shape == expected.shape
    assert np.array_equal(found, expected)
