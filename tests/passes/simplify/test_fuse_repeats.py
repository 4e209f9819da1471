"""fuse-repeats: an axis that is inserted, repeated along and merged again is one Gather."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import onnx.parser
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from graphopt.errors import RunError
from graphopt.graph import read_model
from graphopt.passes.simplify.fuse_repeats import FuseRepeats
from graphopt.rewrite.manager import PassManager
from graphopt.runtime import run, session
from pass_oracle import check_pass

if TYPE_CHECKING:
    from collections.abc import Callable


def text(nodes: str, constants: str, *, inputs: str = "float[b, 2, l, 3] x", opset: int = 19, rank: int = 4) -> str:
    result = ", ".join(f"d{axis}" for axis in range(rank))
    return (
        f'<ir_version: 9, opset_import: ["" : {opset}]> g ({inputs}) => (float[{result}] y) <{constants}> {{ {nodes} }}'
    )


EXPAND = (
    "e = Unsqueeze(x, at) r = Expand(e, t) "
    "s = Shape(x) p = Gather(s, i0) q = Gather(s, i2) u = Concat<axis = 0>(p, h, q, k)"
)
SIZES = "int64[1] i0 = {0}, int64[1] i2 = {2}, int64[1] h = {8}, int64[1] k = {3}"

FUSED: dict[str, tuple[str, str, list[int]]] = {
    "each head four times": (
        f"{EXPAND} y = Reshape(r, u)",
        f"{SIZES}, int64[1] at = {{2}}, int64[5] t = {{1, 1, 4, 1, 1}}",
        [0, 0, 0, 0, 1, 1, 1, 1],
    ),
    "all heads four times": (
        f"{EXPAND} y = Reshape(r, u)",
        f"{SIZES}, int64[1] at = {{1}}, int64[5] t = {{1, 4, 1, 1, 1}}",
        [0, 1, 0, 1, 0, 1, 0, 1],
    ),
    "by Tile": (
        "e = Unsqueeze(x, at) r = Tile(e, t) y = Reshape(r, u)",
        "int64[1] at = {2}, int64[5] t = {1, 1, 4, 1, 1}, int64[4] u = {0, 8, -1, 3}",
        [0, 0, 0, 0, 1, 1, 1, 1],
    ),
    "by a view of the same numbers": (
        "e = Reshape(x, v) r = Expand(e, t) y = Reshape(r, u)",
        "int64[5] v = {0, 0, 1, -1, 3}, int64[5] t = {1, 1, 4, 1, 1}, int64[4] u = {0, 8, -1, 3}",
        [0, 0, 0, 0, 1, 1, 1, 1],
    ),
}


@pytest.mark.parametrize("case", FUSED)
def test_repetition_is_one_gather(case: str) -> None:
    nodes, constants, indices = FUSED[case]
    done = check_pass(FuseRepeats(), text(nodes, constants))
    (node,) = done.model.graph.nodes
    assert node.op == "Gather"
    assert node.attrs["axis"] == 1
    assert node.inputs[1].array().tolist() == indices


def test_view_that_does_more_stays() -> None:
    source = text(
        "e = Reshape(x, v) r = Tile(e, t) y = Reshape(r, u)",
        "int64[5] v = {0, 0, 2, 1, 3}, int64[5] t = {1, 1, 1, 4, 1}, int64[4] u = {0, 0, 8, 3}",
        inputs="float[b, l, 6] x",
    )
    done = check_pass(FuseRepeats(), source)
    assert done.ops == ["Reshape", "Gather"]
    assert [node.inputs[1].array().tolist() for node in done.model.graph.nodes] == [
        [0, 0, 2, 3],
        [0, 0, 0, 0, 1, 1, 1, 1],
    ]


def test_old_tile(golden: Callable[[str], None]) -> None:
    source = text(
        "e = Unsqueeze<axes = [2]>(x) r = Tile(e, t) y = Reshape(r, u)",
        "int64[5] t = {1, 1, 4, 1, 1}, int64[4] u = {0, 8, -1, 3}",
        opset=9,
    )
    golden(check_pass(FuseRepeats(), source).text)


KEPT: dict[str, tuple[str, str, str]] = {
    "merged with an open size": (
        "e = Unsqueeze(x, at) r = Expand(e, t) y = Reshape(r, u)",
        "int64[1] at = {3}, int64[5] t = {1, 1, 1, 4, 1}, int64[4] u = {0, 0, -1, 3}",
        "float[b, 2, l, 3] x",
    ),
    "repeated along two axes": (
        "e = Unsqueeze(x, at) r = Expand(e, t) y = Reshape(r, u)",
        "int64[1] at = {2}, int64[5] t = {1, 1, 4, 5, 1}, int64[4] u = {0, 8, 5, 3}",
        "float[b, 2, 1, 3] x",
    ),
    "merged with both": (
        "e = Unsqueeze(x, at) r = Expand(e, t) y = Reshape(r, u)",
        "int64[1] at = {1}, int64[4] t = {1, 4, 1, 1}, int64[1] u = {-1}",
        "float[2, 3, 5] x",
    ),
    "read twice": (
        "e = Unsqueeze(x, at) r = Expand(e, t) z = Reshape(r, u) w = ReduceSum<keepdims = 0>(r) y = Add(z, w)",
        "int64[1] at = {2}, int64[5] t = {1, 1, 4, 1, 1}, int64[4] u = {0, 8, -1, 3}",
        "float[b, 2, l, 3] x",
    ),
    "tiled beside": (
        "e = Unsqueeze(x, at) r = Tile(e, t) y = Reshape(r, u)",
        "int64[1] at = {2}, int64[5] t = {1, 4, 1, 1, 1}, int64[4] u = {0, 8, -1, 3}",
        "float[b, 2, l, 3] x",
    ),
}


@pytest.mark.parametrize("case", KEPT)
def test_other_repetition_stays(case: str) -> None:
    nodes, constants, inputs = KEPT[case]
    model = read_model(
        onnx.parser.parse_model(text(nodes, constants, inputs=inputs, rank=4 if "4] u" in constants else 1))
    )
    assert PassManager([FuseRepeats()]).run(model).patches == 0


@settings(max_examples=40, deadline=None)
@given(
    shape=st.lists(st.integers(0, 3), min_size=1, max_size=4),
    at=st.integers(0, 4),
    count=st.integers(1, 4),
    before=st.booleans(),
    named=st.sets(st.integers(0, 3)),
    op=st.sampled_from(["Expand", "Tile"]),
)
def test_every_axis(shape: list[int], at: int, count: int, before: bool, named: set[int], op: str) -> None:
    rank = len(shape)
    at = min(at, rank)
    place = at - 1 if before else at
    if not 0 <= place < rank:
        return
    result = [size * count if axis == place else size for axis, size in enumerate(shape)]
    ones = [count if axis == at else 1 for axis in range(rank + 1)]
    declared = ", ".join(f"n{axis}" if axis in named else str(size) for axis, size in enumerate(shape))

    def vector(name: str, entries: list[int]) -> str:
        return f"int64[{len(entries)}] {name} = {{{', '.join(map(str, entries))}}}"

    source = text(
        f"e = Unsqueeze(x, at) r = {op}(e, t) y = Reshape<allowzero = 1>(r, u)",
        f"{vector('at', [at])}, {vector('t', ones)}, {vector('u', result)}",
        inputs=f"float[{declared}] x",
        rank=rank,
    )
    before_model = read_model(onnx.parser.parse_model(source))
    after = before_model.copy()
    patches = PassManager([FuseRepeats()]).run(after).patches
    if not named and count > 1:
        assert patches == 1
    feed = {"x": np.arange(int(np.prod(shape)), dtype=np.float32).reshape(shape)}
    try:
        expected = run(session(before_model, optimize=False), feed)["y"]
    except RunError:
        return
    found = run(session(after, optimize=False), feed)["y"]
    assert found.shape == expected.shape
    assert np.array_equal(found, expected)
