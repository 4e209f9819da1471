"""Values of shape computations: what integer tensors hold, symbolically, and what must stay unknown."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest

from graphopt.analysis import Facts, ShapeValues
from shape_agreement import check_run, read_text

if TYPE_CHECKING:
    from graphopt.graph import Model

HEAD = '<ir_version: 9, opset_import: ["" : {}]>\n'


def values(model: Model) -> dict[str, str]:
    """The known elements of every named tensor, as text; unknown elements of a partly known tensor are None."""
    found = Facts(model).get(ShapeValues)
    texts = {}
    for _, node in model.walk():
        for tensor in node.outputs:
            array = found.array(tensor)
            if array is not None:
                texts[tensor.name] = ", ".join(map(str, array.ravel().tolist()))
    return texts


CASES = {
    "arithmetic of sizes": (
        """g (float[b, s, 12] x) => (float y) <int64 i1 = {1}, int64 two = {2}, int64 three = {3}, int64 minus = {-7}> {
            shape = Shape (x)
            n = Gather (shape, i1)
            sum = Add (n, two)
            twice = Mul (n, two)
            half = Div (twice, two)
            third = Div (n, three)
            rest = Mod (twice, two)
            less = Sub (n, sum)
            truncated = Div (minus, two)
            floored = Mod (minus, two)
            low = Min (n, sum)
            y = Relu (x)
        }""",
        {
            "shape": "b, s, 12",
            "n": "s",
            "sum": "s + 2",
            "twice": "2*s",
            "half": "s",
            "third": "floordiv(s, 3)",
            "rest": "0",
            "less": "-2",
            "truncated": "-3",
            "floored": "1",
            "low": "s",
        },
    ),
    "part of a shape": (
        """g (float[b, s, 12] x) => (float y)
        <int64[1] m1 = {-1}, int64[1] all = {9223372036854775807}, int64[1] low = {-9223372036854775807},
         int64[1] a = {0}> {
            tail = Shape <start = -2> (x)
            shape = Shape (x)
            last = Slice (shape, m1, all, a)
            flipped = Slice (shape, m1, low, a, m1)
            odd = Slice (shape, m1, all, a, m1)
            size = Size (x)
            total = ReduceProd <keepdims = 0> (shape)
            y = Relu (x)
        }""",
        {"tail": "s, 12", "last": "12", "flipped": "12, s, b", "size": "12*b*s", "total": "12*b*s"},
    ),
    "the target of an expand": (
        """g (float[b, 1] x) => (float y)
        <int64[2] asked = {-1, 7}, int64[1] m1 = {-1}, int64[1] two = {2}> {
            shape = Shape (x)
            ones = ConstantOfShape <value: tensor = int64[1] {1}> (two)
            minus = Mul (ones, m1)
            kept = Equal (asked, minus)
            target = Where (kept, ones, asked)
            never = Equal (shape, minus)
            same = Where (never, ones, shape)
            y = Expand (x, target)
        }""",
        {"kept": "True, False", "target": "1, 7", "never": "False, False", "same": "b, 1"},
    ),
    "sizes through floats": (
        """g (float[1, 1, h, 6] x) => (float y)
        <int64 i2 = {2}, float two = {2.0}, float half = {0.5}, int64[1] a = {0}> {
            shape = Shape (x)
            n = Gather (shape, i2)
            f = Cast <to = 1> (n)
            wide = Mul (f, two)
            down = Floor (wide)
            back = Cast <to = 7> (down)
            part = Mul (f, half)
            y = Relu (x)
        }""",
        {"f": "h", "wide": "2*h", "back": "2*h", "part": "None"},
    ),
    "elements that only the run knows have names": (
        """g (int64[2] target, float[b] x) => (float y) <int64 one = {1}> {
            more = Add (target, one)
            y = Reshape (x, target)
        }""",
        {"more": "?target[0] + 1, ?target[1] + 1"},
    ),
    "a value that leaves its type is unknown": (
        """g (float[b] x) => (float y)
        <int64 big = {9223372036854775807}, int32 small = {2147483647}, int64 one = {1}> {
            over = Add (big, one)
            square = Mul (small, small)
            fine = Sub (big, one)
            y = Relu (x)
        }""",
        {"fine": "9223372036854775806", "over": "?over[0]", "square": "?square[0]"},
    ),
    "comparisons hold for every size or are unknown": (
        """g (float[b, s] x) => (float y) <int64 i0 = {0}, int64 i1 = {1}, int64 zero = {0}, int64 m1 = {-1}> {
            shape = Shape (x)
            b0 = Gather (shape, i0)
            s0 = Gather (shape, i1)
            at_least = GreaterOrEqual (b0, zero)
            above = Greater (b0, zero)
            is_minus = Equal (b0, m1)
            same = Equal (b0, b0)
            other = Equal (b0, s0)
            no = Not (is_minus)
            either = Or (above, no)
            both = And (above, is_minus)
            y = Relu (x)
        }""",
        {
            "at_least": "True",
            "above": "None",
            "is_minus": "False",
            "same": "True",
            "other": "None",
            "no": "True",
            "either": "True",
            "both": "False",
        },
    ),
    "limits and parts": (
        """g (float[b, s] x) => (float y)
        <int64 i1 = {1}, int64 zero = {0}, int64 one = {1}, int64 two = {2}, int64 nine = {9}, int64[1] a0 = {0},
         int64[1] a1 = {1}> {
            shape = Shape (x)
            n = Gather (shape, i1)
            inside = Clip (n, one, nine)
            below = Clip (n, , nine)
            above = Clip (n, zero)
            crossed = Clip (n, nine, one)
            part = Div (n, two)
            least = Min (n, part)
            line = Unsqueeze (n, a0)
            shorter = Sub (line, a1)
            cut = Slice (x, a0, shorter, a1)
            lengths = Shape <start = 1> (cut)
            tail = Slice (x, shorter, line, a1)
            rest = Shape <start = 1> (tail)
            y = Relu (x)
        }""",
        {
            "inside": "min(9, max(1, s))",
            "below": "min(9, s)",
            "above": "s",
            "crossed": "1",
            "least": "floordiv(s, 2)",
            "lengths": "max(0, s - 1)",
            "rest": "min(1, s)",
        },
    ),
    "movement": (
        """g (float[b, s] x) => (float y)
        <int64[2] fold = {2, 1}, int64[1] flat = {-1}, int64[1] a0 = {0}, int64[1] upd = {9}, int64[1, 1] at = {1}> {
            shape = Shape (x)
            matrix = Reshape (shape, fold)
            turned = Transpose (matrix)
            line = Reshape (turned, flat)
            p, q = Split <axis = 0> (shape)
            joined = Concat <axis = 0> (q, p)
            up = Unsqueeze (p, a0)
            down = Squeeze (up, a0)
            put = ScatterND (shape, at, upd)
            twice = Expand (p, fold)
            y = Relu (x)
        }""",
        {"line": "b, s", "joined": "s, b", "down": "b", "put": "b, 9", "twice": "b, b"},
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_values(name: str) -> None:
    body, expected = CASES[name]
    found = values(read_text(HEAD.format(17) + body))
    assert {name: found.get(name) for name in expected} == expected


def test_large_tensors_are_not_followed() -> None:
    model = read_text(
        HEAD.format(17)
        + """g (float[b] x) => (float y) <int64 zero = {0}, int64 many = {1000}, int64 one = {1}> {
            r = Range (zero, many, one)
            y = Relu (x)
        }"""
    )
    assert "r" not in values(model)


def test_a_weight_is_not_read_unless_its_elements_matter() -> None:
    model = read_text(HEAD.format(17) + "g (float[b, 2] x, float[2] w) => (float y) { y = Mul (x, w) }")
    found = Facts(model).get(ShapeValues)
    assert all(found.array(tensor) is None for tensor in model.graph.inputs)


def test_value_and_constant_of_one_tensor() -> None:
    model = read_text(HEAD.format(17) + CASES["part of a shape"][0])
    found = Facts(model).get(ShapeValues)
    tail, _, last = (node.outputs[0] for node in list(model.graph.nodes)[:3])
    assert found.constant(tail) is None
    assert str(found.value(tail)) == "(Expr(s), 12)"
    assert found.constant(last) == (12,)
    assert found.value(model.graph.outputs[0]) is None


@pytest.mark.parametrize("name", [name for name in CASES if "only the run" not in name])
def test_values_agree_with_a_run(name: str) -> None:
    model = read_text(HEAD.format(17) + CASES[name][0])
    for size in (1, 4):
        feed = {}
        for tensor in model.graph.inputs:
            shape = [entry if isinstance(entry, int) else size + len(str(entry)) for entry in tensor.shape or ()]
            feed[tensor.name] = np.ones(shape, tensor.dtype)
        assert check_run(model, feed).elements > 0
