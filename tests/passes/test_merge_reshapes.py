"""merge-reshapes: a chain of views becomes one node, unless a size would have to be guessed."""

# ruff: noqa: E501 - the tables hold one model per line

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import onnx
import onnx.parser
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from graphopt.passes.simplify.merge_reshapes import MergeReshapes
from graphopt.runtime import Feeds
from pass_oracle import check_pass, parse, run_pass

if TYPE_CHECKING:
    from collections.abc import Callable

HEAD = '<ir_version: 9, opset_import: ["" : 19]>\n'

ONE: dict[str, tuple[str, list[str]]] = {
    "Reshape of Reshape": ("g (float[2, 6] x) => (float[4, 3] y) <int64[1] s = {12}, int64[2] t = {4, 3}> { a = Reshape(x, s) y = Reshape(a, t) }", ["Reshape"]),
    "second copies a size the first made": ("g (float[3, 8] x) => (float[2, 12] y) <int64[3] s = {2, 6, 2}, int64[2] t = {0, -1}> { a = Reshape(x, s) y = Reshape(a, t) }", ["Reshape"]),
    "batch is copied": ("g (float[n, 2, 6] x) => (float[n, 4, 3] y) <int64[2] s = {0, 12}, int64[3] t = {0, 4, 3}> { a = Reshape(x, s) y = Reshape(a, t) }", ["Reshape"]),
    "batch is merged": ("g (float[n, m, 6] x) => (float[k, 3] y) <int64[2] s = {-1, 6}, int64[2] t = {-1, 3}> { a = Reshape(x, s) y = Reshape(a, t) }", ["Reshape"]),
    "Flatten of Unsqueeze": ("g (float[n, 6] x) => (float[n, 6] y) <int64[1] s = {2}> { a = Unsqueeze(x, s) b = Flatten(a) y = Neg(b) }", ["Neg"]),
    "Unsqueeze of Unsqueeze": ("g (float[n, m] x) => (float[1, n, m, 1] y) <int64[1] s = {0}, int64[1] t = {3}> { a = Unsqueeze(x, s) y = Unsqueeze(a, t) }", ["Unsqueeze"]),
    "Squeeze of Squeeze": ("g (float[1, n, m, 1] x) => (float[n, m] y) <int64[1] s = {0}, int64[1] t = {2}> { a = Squeeze(x, s) y = Squeeze(a, t) }", ["Squeeze"]),
    "Squeeze and Unsqueeze elsewhere": ("g (float[1, 5] x) => (float[5, 1] y) <int64[1] s = {0}, int64[1] t = {1}> { a = Squeeze(x, s) y = Unsqueeze(a, t) }", ["Reshape"]),
    "three": ("g (float[n, 4] x) => (float[n, 2, 2] y) <int64[1] s = {1}, int64[2] t = {0, 4}, int64[3] u = {0, 2, 2}> { a = Unsqueeze(x, s) b = Reshape(a, t) y = Reshape(b, u) }", ["Reshape"]),
    "Flatten that no Reshape can say": ("g (float[n, m, 2] x) => (float[n, k] y) <int64[1] s = {3}> { a = Unsqueeze(x, s) y = Flatten(a) }", ["Flatten"]),
    "Transpose of ones below": ("g (float[n, 6] x) => (float[1, n, 6] y) <int64[1] s = {1}> { a = Unsqueeze(x, s) y = Transpose<perm = [1, 0, 2]>(a) }", ["Reshape"]),
    "Transpose of ones above": ("g (float[n, 1, 6] x) => (float[n, 6] y) { a = Transpose<perm = [1, 0, 2]>(x) y = Flatten<axis = 2>(a) }", ["Reshape"]),
    "static empty": ("g (float[0, 4] x) => (float[0, 2, 2] y) <int64[2] s = {0, 4}, int64[3] t = {0, 2, 2}> { a = Reshape(x, s) y = Reshape(a, t) }", ["Reshape"]),
    "scalar": ("g (float[1, 1] x) => (float y) <int64[1] s = {1}, int64[1] t = {0}> { a = Reshape(x, s) y = Squeeze(a, t) }", ["Reshape"]),
    "to and from scalar": ("g (float x) => (float[1, 1] y) <int64[1] s = {0}, int64[1] t = {0}> { a = Unsqueeze(x, s) y = Unsqueeze(a, t) }", ["Reshape"]),
    "target of -1 stays": ("g (float[n, m, 6] x) => (float[n, k, 3] y) <int64[4] s = {0, 0, 2, 3}, int64[3] t = {0, -1, 3}> { a = Reshape(x, s) y = Reshape(a, t) }", ["Reshape"]),
    "first has two readers": ("g (float[2, 6] x) => (float[4, 3] y, float[12] z) <int64[1] s = {12}, int64[2] t = {4, 3}> { a = Reshape(x, s) y = Reshape(a, t) z = Neg(a) }", ["Reshape", "Reshape", "Neg"]),
}  # fmt: skip

