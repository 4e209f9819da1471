"""fix-reshape-targets: computed targets become constants where the sizes are those of the input."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import onnx.parser
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from graphopt.errors import RunError
from graphopt.graph import read_model
from graphopt.passes.simplify.eliminate_dead import EliminateDead
from graphopt.passes.simplify.fix_reshape_targets import FixReshapeTargets
from graphopt.rewrite.manager import PassManager
from graphopt.runtime import run, session
from pass_oracle import check_pass

if TYPE_CHECKING:
    from collections.abc import Callable

HEAD = '<ir_version: 9, opset_import: ["" : 19]>\n'
CONSTANTS = ", ".join(
    f"int64[1] {n} = {{{v}}}" for n, v in {"i0": 0, "i1": 1, "c3": 3, "c4": 4, "c12": 12, "m": -1}.items()
)
SIZES = "s = Shape(x) p = Gather(s, i0) q = Gather(s, i1)"

FIXED: dict[str, tuple[str, str, list[int]]] = {
    "split of heads": ("l, 12", f"{SIZES} t = Concat<axis = 0>(p, q, c3, c4)", [0, 0, 3, 4]),
    "join of axes": ("l, 12", f"{SIZES} r = Mul(p, q) t = Concat<axis = 0>(r, c12)", [-1, 12]),
    "size behind": ("l, 12", f"{SIZES} t = Concat<axis = 0>(p, m)", [0, -1]),
    "only one is left": ("l, 4", f"{SIZES} r = Mul(p, q) t = Concat<axis = 0>(c4, r)", [4, -1]),
}


def text(free: str, nodes: str, rank: int, attrs: str = "") -> str:
    result = ", ".join(f"d{i}" for i in range(rank))
    return f"{HEAD} g (float[b, {free}] x) => (float[{result}] y) <{CONSTANTS}> {{ {nodes} y = Reshape{attrs}(x, t) }}"


@pytest.mark.parametrize("attrs", ["", "<allowzero = 1>"])
@pytest.mark.parametrize("case", [case for case in FIXED if case != "size behind"])
def test_target_of_known_sizes_becomes_constant(case: str, attrs: str) -> None:
    free, nodes, target = FIXED[case]
    done = check_pass(FixReshapeTargets(), text(free, nodes, len(target), attrs))
    node = list(done.model.graph.nodes)[-1]
    assert node.inputs[1].array().tolist() == target
    PassManager([EliminateDead()]).run(done.model)
    assert [n.op for n in done.model.graph.nodes] == ["Reshape"]


def test_target_that_leaves_the_last_size_open_becomes_constant() -> None:
    free, nodes, target = FIXED["size behind"]
    done = check_pass(FixReshapeTargets(), text(free, nodes, len(target)))
    assert list(done.model.graph.nodes)[-1].inputs[1].array().tolist() == target


KEPT: dict[str, tuple[str, str, str, str]] = {
    "sizes change places": ("l", f"{SIZES} t = Concat<axis = 0>(q, p)", "", "cannot be copied"),
    "inferred beside a size that may be 0": (
        "l, 4",
        f"{SIZES} r = Mul(q, c4) t = Concat<axis = 0>(p, r)",
        "",
        "cannot be copied",
    ),
    "open size beside one that may be 0": (
        "l, 12",
        f"{SIZES} t = Concat<axis = 0>(p, m)",
        "<allowzero = 1>",
        "which only allowzero = 1 takes",
    ),
    "size of 0": ("l", f"{SIZES} t = Concat<axis = 0>(p, i0)", "<allowzero = 1>", "not to be copied"),
}


@pytest.mark.parametrize("case", KEPT)
def test_target_of_other_sizes_stays(case: str) -> None:
    free, nodes, attrs, words = KEPT[case]
    model = read_model(onnx.parser.parse_model(text(free, nodes, 2, attrs)))
    outcome = PassManager([FixReshapeTargets()]).run(model)
    assert outcome.patches == 0
    assert words in outcome.records[0].skips[0][1]


def test_fed_target_stays() -> None:
    fed = f"{HEAD} g (float[b, l] x, int64[2] t) => (float[d, e] y) {{ y = Reshape(x, t) }}"
    outcome = PassManager([FixReshapeTargets()]).run(read_model(onnx.parser.parse_model(fed)))
    assert outcome.patches == 0
    assert len(outcome.records[0].skips) == 1


def test_golden(golden: Callable[[str], None]) -> None:
    free, nodes, target = FIXED["split of heads"]
    golden(check_pass(FixReshapeTargets(), text(free, nodes, len(target))).text)


@settings(max_examples=30, deadline=None)
@given(
    sizes=st.tuples(st.integers(0, 3), st.integers(0, 3)),
    first=st.sampled_from(["p, q", "q, p", "r", "p"]),
    rest=st.sampled_from(["c12", "c3, c4", "m"]),
    attrs=st.sampled_from(["", "<allowzero = 1>"]),
)
def test_every_size_gives_the_same_shape_also_where_there_are_no_elements(
    sizes: tuple[int, int], first: str, rest: str, attrs: str
) -> None:
    rank = len(f"{first}, {rest}".split(", "))
    source = text("l, 12", f"{SIZES} r = Mul(p, q) t = Concat<axis = 0>({first}, {rest})", rank, attrs)
    before = read_model(onnx.parser.parse_model(source))
    after = before.copy()
    PassManager([FixReshapeTargets()]).run(after)
    feed = {"x": np.arange(sizes[0] * sizes[1] * 12, dtype=np.float32).reshape(*sizes, 12)}
    try:
        expected = run(session(before, optimize=False), feed)["y"]
    except RunError:
        return  # the target does not fit sizes like these: nothing to compare with
    assert np.array_equal(run(session(after, optimize=False), feed)["y"], expected)
    assert run(session(after, optimize=False), feed)["y"].shape == expected.shape
