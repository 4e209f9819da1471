"""merge-constant-operands: constants of sums and of products become one where nothing is lost."""

# ruff: noqa: E501 - the tables hold one model per line

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from graphopt.graph import constant_value
from graphopt.passes.simplify.merge_constant_operands import MergeConstantOperands
from odd_numbers import check_on_odd
from pass_oracle import check_pass, run_pass

HEAD = '<ir_version: 9, opset_import: ["" : 19]>\n'

MERGED: dict[str, tuple[str, str, float]] = {
    "x + 2 + 3": ("<float p = {2}, float q = {3}> { a = Add(x, p) y = Add(q, a) }", "Add", 5),
    "x - 2 - 3": ("<float p = {2}, float q = {3}> { a = Sub(x, p) y = Sub(a, q) }", "Add", -5),
    "3 - (x - 2)": ("<float p = {2}, float q = {3}> { a = Sub(x, p) y = Sub(q, a) }", "Sub", 5),
    "3 - (2 + x)": ("<float p = {2}, float q = {-3}> { a = Add(p, x) y = Sub(q, a) }", "Sub", -5),
    "3 - (7 - x)": ("<float p = {-7}, float q = {3}> { a = Sub(p, x) y = Sub(q, a) }", "Add", 10),
    "x * 2 * 3": ("<float p = {2}, float q = {3}> { a = Mul(p, x) y = Mul(a, q) }", "Mul", 6),
    "x * 2 / 8": ("<float p = {2}, float q = {8}> { a = Mul(p, x) y = Div(a, q) }", "Mul", 0.25),
    "3 / (x * 2)": ("<float p = {2}, float q = {3}> { a = Mul(p, x) y = Div(q, a) }", "Div", 1.5),
    "3 / (6 / x)": ("<float p = {6}, float q = {3}> { a = Div(p, x) y = Div(q, a) }", "Mul", 0.5),
    "ranks": ("<float[1] p = {6}, float q = {3}> { a = Mul(p, x) y = Mul(q, a) }", "Mul", 18),
}  # fmt: skip

STAYS: dict[str, str] = {
    "read elsewhere": "g (float[n] x) => (float[n] y, float[n] a) <float p = {2}, float q = {3}> { a = Mul(p, x) y = Mul(a, q) }",
    "sum of product": "g (float[n] x) => (float[n] y) <float p = {2}, float q = {3}> { a = Mul(p, x) y = Add(a, q) }",
    "not constant": "g (float[n] x, float q) => (float[n] y) <float p = {2}> { a = Mul(p, x) y = Mul(a, q) }",
    "integers divided": "g (int32[n] x) => (int32[n] y) <int32 p = {2}, int32 q = {3}> { a = Mul(p, x) y = Div(a, q) }",
    "constants of other axes": "g (float[2, 3] x) => (float[2, 3] y) <float[3] p = {2, 3, 4}, float[2, 1] q = {3, 4}> { a = Mul(p, x) y = Mul(a, q) }",
    "times 0": "g (float[n] x) => (float[n] y) <float p = {0}, float q = {3}> { a = Mul(p, x) y = Mul(a, q) }",
}  # fmt: skip


@pytest.mark.parametrize("case", MERGED)
def test_one_constant_is_left(case: str) -> None:
    body, op, number = MERGED[case]
    done = check_pass(MergeConstantOperands(), f"{HEAD}g (float[n] x) => (float[n] y) {body}")
    assert done.ops == [op], done.text
    values = [constant_value(tensor) for tensor in done.model.graph.nodes[0].inputs]
    assert [float(value.reshape(())) for value in values if value is not None] == [number]


@pytest.mark.parametrize("case", STAYS)
def test_what_is_not_the_same_stays(case: str) -> None:
    assert run_pass(MergeConstantOperands(), HEAD + STAYS[case], verify="fast").record.patches == 0


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ("<float p = {12582912}, float q = {12582912}> { a = Add(x, p) y = Sub(a, q) }", "nearly cancel"),
        ("<float p = {1e20}, float q = {1e30}> { a = Mul(x, p) y = Mul(a, q) }", "far from 1"),
        ("<float p = {3e38}, float q = {3e38}> { a = Add(x, p) y = Add(a, q) }", "out of the range"),
    ],
)
def test_loss_is_a_reason(body: str, words: str) -> None:
    done = run_pass(MergeConstantOperands(), f"{HEAD}g (float[n] x) => (float[n] y) {body}", verify="fast")
    assert words in done.skips.popitem()[1]


def test_vectors_and_numbers() -> None:
    text = (
        "g (float[n, 3] x) => (float[n, 3] y) <float[3] p = {1, 2, 4}, float q = {3}> { a = Div(x, p) y = Mul(q, a) }"
    )
    done = check_pass(MergeConstantOperands(), HEAD + text)
    assert done.ops == ["Mul"]


@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    st.sampled_from(["int8", "uint8", "int32", "uint64"]),
    st.lists(
        st.tuples(st.sampled_from(["Add", "Sub", "Mul"]), st.booleans(), st.integers(0, 127)), min_size=2, max_size=4
    ),
)
def test_integers_wrap_as_before(kind: str, chain: list[tuple[str, bool, int]]) -> None:
    lines, constants = [], []
    for step, (op, left, number) in enumerate(chain):
        constants.append(f"{kind} c{step} = {{{number}}}")
        operands = (f"c{step}", f"a{step}") if left else (f"a{step}", f"c{step}")
        lines.append(f"a{step + 1} = {op}({', '.join(operands)})")
    body = " ".join(["a0 = Identity(x)", *lines, f"y = Identity(a{len(chain)})"])
    text = f"{HEAD}g ({kind}[n] x) => ({kind}[n] y) <{', '.join(constants)}> {{ {body} }}"
    supported = kind in {"int32", "uint64"}
    check_on_odd(MergeConstantOperands(), text, interpreted=False, samples=1) if supported else run_pass(
        MergeConstantOperands(), text, verify="off"
    )


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    st.lists(
        st.tuples(
            st.sampled_from(["Add", "Sub", "Mul", "Div"]),
            st.booleans(),
            st.sampled_from([-4.0, -1.0, 0.1, 0.5, 3.0, 1e6]),
        ),
        min_size=2,
        max_size=5,
    )
)
def test_generated_chains_keep_their_outputs_up_to_rounding(chain: list[tuple[str, bool, float]]) -> None:
    lines, constants = [], []
    for step, (op, left, number) in enumerate(chain):
        constants.append(f"float c{step} = {{{np.float32(number)}}}")
        operands = (f"c{step}", f"a{step}") if left and op != "Div" else (f"a{step}", f"c{step}")
        lines.append(f"a{step + 1} = {op}({', '.join(operands)})")
    body = " ".join(["a0 = Neg(x)", *lines, f"y = Neg(a{len(chain)})"])
    check_pass(
        MergeConstantOperands(),
        f"{HEAD}g (float[n] x) => (float[n] y) <{', '.join(constants)}> {{ {body} }}",
        samples=1,
    )