STAYS: dict[str, str] = {
    "two sizes would be inferred": "g (float[n, 6] x) => (float[k, l, 3] y) <int64[3] s = {2, -1, 6}, int64[3] t = {-1, 4, 3}> { a = Reshape(x, s) b = Neg(a) y = Reshape(b, t) }",
    "inferred beside a size that may be 0": "g (float[n, m, 2] x) => (float[n, k, 1] y) <int64[1] s = {2}> { a = Flatten(x) y = Unsqueeze(a, s) }",
    "alone": "g (float[2, 6] x) => (float[12] y) <int64[1] s = {12}> { y = Reshape(x, s) }",
    "Transpose that moves": "g (float[2, 6] x) => (float[12] y) <int64[1] s = {12}> { a = Transpose(x) y = Reshape(a, s) }",
    "allowzero": "g (float[n, 0, m] x) => (float[k, 0, 1] y) <int64[3] s = {0, 0, -1}, int64[3] t = {7, 0, 1}> { a = Neg(x) y = Reshape<allowzero = 1>(a, t) }",
}  # fmt: skip


@pytest.mark.parametrize("case", ONE)
def test_chain_of_views_becomes_one_node(case: str) -> None:
    text, ops = ONE[case]
    done = check_pass(MergeReshapes(), HEAD + text)
    assert done.ops == ops, done.text
    if case == "first has two readers":
        assert [node.inputs[0].name for node in done.model.graph.nodes] == ["x", "x", "a"]


@pytest.mark.parametrize("case", STAYS)
def test_view_that_is_alone_or_not_proved_stays(case: str) -> None:
    done = run_pass(MergeReshapes(), HEAD + STAYS[case], verify="fast")
    assert done.record.patches == 0, done.text


def test_empty_batch_still_runs() -> None:
    text = "g (float[n, 2, 6] x) => (float[n, 4, 3] y) <int64[2] s = {0, 12}, int64[3] t = {0, 4, 3}> { a = Reshape(x, s) y = Reshape(a, t) }"
    for rows in (0, 1, 3):
        x = np.arange(rows * 12, dtype=np.float32).reshape(1, rows, 2, 6)
        feeds = Feeds.open({"x": x}, parse(HEAD + text))
        assert check_pass(MergeReshapes(), HEAD + text, feeds).ops == ["Reshape"]


def test_axes_are_attributes_in_old_opsets() -> None:
    head = '<ir_version: 6, opset_import: ["" : 11]>\n'
    text = "g (float[n, m] x) => (float[1, n, m, 1] y) { a = Unsqueeze<axes = [0]>(x) y = Unsqueeze<axes = [3]>(a) }"
    done = check_pass(MergeReshapes(), head + text)
    assert done.ops == ["Unsqueeze"]
    assert list(done.model.graph.nodes[0].attrs["axes"]) == [0, 3]


