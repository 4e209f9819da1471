"""sink-views: a view moves past the nodes below it into the next view, with the axes counted anew."""

# ruff: noqa: E501 - the tables hold one model per line

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from graphopt.passes.simplify.sink_views import SinkViews
from graphopt.runtime import Feeds
from odd_numbers import check_on_odd
from pass_oracle import check_pass, parse, run_pass

if TYPE_CHECKING:
    from collections.abc import Callable

HEAD = '<ir_version: 9, opset_import: ["" : 19]>\n'

SUNK: dict[str, tuple[str, list[str]]] = {
    "Relu": ("g (float[n, 2, 6] x) => (float[n, 12] y) <int64[2] s = {-1, 6}, int64[2] t = {-1, 12}> { a = Reshape(x, s) b = Relu(a) y = Reshape(b, t) }", ["Relu", "Reshape"]),
    "there and back": ("g (float[n, 2, 6] x) => (float[n, 2, 6] y) <int64[2] s = {-1, 6}, int64[3] t = {-1, 2, 6}> { a = Reshape(x, s) b = Relu(a) y = Reshape(b, t) }", ["Relu"]),
    "there and back beside another reader": ("g (float[n, 2, 6] x) => (float[n, 2, 6] y, float[m, 6] z) <int64[2] s = {-1, 6}, int64[3] t = {-1, 2, 6}> { a = Reshape(x, s) b = Relu(a) y = Reshape(b, t) z = Neg(a) }", ["Reshape", "Relu", "Neg"]),
    "scalar of high rank": ("g (float[6] x) => (float[6] y) <float[1, 1] c = {2}, int64[1] s = {0}> { a = Unsqueeze(x, s) b = Mul(c, a) y = Squeeze(b, s) }", ["Mul"]),
    "vector at the end": ("g (float[n, 2, 3] x) => (float[n, 6] y) <float[3] c = {2, 3, 4}, int64[2] s = {-1, 3}, int64[2] t = {-1, 6}> { a = Reshape(x, s) b = Sub(c, a) y = Reshape(b, t) }", ["Sub", "Reshape"]),
    "channels": ("g (float[n, 3, 4] x) => (float[n, 3, 4] y) <float[3, 1, 1] c = {2, 3, 4}, int64[4] s = {0, 0, 2, 2}, int64[3] t = {0, 3, 4}> { a = Reshape(x, s) b = Add(a, c) y = Reshape(b, t) }", ["Add"]),
    "Pad": ("g (float[n, 1, 4] x) => (float[n, 1, 9] y) <int64[4] p = {0, 2, 0, 3}, int64[2] s = {-1, 4}, int64[3] t = {-1, 1, 9}> { a = Reshape(x, s) b = Pad<mode = \"reflect\">(a, p) y = Reshape(b, t) }", ["Pad"]),
    "Pad of one axis": ("g (float[n, 1, 4] x) => (float[n, 1, 9] y) <int64[2] p = {2, 3}, float v = {5}, int64[1] w = {-1}, int64[2] s = {-1, 4}, int64[3] t = {-1, 1, 9}> { a = Reshape(x, s) b = Pad(a, p, v, w) y = Reshape(b, t) }", ["Pad"]),
    "Pad of one axis without a value": ("g (float[n, 1, 4] x) => (float[n, 1, 9] y) <int64[2] p = {2, 3}, int64[1] w = {-1}, int64[2] s = {-1, 4}, int64[3] t = {-1, 1, 9}> { a = Reshape(x, s) b = Pad(a, p, , w) y = Reshape(b, t) }", ["Pad"]),
    "Slice": ("g (float[n, 1, 4] x) => (float[n, 1, 2] y) <int64[1] f = {1}, int64[1] e = {3}, int64[1] w = {-1}, int64[2] s = {-1, 4}, int64[3] t = {-1, 1, 2}> { a = Reshape(x, s) b = Slice(a, f, e, w) y = Reshape(b, t) }", ["Slice"]),
    "Slice of the first axes": ("g (float[4, 3, 1] x) => (float[2, 3, 1] y) <int64[1] f = {1}, int64[1] e = {3}, int64[1] w = {2}> { a = Squeeze(x, w) b = Slice(a, f, e) y = Unsqueeze(b, w) }", ["Slice"]),
    "Gather": ("g (float[n, 1, 4] x) => (float[n, 1, 2] y) <int64[2] i = {3, 1}, int64[2] s = {-1, 4}, int64[3] t = {-1, 1, 2}> { a = Reshape(x, s) b = Gather<axis = -1>(a, i) y = Reshape(b, t) }", ["Gather"]),
    "Gather of an index": ("g (float[n, 1, 4] x, int64 i) => (float[n, 1] y) <int64 m = {4}, int64[2] s = {-1, 4}, int64[2] t = {-1, 1}> { j = Mod(i, m) a = Reshape(x, s) b = Gather<axis = 1>(a, j) y = Reshape(b, t) }", ["Mod", "Gather"]),
    "a chain": ("g (float[n, 1, 4] x) => (float[n, 1, 3] y) <int64[1] f = {1}, int64[1] e = {3}, int64[1] w = {-1}, int64[4] p = {0, 0, 0, 1}, int64[2] s = {-1, 4}, int64[3] t = {-1, 1, 3}> { a = Reshape(x, s) b = Slice(a, f, e, w) c = Neg(b) d = Pad(c, p) y = Reshape(d, t) }", ["Slice", "Neg", "Pad"]),
    "MatMul": ("g (float[n, 2, 3] x) => (float[n, 8] y) <float[3, 4] w = {1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12}, int64[2] s = {-1, 3}, int64[2] t = {-1, 8}> { a = Reshape(x, s) b = MatMul(a, w) y = Reshape(b, t) }", ["MatMul", "Reshape"]),
    "Softmax": ("g (float[n, 2, 6] x) => (float[n, 2, 6] y) <int64[2] s = {-1, 6}, int64[3] t = {-1, 2, 6}> { a = Reshape(x, s) b = Softmax(a) y = Reshape(b, t) }", ["Softmax"]),
    "LayerNormalization": ("g (float[n, 2, 6] x) => (float[n, 2, 6] y) <float[6] c = {1, 2, 3, 4, 5, 6}, int64[2] s = {-1, 6}, int64[3] t = {-1, 2, 6}> { a = Reshape(x, s) b = LayerNormalization(a, c) y = Reshape(b, t) }", ["LayerNormalization"]),
    "Transpose of ones": ("g (float[n, 1, 4] x) => (float[n, 4, 1] y) { a = Transpose<perm = [1, 0, 2]>(x) b = Abs(a) y = Transpose<perm = [1, 2, 0]>(b) }", ["Abs", "Reshape"]),
}  # fmt: skip

