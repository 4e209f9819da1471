"""eliminate-redundant-bounds: bounds go where no value can pass them, NaN and zeros included."""

# ruff: noqa: E501 - the tables hold one model per line

from __future__ import annotations

import pytest

from graphopt.passes.simplify.eliminate_redundant_bounds import EliminateRedundantBounds
from odd_numbers import check_on_odd
from pass_oracle import run_pass

HEAD = '<ir_version: 9, opset_import: ["" : 19]>\n'

GONE: dict[str, str] = {
    "Relu of Relu": "{ a = Relu(x) b = Relu(a) y = Neg(b) }",
    "Relu of Sigmoid": "{ a = Sigmoid(x) b = Relu(a) y = Neg(b) }",
    "Relu of Exp": "{ a = Exp(x) b = Relu(a) y = Neg(b) }",
    "Relu of Abs": "{ a = Abs(x) b = Relu(a) y = Neg(b) }",
    "Relu of Sqrt keeps -0": "{ a = Sqrt(x) b = Relu(a) y = Neg(b) }",
    "Relu of Softmax": "{ a = Softmax(x) b = Relu(a) y = Neg(b) }",
    "Relu of Clip": "<float l = {1}, float h = {3}> { a = Clip(x, l, h) b = Relu(a) y = Neg(b) }",
    "Clip wider than Clip": "<float l = {1}, float h = {3}, float m = {0}, float k = {4}> { a = Clip(x, l, h) b = Clip(a, m, k) y = Neg(b) }",
    "Clip of HardSigmoid": "<float l = {0}, float h = {1}> { a = HardSigmoid(x) b = Clip(a, l, h) y = Neg(b) }",
    "Clip of Tanh": "<float l = {-2}, float h = {2}> { a = Tanh(x) b = Clip(a, l, h) y = Neg(b) }",
    "Min of Clip": "<float l = {1}, float h = {3}> { a = Clip(x, l, h) b = Min(a, h) y = Neg(b) }",
    "Relu of a square": "{ a = Mul(x, x) b = Relu(a) y = Neg(b) }",
    "Relu of a sum": "{ a = Relu(x) c = Exp(x) d = Add(a, c) b = Relu(d) y = Neg(b) }",
    "Relu of a selection": "<int64[1] s = {1}, int64[1] e = {9}, int64[1] w = {0}> { a = Relu(x) c = Slice(a, s, e, w) d = Transpose(c) b = Relu(d) y = Neg(b) }",
    "Relu of a Concat": "{ a = Relu(x) c = Exp(x) d = Concat<axis = 0>(a, c, a) b = Relu(d) y = Neg(b) }",
    "Relu of a mean": "{ a = Relu(x) c = ReduceMean(a) b = Relu(c) y = Neg(b) }",
    "LeakyRelu of Relu": "{ a = Relu(x) b = LeakyRelu(a) y = Neg(b) }",
}  # fmt: skip

STAYS: dict[str, str] = {
    "Clip of Sigmoid to 1": "<float l = {0}, float h = {1}> { a = Sigmoid(x) y = Clip(a, l, h) }",
    "Clip without an upper bound of Relu": "<float l = {0}> { a = Relu(x) y = Clip(a, l) }",
    "Relu of Tanh": "{ a = Tanh(x) y = Relu(a) }",
    "Relu of a difference": "{ a = Relu(x) c = Exp(x) d = Sub(c, a) y = Relu(d) }",
    "Relu of Clip below": "<float l = {-1}, float h = {3}> { a = Clip(x, l, h) y = Relu(a) }",
    "Max with 0 of Relu": "<float z = {0}> { a = Relu(x) y = Max(a, z) }",
    "Relu of an input": "{ y = Relu(x) }",
    "Relu of a Concat with an input": "{ a = Relu(x) d = Concat<axis = 0>(a, x) y = Relu(d) }",
    "narrower": "<float l = {1}, float h = {3}, float k = {2}> { a = Clip(x, l, h) y = Clip(a, l, k) }",
}  # fmt: skip


@pytest.mark.parametrize("case", GONE)
def test_bounds_that_nothing_passes_go(case: str) -> None:
    done = check_on_odd(
        EliminateRedundantBounds(), f"{HEAD}g (float[n, 3] x) => (float[m, k] y) {GONE[case]}", interpreted=False
    )
    assert done.record.patches == 1, done.text


@pytest.mark.parametrize("case", STAYS)
def test_bounds_that_may_be_passed_stay(case: str) -> None:
    done = run_pass(
        EliminateRedundantBounds(), f"{HEAD}g (float[n, 3] x) => (float[m, k] y) {STAYS[case]}", verify="fast"
    )
    assert done.record.patches == 0, done.text


@pytest.mark.parametrize("kind", ["float16", "double"])
def test_other_types(kind: str) -> None:
    text = f"{HEAD}g ({kind}[n, 3] x) => ({kind}[n, 3] y) {{ a = Abs(x) b = Relu(a) c = Clip(b) y = Neg(c) }}"
    done = check_on_odd(EliminateRedundantBounds(), text, interpreted=False)
    assert done.ops == ["Abs", "Clip", "Neg"]