def test_chain_in_a_body_and_in_a_function(golden: Callable[[str], None]) -> None:
    done = check_pass(
        MergeReshapes(),
        """<ir_version: 9, opset_import: ["" : 19, "f" : 1]>
    g (bool c, float[2, 6] x) => (float[12] y) <int64[2] s = {3, 4}, int64[1] t = {12}> { n = Reshape(x, s)
      y = If (c) <then_branch = u () => (float[12] a) { a = Reshape(n, t) },
                  else_branch = e () => (float[12] b) { b = f.flat(x) }> }
    <opset_import: ["" : 19], domain: "f"> flat (x) => (y) {
      s = Constant<value_ints = [4, 3]>() t = Constant<value_ints = [12]>() d = Reshape(x, s) y = Reshape(d, t) }""",
    )
    golden(done.text)
    assert "Reshape" in done.ops


@st.composite
def chains(draw: st.DrawFn) -> tuple[str, list[int]]:
    """Draw a chain of views over a tensor with free axes, and the sizes that these have."""
    sizes = draw(st.lists(st.sampled_from([1, 2, 3, 4]), min_size=0, max_size=4))
    names = [draw(st.sampled_from([str(size), f"d{axis}"])) for axis, size in enumerate(sizes)]
    shape, lines, constants = list(sizes), [], []
    for step in range(draw(st.integers(2, 4))):
        op = draw(st.sampled_from(["Reshape", "Reshape", "Flatten", "Squeeze", "Unsqueeze"]))
        before, after = f"t{step}", f"t{step + 1}"
        if op == "Flatten":
            axis = draw(st.integers(0, len(shape)))
            shape = [int(np.prod(shape[:axis])), int(np.prod(shape[axis:]))]
            lines.append(f"{after} = Flatten<axis = {axis}>({before})")
            continue
        if op == "Squeeze":
            ones = [axis for axis, size in enumerate(shape) if size == 1]
            assume(ones)
            values = draw(st.lists(st.sampled_from(ones), min_size=1, max_size=2, unique=True))
            shape = [size for axis, size in enumerate(shape) if axis not in values]
        elif op == "Unsqueeze":
            values = [draw(st.integers(0, len(shape)))]
            shape.insert(values[0], 1)
        else:
            values, shape = _target(draw, shape)
        constants.append(f"int64[{len(values)}] c{step} = {{{', '.join(map(str, values))}}}")
        lines.append(f"{after} = {op}({before}, c{step})")
    last = len(lines)
    given = f"float{'[' + ', '.join(names) + ']' if names else ''} x"
    made = "float" + (f"[{', '.join(f'o{axis}' for axis in range(len(shape)))}]" if shape else "")
    bound = f" <{', '.join(constants)}>" if constants else ""
    body = " ".join(["t0 = Neg(x)", *lines, f"y = Neg(t{last})"])
    return f"g ({given}) => ({made} y){bound} {{ {body} }}", sizes


def _target(draw: st.DrawFn, shape: list[int]) -> tuple[list[int], list[int]]:
    """Draw a target for a Reshape: numbers, copied sizes and at most one inferred one."""
    left, new = int(np.prod(shape)), []
    while left > 1 or draw(st.booleans()):
        size = draw(st.sampled_from([size for size in range(1, left + 1) if left % size == 0]))
        new.append(size)
        left //= size
        if len(new) == 4:
            break
    new[-1:] = [new[-1] * left] if new else [left]
    target = [
        0 if axis < len(shape) and shape[axis] == size and draw(st.booleans()) else size
        for axis, size in enumerate(new)
    ]
    if draw(st.booleans()):
        target[draw(st.integers(0, len(target) - 1))] = -1
    return target, new


@settings(max_examples=120, deadline=None, suppress_health_check=list(HealthCheck))
@given(chains())
def test_generated_chains_keep_their_outputs(drawn: tuple[str, list[int]]) -> None:
    text, sizes = drawn
    x = np.arange(int(np.prod(sizes)), dtype=np.float32).reshape(1, *sizes)
    model = onnx.parser.parse_model(HEAD + text)
    check_pass(MergeReshapes(), model, Feeds.open({"x": x}, parse(model)), samples=1)