STAYS: dict[str, str] = {
    "the axis is not there before": "g (float[n, 2, 4] x) => (float[m, 3] y) <int64[1] f = {1}, int64[1] e = {4}, int64[1] w = {1}, int64[2] s = {-1, 8}, int64[2] t = {-1, 3}> { a = Reshape(x, s) b = Slice(a, f, e, w) y = Reshape(b, t) }",
    "read twice": "g (float[n, 2, 6] x) => (float[n, 12] y, float[m, 6] z) <int64[2] s = {-1, 6}, int64[2] t = {-1, 12}> { a = Reshape(x, s) b = Relu(a) y = Reshape(b, t) z = Neg(a) }",
    "result is read": "g (float[n, 2, 6] x) => (float[n, 12] y, float[m, 6] z) <int64[2] s = {-1, 6}, int64[2] t = {-1, 12}> { a = Reshape(x, s) z = Relu(a) y = Reshape(z, t) }",
    "constant that broadcasts the data": "g (float[n] x) => (float[m] y) <float[3, 1] c = {2, 3, 4}, int64[2] s = {1, -1}, int64[1] t = {-1}> { a = Reshape(x, s) b = Mul(c, a) y = Reshape(b, t) }",
    "constant across axes": "g (float[6] x) => (float[6] y) <float[2, 3] c = {2, 3, 4, 5, 6, 7}, int64[2] s = {2, 3}, int64[1] t = {-1}> { a = Reshape(x, s) b = Mul(c, a) y = Reshape(b, t) }",
    "MatMul of another last axis": "g (float[n, 6] x) => (float[n, 8] y) <float[3, 4] w = {1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12}, int64[2] s = {-1, 3}, int64[2] t = {-1, 8}> { a = Reshape(x, s) b = MatMul(a, w) y = Reshape(b, t) }",
    "MatMul of a vector": "g (float[3] x) => (float[4] y) <float[3, 4] w = {1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12}, int64[2] s = {1, 3}, int64[1] t = {4}> { a = Reshape(x, s) b = MatMul(a, w) y = Reshape(b, t) }",
    "no view below": "g (float[n, 2, 6] x) => (float[m, 6] y) <int64[2] s = {-1, 6}> { a = Reshape(x, s) y = Relu(a) }",
    "Softmax of columns": "g (float[2, 2, 6] x) => (float[2, 2, 6] y) <int64[2] s = {-1, 6}, int64[3] t = {2, 2, 6}> { a = Reshape(x, s) b = Softmax<axis = 0>(a) y = Reshape(b, t) }",
    "normalization of two axes": "g (float[2, 2, 6] x) => (float[2, 2, 6] y) <float[4, 6] c = {1, 2, 3, 4, 5, 6, 1, 2, 3, 4, 5, 6, 1, 2, 3, 4, 5, 6, 1, 2, 3, 4, 5, 6}, int64[2] s = {4, 6}, int64[3] t = {2, 2, 6}> { a = Reshape(x, s) b = LayerNormalization<axis = 0>(a, c) y = Reshape(b, t) }",
    "not a constant": "g (float[n, 2, 6] x, float[6] c) => (float[n, 12] y) <int64[2] s = {-1, 6}, int64[2] t = {-1, 12}> { a = Reshape(x, s) b = Mul(a, c) y = Reshape(b, t) }",
}  # fmt: skip


