"""merge-conditionals: two If with one condition are one; what comes in between is not crossed."""

# ruff: noqa: E501 - the tables hold one model per line

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import onnx.parser
import pytest

from graphopt.graph import read_model
from graphopt.passes.simplify.merge_conditionals import MergeConditionals
from graphopt.runtime import Feeds
from pass_oracle import check_pass

if TYPE_CHECKING:
    from collections.abc import Callable

HEAD = '<ir_version: 8, opset_import: ["" : 17]>\n'


def branch(name: str, then: str, other: str, condition: str = "p") -> str:
    return f"{name} = If ({condition}) <then_branch = t{name} () => (float[n] a) {{ {then} }}, else_branch = e{name} () => (float[n] b) {{ {other} }}>"


GONE: dict[str, tuple[str, int]] = {
    "side by side": (f"g (float[n] x, bool p) => (float[n] y) {{ {branch('u', 'a = Neg(x)', 'b = Exp(x)')} {branch('v', 'a = Abs(x)', 'b = Sin(x)')} y = Add(u, v) }}", 6),
    "one behind the other": (f"g (float[n] x, bool p) => (float[n] y) {{ {branch('u', 'a = Neg(x)', 'b = Exp(x)')} {branch('y', 'a = Abs(u)', 'b = Sin(u)')} }}", 5),
    "three": (f"g (float[n] x, bool p) => (float[n] y, float[n] z) {{ {branch('u', 'a = Neg(x)', 'b = Exp(x)')} {branch('y', 'a = Abs(u)', 'b = Sin(u)')} {branch('z', 'a = Tan(u)', 'b = Cos(y)')} }}", 7),
    "the same names and initializers": ("g (float[n] x, bool p) => (float[n] y) { u = If (p) <then_branch = t () => (float[n] a) <float[1] w = {2}> { h = Mul(x, w) a = Neg(h) }, else_branch = e () => (float[n] b) { b = Exp(x) }> y = If (p) <then_branch = tt () => (float[n] a) <float[1] w = {3}> { h = Mul(u, w) a = Neg(h) }, else_branch = ee () => (float[n] b) { b = Exp(u) }> }", 7),
    "an initializer is the result": ("g (float[n] x, bool p) => (float[n] y, float[1] z) { y = If (p) <then_branch = t () => (float[n] a) { a = Neg(x) }, else_branch = e () => (float[n] b) { b = Exp(x) }> z = If (p) <then_branch = tt () => (float[1] a) <float[1] a = {3}> { }, else_branch = ee () => (float[1] b) <float[1] b = {4}> { }> }", 3),
    "a body in the second": (f"g (float[n] x, bool p, bool q) => (float[n] y) {{ {branch('u', 'a = Neg(x)', 'b = Exp(x)')} y = If (p) <then_branch = t () => (float[n] c) {{ c = If (q) <then_branch = tt () => (float[n] k) {{ k = Abs(u) }}, else_branch = te () => (float[n] l) {{ l = Neg(u) }}> }}, else_branch = e () => (float[n] d) {{ d = Sin(u) }}> }}", 7),
    "something unrelated in between": (f"g (float[n] x, bool p) => (float[n] y) {{ {branch('u', 'a = Neg(x)', 'b = Exp(x)')} h = Tan(u) {branch('v', 'a = Abs(x)', 'b = Sin(x)')} y = Add(h, v) }}", 7),
}  # fmt: skip

STAYS: dict[str, str] = {
    "other conditions": f"g (float[n] x, bool p, bool q) => (float[n] y) {{ {branch('u', 'a = Neg(x)', 'b = Exp(x)')} {branch('y', 'a = Abs(u)', 'b = Sin(u)', 'q')} }}",
    "a node in between": f"g (float[n] x, bool p) => (float[n] y) {{ {branch('u', 'a = Neg(x)', 'b = Exp(x)')} h = Tan(u) {branch('y', 'a = Abs(h)', 'b = Sin(h)')} }}",
    "in different graphs": f"g (float[n] x, bool p, bool q) => (float[n] y) {{ {branch('u', 'a = Neg(x)', 'b = Exp(x)')} y = If (q) <then_branch = t () => (float[n] c) {{ c = If (p) <then_branch = tt () => (float[n] k) {{ k = Abs(u) }}, else_branch = te () => (float[n] l) {{ l = Neg(u) }}> }}, else_branch = e () => (float[n] d) {{ d = Sin(u) }}> }}",
}  # fmt: skip


@pytest.mark.parametrize("case", GONE)
@pytest.mark.parametrize("chosen", [True, False])
def test_one_if_is_left(case: str, chosen: bool) -> None:
    source, count = GONE[case]
    model = read_model(onnx.parser.parse_model(HEAD + source))
    arrays = {"x": np.array([0.5, -2.0, 0.0], np.float32), "p": np.array(chosen), "q": np.array(not chosen)}
    feed = {tensor.name: arrays[tensor.name] for tensor in model.graph.inputs}
    done = check_pass(MergeConditionals(), model, Feeds.open([feed], model), samples=1)
    assert len(done.ops) == count
    assert sum(node.op == "If" for node in done.model.graph.nodes) == 1


@pytest.mark.parametrize("case", STAYS)
def test_what_stands_in_the_way_is_not_crossed(case: str) -> None:
    assert check_pass(MergeConditionals(), HEAD + STAYS[case]).record.patches == 0


def test_golden(golden: Callable[[str], None]) -> None:
    golden(check_pass(MergeConditionals(), HEAD + GONE["the same names and initializers"][0]).text)
