"""Trap models of arithmetic: zeros with signs, overflow, NaN, limits, powers, casts, equal values."""

# ruff: noqa: E501 - one model per line

from __future__ import annotations

import numpy as np
import pytest

from trap_models import Trap, check_trap, trap

F = np.float32
TWO_SIZES = ((2,), (3,))

TRAPS = [
    trap("add-zero-of-minus-zero", "-0 + 0 is +0, so x + 0 is not x", "g (float[n] x) => (float[n] y) <float z = {0}> { y = Add(x, z) }", odd=True),
    trap("add-minus-zero", "x + -0 is x, bitwise", "g (float[n] x) => (float[n] y) { y = Add(x, z) }", weights={"z": np.array(-0.0, F)}, odd=True),
    trap("sub-zero", "x - 0 is x, 0 - x is not -x for x = 0", "g (float[n] x) => (float[n] y, float[n] w) <float z = {0}> { y = Sub(x, z) w = Sub(z, x) }", odd=True),
    trap("mul-zero", "x * 0 is NaN for infinite x and -0 for negative x", "g (float[n] x) => (float[n] y) <float z = {0}> { y = Mul(x, z) }", odd=True),
    trap("mul-one-broadcast", "x * ones(3, 1) has more axes than x", "g (float[n] x) => (float[3, n] y) { y = Mul(x, w) }", weights={"w": np.ones((3, 1), F)}, odd=True),
    trap("add-zero-broadcast-of-one", "x of size 1 grows by zeros of size 4", "g (float[n] x) => (float[m] y) { y = Add(x, w) }", weights={"w": np.full(4, -0.0, F)}, sizes=((1,), (4,))),
    trap("mul-one-integer", "1 in int32: no-op in every type", "g (int32[n] x) => (int32[n] y) <int32 w = {1}> { y = Mul(x, w) }", odd=True),
    trap("div-by-itself", "x / x is NaN at 0 and at infinity", "g (float[n] x) => (float[n] y) { y = Div(x, x) }", odd=True),
    trap("sub-itself", "x - x is NaN at infinity", "g (float[n] x) => (float[n] y) { y = Sub(x, x) }", odd=True),
    trap("div-by-three", "x / 3 is not x * (1 / 3)", "g (float[n] x) => (float[n] y) <float c = {3}> { y = Div(x, c) }", odd=True),
    trap("div-by-power-of-two", "x / 8 is x * 0.125; x / 2**-140 is not x * inf", "g (float[n] x) => (float[n] y, float[n] z) <float c = {8}> { y = Div(x, c) z = Div(x, d) }", weights={"d": np.array(2.0**-140, F)}, odd=True),
    trap("div-integer", "(x / 2) * 2 is not x in integers", "g (int64[n] x) => (int64[n] y) <int64 c = {2}> { a = Div(x, c) y = Mul(a, c) }", odd=True),
    trap("mul-mul-overflow", "1e30 * 1e30 overflows, x * 1e30 * 1e30 does not for small x", "g (float[n] x) => (float[n] y) <float s = {1e-35}, float a = {1e30}, float b = {1e30}> { t = Mul(x, s) c = Mul(t, a) y = Mul(c, b) }"),
    trap("mul-mul-underflow", "1e-30 * 1e-30 is 0, x * 1e-30 * 1e-30 is not for large x", "g (float[n] x) => (float[n] y) <float s = {1e30}, float a = {1e-30}, float b = {1e-30}> { t = Mul(x, s) c = Mul(t, a) y = Mul(c, b) }"),
    trap("mul-inf-mul-zero", "the product of the constants is NaN, that of the chain too, but not from a merged 0", "g (float[n] x) => (float[n] y) <float b = {0}> { c = Mul(x, a) y = Mul(c, b) }", weights={"a": np.array(np.inf, F)}, odd=True),
    trap("add-add-absorption", "(x + 1e8) + -1e8 is not x: the sum rounds", "g (float[n] x) => (float[n] y) <float a = {1e8}, float b = {-1e8}> { c = Add(x, a) y = Add(c, b) }"),
    trap("add-add-inf", "inf - inf of two constants is NaN; x + inf - inf is too, x + (inf + 1) is inf", "g (float[n] x) => (float[n] y) <float b = {1}> { c = Add(x, a) y = Add(c, b) }", weights={"a": np.array(np.inf, F)}, odd=True),
    trap("int32-add-chain-wraps", "the sum of the constants wraps, as the chain does", "g (int32[n] x) => (int32[n] y) <int32 a = {2147483647}, int32 b = {5}> { c = Add(x, a) y = Add(c, b) }", odd=True),
    trap("int32-mul-chain-wraps", "the product of the constants wraps, as the chain does", "g (int32[n] x) => (int32[n] y) <int32 a = {65536}, int32 b = {65536}> { c = Mul(x, a) y = Mul(c, b) }", odd=True),
    trap("uint8-sub-wraps", "x - 1 becomes x + -1, which uint8 does not have", "g (uint8[n] x) => (uint8[n] y) <uint8 a = {1}, uint8 b = {2}> { c = Sub(x, a) y = Sub(c, b) }", odd=True),
    trap("clip-clip-disjoint", "[-2, -1] within [0, 1] gives 0 everywhere, not the larger minimum and smaller maximum", "g (float[n] x) => (float[n] y) <float a = {-2}, float b = {-1}, float c = {0}, float d = {1}> { t = Clip(x, a, b) y = Clip(t, c, d) }", odd=True),
    trap("clip-clip-disjoint-above", "[3, 4] then [0, 1] gives 1 everywhere", "g (float[n] x) => (float[n] y) <float a = {3}, float b = {4}, float c = {0}, float d = {1}> { t = Clip(x, a, b) y = Clip(t, c, d) }", odd=True),
    trap("clip-empty-range", "a minimum above the maximum gives the maximum", "g (float[n] x) => (float[n] y) <float a = {2}, float b = {1}> { y = Clip(x, a, b) }"),
    trap("clip-empty-range-then-clip", "the first range is empty: the second sees its maximum", "g (float[n] x) => (float[n] y) <float a = {2}, float b = {1}, float c = {-1}, float d = {5}> { t = Clip(x, a, b) y = Clip(t, c, d) }"),
    trap("relu-after-negative-clip", "Relu(Clip(x, -2, -1)) is 0 everywhere", "g (float[n] x) => (float[n] y) <float a = {-2}, float b = {-1}> { t = Clip(x, a, b) y = Relu(t) }", odd=True),
    trap("clip-after-relu-below", "Clip(Relu(x), -3, -1) is -1 everywhere", "g (float[n] x) => (float[n] y) <float a = {-3}, float b = {-1}> { t = Relu(x) y = Clip(t, a, b) }", odd=True),
    trap("clip-after-relu-minus-zero", "the lower limit -0 behind Relu", "g (float[n] x) => (float[n] y) <float b = {6}> { t = Relu(x) y = Clip(t, a, b) }", weights={"a": np.array(-0.0, F)}, odd=True),
    trap("clip-without-minimum", "an optional input that is left out is no zero", "g (float[n] x) => (float[n] y) <float b = {1}> { t = Clip(x, , b) y = Relu(t) }", odd=True),
    trap("clip-without-maximum", "only a lower limit on both", "g (float[n] x) => (float[n] y) <float a = {-1}, float b = {0.5}> { t = Clip(x, a) y = Clip(t, b) }", odd=True),
    trap("clip-without-limits", "no limits at all: the identity", "g (float[n] x) => (float[n] y) { y = Clip(x) }", odd=True),
    trap("clip-computed-limit", "a limit that is computed at run time is no constant", "g (float[n] x, float m) => (float[n] y) <float a = {0}, float b = {6}> { t = Clip(x, a, m) y = Clip(t, a, b) }"),
    trap("clip-6-attributes", "Clip of opset 6 has attributes", "g (float[n] x) => (float[n] y) { t = Clip<min = -1.0, max = 2.0>(x) y = Clip<min = 0.0>(t) }", opset=9, odd=True),
    trap("clip-nan-limit", "NaN as a limit", "g (float[n] x) => (float[n] y) <float b = {1}> { t = Clip(x, a, b) y = Relu(t) }", weights={"a": np.array(np.nan, F)}),
    trap("clip-integers", "Clip of int8 with the limits of int8 is the identity", "g (int8[n] x) => (int8[n] y) <int8 a = {-128}, int8 b = {127}> { y = Clip(x, a, b) }", odd=True),
    trap("max-of-minus-infinity", "Max(x, -inf) is x", "g (float[n] x) => (float[n] y) { y = Max(x, a) }", weights={"a": np.array(-np.inf, F)}, odd=True),
    trap("min-max-order", "Min(Max(x, 3), 1) is 1; swapped it is 3", "g (float[n] x) => (float[n] y, float[n] z) <float a = {3}, float b = {1}> { t = Max(x, a) y = Min(t, b) u = Min(x, b) z = Max(u, a) }", odd=True),
    trap("max-of-both-zeros", "Max(-0, 0) may be either zero: not the same as Relu bitwise", "g (float[n] x) => (float[n] y) <float a = {0}> { y = Max(x, a) }", odd=True),
    trap("max-of-one-and-three", "Max takes any number of inputs", "g (float[n] x, float[n] z) => (float[n] y) { a = Max(x) y = Max(a, z, x) }"),
    trap("sum-of-one", "Sum of one input is the input, its broadcast forms are not", "g (float[n] x, float[m, n] z) => (float[m, n] y) { a = Sum(x) y = Sum(a, z, x) }"),
    trap("relu-relu", "Relu twice is Relu once", "g (float[n] x) => (float[n] y) { a = Relu(x) y = Relu(a) }", odd=True),
    trap("relu-of-sigmoid", "Sigmoid is not below 0, NaN included", "g (float[n] x) => (float[n] y) { a = Sigmoid(x) y = Relu(a) }", odd=True),
    trap("abs-of-exp", "Abs behind what is never negative", "g (float[n] x) => (float[n] y) { a = Exp(x) y = Abs(a) }", odd=True),
    trap("neg-neg-of-smallest-integer", "-(-x) is x even where -x overflows", "g (int32[n] x) => (int32[n] y) { a = Neg(x) y = Neg(a) }", odd=True),
    trap("abs-of-neg", "Abs(-x) is Abs(x), also for -0 and NaN", "g (float[n] x) => (float[n] y) { a = Neg(x) y = Abs(a) }", odd=True),
    trap("sqrt-of-square", "Sqrt(x * x) is Abs(x) only within range", "g (float[n] x) => (float[n] y) { a = Mul(x, x) y = Sqrt(a) }", odd=True),
    trap("log-of-exp", "Log(Exp(x)) is inf where Exp overflows", "g (float[n] x) => (float[n] y) { a = Exp(x) y = Log(a) }", odd=True),
    trap("reciprocal-reciprocal", "1 / (1 / x) is not x bitwise", "g (float[n] x) => (float[n] y) { a = Reciprocal(x) y = Reciprocal(a) }", odd=True),
    trap("pow-zero", "NaN to the power of 0 is 1", "g (float[n] x) => (float[n] y) <float e = {0}> { y = Pow(x, e) }", odd=True),
    trap("pow-one", "x to the power of 1 is x", "g (float[n] x) => (float[n] y) <float e = {1}> { y = Pow(x, e) }", odd=True),
    trap("pow-half", "(-inf) to the power of 0.5 is inf, its square root NaN", "g (float[n] x) => (float[n] y) <float e = {0.5}> { y = Pow(x, e) }", odd=True),
    trap("pow-two-of-integers", "the exponent's type may differ from that of the base", "g (int32[n] x) => (int32[n] y) <float e = {2}> { y = Pow(x, e) }", integers=100),
    trap("pow-vector-exponent", "an exponent per element: 2 is only the first", "g (float[n, 3] x) => (float[n, 3] y) <float[3] e = {2, 3, 2}> { y = Pow(x, e) }"),
    trap("cast-float-int-float", "the fraction goes", "g (float[n] x) => (float[n] y) { a = Cast<to = 7>(x) y = Cast<to = 1>(a) }"),
    trap("cast-float-double-float", "widening first loses nothing", "g (float[n] x) => (float[n] y) { a = Cast<to = 11>(x) y = Cast<to = 1>(a) }", odd=True),
    trap("cast-double-float-double", "half of the digits go", "g (double[n] x) => (double[n] y) { a = Cast<to = 1>(x) y = Cast<to = 11>(a) }", odd=True),
    trap("cast-int64-int32-int64", "the upper half goes", "g (int64[n] x) => (int64[n] y) { a = Cast<to = 6>(x) y = Cast<to = 7>(a) }", odd=True),
    trap("cast-int32-float-int32", "2**31 - 1 is no float32", "g (int32[n] x) => (int32[n] y) { a = Cast<to = 1>(x) y = Cast<to = 6>(a) }", integers=2**30),
    trap("cast-float-half-float", "half precision rounds and overflows", "g (float[n] x) => (float[n] y) { a = Cast<to = 10>(x) y = Cast<to = 1>(a) }", odd=True),
    trap("cast-int-bool-int", "everything but 0 becomes 1", "g (int32[n] x) => (int32[n] y) { a = Cast<to = 9>(x) y = Cast<to = 6>(a) }", odd=True),
    trap("cast-bool-float-bool", "0 and 1 survive", "g (bool[n] x) => (bool[n] y) { a = Cast<to = 1>(x) y = Cast<to = 9>(a) }"),
    trap("cast-double-half-directly", "double to half in two steps rounds twice", "g (double[n] x) => (float16[n] y) { a = Cast<to = 1>(x) y = Cast<to = 10>(a) }"),
    trap("cast-uint8-int8-int32", "the sign appears on the way", "g (uint8[n] x) => (int32[n] y) { a = Cast<to = 3>(x) y = Cast<to = 6>(a) }", odd=True),
    trap("cast-like", "CastLike to the own type is the identity, to another not", "g (float[n] x, float q, int32 r) => (float[n] y, int32[n] z) { y = CastLike(x, q) z = CastLike(x, r) }"),
    trap("cse-of-both-zeros", "the constants 0 and -0 compare equal and are not", "g (float[n] x) => (float[n] y, float[n] z) <float a = {0}> { y = Div(x, a) z = Div(x, b) }", weights={"b": np.array(-0.0, F)}),
    trap("cse-of-types", "the constants 1 and true and 1.0 hash alike", "g (bool[n] x) => (int32[n] y, bool[n] z, bool[n] v, float[n] w) <int32 a = {1}, bool b = {1}, float c = {1}, int32 ai = {0}, bool bi = {0}, float ci = {0}> { y = Where(x, a, ai) z = And(x, b) v = Or(x, bi) w = Where(x, c, ci) }"),
    trap("cse-of-shapes", "equal bytes, other shapes: [1, 4] and [4, 1]", "g (float[4] x) => (float[1, 4] y, float[4, 4] z) <float[1, 4] a = {1, 2, 3, 4}, float[4, 1] b = {1, 2, 3, 4}> { y = Add(x, a) z = Add(x, b) }"),
    trap("cse-of-attributes", "equal inputs, one attribute differs by little", "g (float[n] x) => (float[n] y, float[n] z) { y = Elu<alpha = 1.0>(x) z = Elu<alpha = 1.0000001>(x) }"),
    trap("cse-of-defaults", "one states the default, the other leaves it out", "g (float[n, 3] x) => (float[n, 3] y, float[n, 3] z) { y = Softmax<axis = -1>(x) z = Softmax(x) }"),
    trap("cse-of-commuted", "Sub is not commutative, Add is", "g (float[n] x, float[n] w) => (float[n] y, float[n] z) { a = Sub(x, w) b = Sub(w, x) c = Add(x, w) d = Add(w, x) y = Mul(a, c) z = Mul(b, d) }", odd=True),
    trap("where-of-minus-zero", "Where(c, 0, -0) is no constant", "g (bool[n] c) => (float[n] y) <float a = {0}> { y = Where(c, a, b) }", weights={"b": np.array(-0.0, F)}),
    trap("where-of-equal-branches", "Where(c, x, x) has the shape of c and x together", "g (bool[m, n] c, float[n] x) => (float[m, n] y) { y = Where(c, x, x) }"),
    trap("where-constant-condition-broadcast", "the chosen branch may be smaller than the result", "g (float[n] x, float[1] z) => (float[n] y) <bool c = {0}> { y = Where(c, x, z) }"),
    trap("not-not", "twice negated, and a negated comparison with NaN", "g (float[n] x) => (bool[n] y, bool[n] z) <float a = {0}> { g = Greater(x, a) l = Not(g) y = Not(l) z = Identity(l) }", odd=True),
    trap("not-greater-is-no-less-or-equal", "both are false for NaN", "g (float[n] x, float[n] w) => (bool[n] y) { g = Greater(x, w) y = Not(g) }", odd=True),
    trap("equal-to-itself", "NaN is not equal to itself", "g (float[n] x) => (bool[n] y) { y = Equal(x, x) }", odd=True),
    trap("round-half-to-even", "0.5 and 2.5 round to even", "g (float[n] x) => (float[n] y) <float[4] c = {0.5, 1.5, 2.5, -0.5}> { r = Round(c) s = ReduceSum(r) y = Add(x, s) }"),
    trap("mod-of-negatives", "Mod follows the divisor, fmod the dividend", "g (int32[n] x) => (int32[n] y, int32[n] z) <int32[4] c = {-7, 7, -7, 7}, int32[4] d = {3, -3, -3, 3}> { m = Mod(c, d) s = ReduceSum<keepdims = 0>(m) y = Add(x, s) f = Mod<fmod = 1>(c, d) t = ReduceSum<keepdims = 0>(f) z = Add(x, t) }"),
    trap("integer-division-truncates", "-7 / 2 is -3", "g (int64[n] x) => (int64[n] y) <int64[3] c = {-7, 7, -8}, int64 d = {2}> { q = Div(c, d) s = ReduceSum<keepdims = 0>(q) y = Add(x, s) }"),
    trap("gelu-with-another-constant", "x * (1 + erf(x / 1.5)) / 2 is no Gelu", "g (float[n] x) => (float[n] y) <float r = {1.5}, float one = {1}, float half = {0.5}> { a = Div(x, r) e = Erf(a) p = Add(e, one) m = Mul(x, p) y = Mul(m, half) }", opset=20),
    trap("gelu-of-two-inputs", "the factor is another tensor than the argument of erf", "g (float[n] x, float[n] z) => (float[n] y) <float r = {1.4142135}, float one = {1}, float half = {0.5}> { a = Div(x, r) e = Erf(a) p = Add(e, one) m = Mul(z, p) y = Mul(m, half) }", opset=20),
    trap("gelu-read-in-the-middle", "a step of the pattern is a graph output", "g (float[n] x) => (float[n] y, float[n] p) <float r = {1.4142135}, float one = {1}, float half = {0.5}> { a = Div(x, r) e = Erf(a) p = Add(e, one) m = Mul(x, p) y = Mul(m, half) }", opset=20),
    trap("gelu-with-vector-constants", "the constant halves are vectors that add an axis", "g (float[n] x) => (float[2, n] y) <float r = {1.4142135}, float one = {1}, float[2, 1] half = {0.5, 0.5}> { a = Div(x, r) e = Erf(a) p = Add(e, one) m = Mul(x, p) y = Mul(m, half) }", opset=20),
    trap("swish-of-two-inputs", "x * sigmoid(z)", "g (float[n] x, float[n] z) => (float[n] y) { s = Sigmoid(z) y = Mul(x, s) }", opset=24),
    trap("hard-swish-with-other-slope", "HardSigmoid of alpha 0.2 is not that of HardSwish", "g (float[n] x) => (float[n] y) { s = HardSigmoid<alpha = 0.2, beta = 0.5>(x) y = Mul(x, s) }", odd=True),
    trap("hard-swish-from-clip", "x * clip(x + 3, 0, 6) / 6 with 5 instead of 6 is no HardSwish", "g (float[n] x) => (float[n] y) <float a = {3}, float z = {0}, float b = {5}, float d = {6}> { s = Add(x, a) c = Clip(s, z, b) m = Mul(x, c) y = Div(m, d) }"),
]  # fmt: skip


@pytest.mark.parametrize("each", TRAPS, ids=str)
def test_trap_is_simplified_without_a_fault(each: Trap) -> None:
    check_trap(each)