@pytest.mark.parametrize("case", SUNK)
def test_view_moves_into_the_next(case: str) -> None:
    text, ops = SUNK[case]
    done = (
        check_on_odd(SinkViews(), HEAD + text, free=3)
        if "int64 i)" not in text
        else check_pass(SinkViews(), HEAD + text)
    )
    assert sorted(done.ops) == sorted(ops), done.text


@pytest.mark.parametrize("case", STAYS)
def test_what_saves_nothing_or_is_not_proved_stays(case: str) -> None:
    done = run_pass(SinkViews(), HEAD + STAYS[case], verify="fast")
    assert done.record.patches == 0, done.text


def test_old_forms(golden: Callable[[str], None]) -> None:
    text = """<ir_version: 4, opset_import: ["" : 9]> g (float[2, 1, 4] x) => (float[2, 1, 5] y) <int64[2] s = {2, 4}, int64[3] t = {2, 1, 5}> {
      a = Reshape(x, s) b = Slice<axes = [1], starts = [0], ends = [3]>(a) c = Pad<pads = [0, 1, 0, 1]>(b) y = Reshape(c, t) }"""
    done = check_pass(SinkViews(), text, interpreted=False)
    golden(done.text)
    assert done.ops == ["Slice", "Pad"]


STEPS = ("Relu", "Mul", "Add", "Slice", "Gather", "Pad")


@settings(max_examples=120, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.data())
def test_generated_chains_keep_their_outputs(data: st.DataObject) -> None:
    draw = data.draw
    shape = draw(st.lists(st.sampled_from([1, 2, 3, 4]), min_size=1, max_size=4))
    names = [draw(st.sampled_from([str(size), f"d{axis}"])) for axis, size in enumerate(shape)]
    size = int(np.prod(shape))
    sizes = draw(
        st.sampled_from(
            [
                [size],
                [shape[0], size // shape[0]],
                [1, *shape],
                [*shape, 1],
                [size // shape[-1], shape[-1]],
                shape[::-1],
            ]
        )
    )
    constants, lines = [f"int64[{len(sizes)}] s = {{{', '.join(map(str, sizes))}}}"], ["a0 = Reshape(x, s)"]
    for step in range(draw(st.integers(1, 3))):
        op, before, after = draw(st.sampled_from(STEPS)), f"a{step}", f"a{step + 1}"
        axis = draw(st.integers(0, len(sizes) - 1))
        if op in {"Mul", "Add"}:
            wide = [size if draw(st.booleans()) else 1 for size in sizes][draw(st.integers(0, len(sizes) - 1)) :]
            values = ", ".join(str(number % 5 - 2) for number in range(int(np.prod(wide))))
            constants.append(f"float[{', '.join(map(str, wide))}] c{step} = {{{values}}}")
            lines.append(f"{after} = {op}({before}, c{step})")
        elif op == "Slice":
            constants.append(
                f"int64[1] f{step} = {{{draw(st.integers(0, 1))}}}, int64[1] e{step} = {{{sizes[axis]}}}, int64[1] w{step} = {{{axis}}}"
            )
            lines.append(f"{after} = Slice({before}, f{step}, e{step}, w{step})")
            sizes = [*sizes[:axis], sizes[axis] - int(constants[-1].split("{")[1][0]), *sizes[axis + 1 :]]
        elif op == "Gather":
            indices = (
                draw(st.lists(st.integers(0, max(sizes[axis] - 1, 0)), min_size=1, max_size=3)) if sizes[axis] else []
            )
            constants.append(f"int64[{len(indices)}] i{step} = {{{', '.join(map(str, indices))}}}")
            lines.append(f"{after} = Gather<axis = {axis}>({before}, i{step})")
            sizes = [*sizes[:axis], len(indices), *sizes[axis + 1 :]]
        elif op == "Pad":
            pads = [0] * (2 * len(sizes))
            pads[axis], pads[len(sizes) + axis] = 1, 2
            constants.append(f"int64[{len(pads)}] p{step} = {{{', '.join(map(str, pads))}}}")
            lines.append(f"{after} = Pad({before}, p{step})")
            sizes = [*sizes[:axis], sizes[axis] + 3, *sizes[axis + 1 :]]
        else:
            lines.append(f"{after} = Relu({before})")
    assume(all(sizes))
    total = int(np.prod(sizes))
    last = draw(st.sampled_from([[total], [1, total], [*sizes, 1], shape if np.prod(shape) == total else [total]]))
    constants.append(f"int64[{len(last)}] t = {{{', '.join(map(str, last))}}}")
    lines.append(f"y = Reshape(a{len(lines) - 1}, t)")
    made = ", ".join(f"o{axis}" for axis in range(len(last)))
    text = (
        f"{HEAD}g (float[{', '.join(names)}] x) => (float[{made}] y) <{', '.join(constants)}> {{ {' '.join(lines)} }}"
    )
    x = np.arange(size, dtype=np.float32).reshape(1, *shape) - 3
    check_pass(SinkViews(), text, Feeds.open({"x": x}, parse(text)), samples=1, interpreted=False)
