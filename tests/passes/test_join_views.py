"""join-views: views that meet in one node become one view behind it."""

# ruff: noqa: E501 - the tables hold one model per line

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from graphopt.passes.simplify.join_views import JoinViews
from odd_numbers import check_on_odd
from pass_oracle import check_pass, run_pass

if TYPE_CHECKING:
    from collections.abc import Callable

HEAD = '<ir_version: 9, opset_import: ["" : 19]>\n'
TWO = "float[n, 2, 3] p, float[n, 2, 3] q"

JOINED: dict[str, tuple[str, list[str]]] = {
    "Add": (f"g ({TWO}) => (float[n, 6] y) <int64[2] s = {{0, 6}}> {{ a = Reshape(p, s) b = Reshape(q, s) y = Add(a, b) }}", ["Add", "Reshape"]),
    "Add of different views": (f"g ({TWO}) => (float[n, 6] y) <int64[2] s = {{0, 6}}> {{ a = Reshape(p, s) b = Flatten(q) y = Sub(a, b) }}", ["Sub", "Reshape"]),
    "Where": (f"g ({TWO}, bool[n, 2, 3] c) => (float[n, 6] y) <int64[2] s = {{0, 6}}> {{ d = Reshape(c, s) a = Reshape(p, s) b = Reshape(q, s) y = Where(d, a, b) }}", ["Where", "Reshape"]),
    "stack": (f"g ({TWO}) => (float[n, 2, 2, 3] y) <int64[1] s = {{1}}> {{ a = Unsqueeze(p, s) b = Unsqueeze(q, s) y = Concat<axis = 1>(a, b) }}", ["Concat", "Reshape"]),
    "Concat of the last axis": ("g (float[n, 1, 3] p, float[n, 1, 5] q) => (float[n, 8] y) <int64[1] s = {1}> { a = Squeeze(p, s) b = Squeeze(q, s) y = Concat<axis = -1>(a, b) }", ["Concat", "Reshape"]),
    "Concat of a free axis": ("g (float[n, 2, 3] p, float[m, 2, 3] q) => (float[k, 6] y) <int64[2] s = {-1, 6}> { a = Reshape(p, s) b = Reshape(q, s) y = Concat<axis = 0>(a, b) }", ["Concat", "Reshape"]),
}  # fmt: skip

STAYS: dict[str, str] = {
    "other shapes": "g (float[2, 3] p, float[3, 2] q) => (float[6] y) <int64[1] s = {6}> { a = Reshape(p, s) b = Reshape(q, s) y = Add(a, b) }",
    "broadcast": f"g ({TWO}) => (float[1, n, 2, 3] y) <int64[1] s = {{0}}, int64[4] t = {{1, -1, 2, 3}}> {{ a = Unsqueeze(p, s) b = Reshape(q, t) c = Neg(b) y = Add(a, c) }}",
    "read elsewhere": f"g ({TWO}) => (float[n, 6] y, float[n, 6] z) <int64[2] s = {{0, 6}}> {{ a = Reshape(p, s) b = Reshape(q, s) y = Add(a, b) z = Neg(a) }}",
    "Concat behind split axes": "g (float[4, 3] p, float[4, 3] q) => (float[2, 4, 3] y) <int64[3] s = {2, 2, 3}> { a = Reshape(p, s) b = Reshape(q, s) y = Concat<axis = 1>(a, b) }",
    "one view": f"g ({TWO}) => (float[n, 6] y) <int64[2] s = {{0, 6}}> {{ a = Reshape(p, s) y = Add(a, a) }}",
}  # fmt: skip


@pytest.mark.parametrize("case", JOINED)
def test_views_become_one(case: str) -> None:
    text, ops = JOINED[case]
    done = check_on_odd(JoinViews(), HEAD + text, free=3)
    assert done.ops == ops, done.text


@pytest.mark.parametrize("case", STAYS)
def test_what_saves_nothing_or_is_not_proved_stays(case: str) -> None:
    done = run_pass(JoinViews(), HEAD + STAYS[case], verify="fast")
    assert done.record.patches == 0, done.text


def test_stack_of_two(golden: Callable[[str], None]) -> None:
    golden(check_pass(JoinViews(), HEAD + JOINED["stack"][0]).text)


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    st.lists(st.sampled_from([1, 2, 3]), min_size=1, max_size=3),
    st.lists(st.sampled_from([1, 2, 3]), min_size=2, max_size=3),
    st.data(),
)
def test_generated_joins_keep_their_outputs(rest: list[int], parts: list[int], data: st.DataObject) -> None:
    place = data.draw(st.integers(0, len(rest)))
    axis = data.draw(st.integers(0, 2))
    names, lines, constants = [], [], []
    target = None
    for index, part in enumerate(parts):
        shape = [*rest[:place], part, *rest[place:]]
        front = 1
        for size in shape[:place]:
            front *= size
        behind = 1
        for size in shape[place + 1 :]:
            behind *= size
        target = [front, part, behind] if axis == 1 else [front * part, behind] if axis == 0 else [front, part * behind]
        names.append(f"float[{', '.join(map(str, shape))}] x{index}")
        constants.append(f"int64[{len(target)}] s{index} = {{{', '.join(map(str, target))}}}")
        lines.append(f"a{index} = Reshape(x{index}, s{index})")
    assert target is not None
    joint = 0 if axis == 0 else 1
    given_ = ", ".join(f"a{index}" for index in range(len(parts)))
    lines.append(f"y = Concat<axis = {joint}>({given_})")
    made = ", ".join(f"o{index}" for index in range(len(target)))
    assume(len(parts) > 1)
    text = f"{HEAD}g ({', '.join(names)}) => (float[{made}] y) <{', '.join(constants)}> {{ {' '.join(lines)} }}"
    check_pass(JoinViews(), text, samples=1)
