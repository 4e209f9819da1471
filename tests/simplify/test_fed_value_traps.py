"""Trap models whose fault shows only on certain feeds: integers that wrap around, other initializers, empty tensors."""

# ruff: noqa: E501 - one model per line

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx.parser
import pytest

from simplify_oracle import judge

if TYPE_CHECKING:
    from collections.abc import Sequence

MOST = 2**63 - 1
BRANCHES = (
    "If(c) <then_branch = t () => (float[n] o) { o = Relu(q) }, else_branch = e () => (float[n] p) { p = Neg(q) }>"
)
ONES = np.ones(3, np.float32)


@dataclass(frozen=True)
class FedTrap:
    """A model with the feeds on which a wrong simplification shows.

    Attributes:
        name: A name for the test.
        text: The graph as ONNX text.
        feeds: The feeds.
        opset: Version of the ONNX operators.
    """

    name: str
    text: str
    feeds: Sequence[dict[str, Any]]
    opset: int = 21

    def __str__(self) -> str:
        return self.name


def deciding(name: str, body: str, value: int, constants: str = "") -> FedTrap:
    """Return a model that branches on what a computation with an input of unknown value says."""
    text = f"g (int64[2] v, float[n] q) => (float[n] y) <int64 i = {{0}}{constants}> {{ x = Gather(v, i) {body} y = {BRANCHES} }}"
    return FedTrap(name, text, [{"v": np.array([value, 5]), "q": ONES}, {"v": np.array([3, 5]), "q": ONES}])


def sized(name: str, body: str, constants: str = "") -> FedTrap:
    """Return a model that branches on what a computation with a dimension says."""
    text = f"g (float[n] q) => (float[n] y) <int64 i = {{0}}{constants}> {{ s = Shape(q) x = Gather(s, i) {body} y = {BRANCHES} }}"
    return FedTrap(name, text, [{"q": np.ones(size, np.float32)} for size in (3, 7, 300)])


TRAPS = [
    deciding("one-more-may-be-less", "a = Add(x, one) c = Greater(a, x)", MOST, ", int64 one = {1}"),
    deciding("half-of-twice", "a = Mul(x, two) b = Div(a, two) c = Equal(b, x)", 2**62, ", int64 two = {2}"),
    deciding("remainder-of-thrice", "a = Mul(x, three) b = Mod(a, three) c = Equal(b, z)", 2**62 + 1, ", int64 three = {3}, int64 z = {0}"),
    deciding("largest-of-one-more", "a = Add(x, one) b = Max(a, x) c = Equal(a, b)", MOST, ", int64 one = {1}"),
    deciding("32-bits-and-back", "a = Cast<to = 6>(x) b = Cast<to = 7>(a) c = Equal(b, x)", 2**40),
    deciding("float-and-back", "a = Cast<to = 1>(x) b = Cast<to = 7>(a) c = Equal(b, x)", 2**30 + 1),
    deciding("wider-after-wrapping", "a = Cast<to = 6>(x) b = Add(a, a) d = Cast<to = 7>(b) e = Add(x, x) c = Equal(d, e)", 2**30),
    sized("unsigned-below-zero", "u = Cast<to = 13>(x) a = Sub(u, five) c = Less(a, u)", ", uint64 five = {5}"),
    sized("8-bits-and-back", "u = Cast<to = 2>(x) b = Cast<to = 7>(u) c = Equal(b, x)"),
    sized("8-bits-of-sum", "u = Cast<to = 3>(x) a = Add(u, u) c = GreaterOrEqual(a, u)"),
    FedTrap("fed-shape-of-target", "g (float[n] x, int64[k] w) => (float[] y) <int64[1] w = {-1}> { r = Reshape(x, w) y = Relu(r) }", [{"x": np.ones(6, np.float32)}, {"x": np.ones(6, np.float32), "w": np.array([2, 3])}]),
    FedTrap("fed-shape-of-operand", "g (float[n] x, float[k] w) => (float[m] y, int64[1] z) <float[1] w = {1}> { a = Add(x, w) s = Shape(a) y = Expand(x, s) z = Shape(w) }", [{"x": ONES[:1]}, {"x": ONES[:1], "w": np.ones(2, np.float32)}]),
    FedTrap("any-size-beside-an-empty-axis", "g (float[n, m] x, int64[1] k) => (float[a, b] y) <int64[1] i = {1}> { s = Shape(x) d = Gather(s, i) t = Concat<axis = 0>(k, d) r = Reshape(x, t) y = Relu(r) }", [{"x": np.ones((3, 0), np.float32), "k": np.array([7])}, {"x": np.ones((3, 2), np.float32), "k": np.array([3])}]),
    FedTrap("power-one-of-large-integers", "g (int64[n] x) => (int64[n] y) <float e = {1}> { a = Neg(x) b = Pow(a, e) y = Neg(b) }", [{"x": np.array([MOST, 2**60 + 1, 3])}]),
    FedTrap("division-that-ends-the-program", "g (int32[1] x, bool c) => (int32[1] y) <int32[1] a = {-2147483648}, int32[1] b = {-1}> { y = If(c) <then_branch = t () => (int32[1] o) { d = Div(a, b) o = Add(d, x) }, else_branch = e () => (int32[1] p) { m = Mod(a, x) p = Neg(m) }> }", [{"x": np.array([7], np.int32), "c": np.array(False)}]),
    FedTrap("division-by-what-is-folded-first", "g (int32[2] x) => (int32[2] y) <int8[2] a = {7, -8}, int8[2] b = {2, 3}> { r = Neg(b) d = Div(a, r) m = Mod(a, d) c = Cast<to = 6>(m) y = Add(c, x) }", [{"x": np.array([7, 8], np.int32)}]),
]  # fmt: skip


@pytest.mark.parametrize("each", TRAPS, ids=str)
def test_trap_is_simplified_without_a_fault(each: FedTrap) -> None:
    model = onnx.parser.parse_model(f'<ir_version: 10, opset_import: ["" : {each.opset}]>\n{each.text}')
    verdict = judge(model, each.feeds)
    assert verdict.compared == len(each.feeds), "ONNX Runtime does not run the original on every feed"
