"""merge-concats: nested Concats become one, and what is empty goes."""

# ruff: noqa: E501 - the tables hold one model per line

from __future__ import annotations

import pytest

from graphopt.passes.simplify.merge_concats import MergeConcats
from pass_oracle import check_pass, run_pass

HEAD = '<ir_version: 9, opset_import: ["" : 19]>\n'
TWO = "float[n, 2] p, float[n, 3] q"

MERGED: dict[str, tuple[str, list[str]]] = {
    "nested": (f"g ({TWO}) => (float[n, 7] y) {{ a = Concat<axis = 1>(p, q) y = Concat<axis = -1>(p, a) }}", ["p", "p", "q"]),
    "twice the same": (f"g ({TWO}) => (float[n, 10] y) {{ a = Concat<axis = 1>(p, q) y = Concat<axis = 1>(a, a) }}", ["p", "q", "p", "q"]),
    "three deep": (f"g ({TWO}) => (float[n, 9] y) {{ a = Concat<axis = 1>(p, q) b = Concat<axis = 1>(a, p) y = Concat<axis = 1>(p, b) }}", ["p", "p", "q", "p"]),
    "empty": (f"g ({TWO}, float[n, 0] e) => (float[n, 5] y) {{ y = Concat<axis = 1>(p, e, q) }}", ["p", "q"]),
    "all empty": ("g (float[n, 0] d, float[n, 0] e) => (float[n, 0] y) { y = Concat<axis = 1>(d, e) }", ["d"]),
}  # fmt: skip

STAYS: dict[str, str] = {
    "other axes": f"g ({TWO}, float[m, 5] r) => (float[k, 5] y) {{ a = Concat<axis = 1>(p, q) y = Concat<axis = 0>(r, a) }}",
    "read elsewhere": f"g ({TWO}) => (float[n, 7] y, float[n, 5] z) {{ a = Concat<axis = 1>(p, q) y = Concat<axis = 1>(p, a) z = Neg(a) }}",
    "an output": f"g ({TWO}) => (float[n, 7] y, float[n, 5] a) {{ a = Concat<axis = 1>(p, q) y = Concat<axis = 1>(p, a) }}",
    "maybe empty": "g (float[n] p, float[m] q) => (float[k] y) { y = Concat<axis = 0>(p, q) }",
}  # fmt: skip


@pytest.mark.parametrize("case", MERGED)
def test_one_concat_is_left(case: str) -> None:
    text, operands = MERGED[case]
    done = check_pass(MergeConcats(), HEAD + text)
    assert done.ops == ["Concat"], done.text
    assert [tensor.name for tensor in done.model.graph.nodes[0].inputs] == operands


@pytest.mark.parametrize("case", STAYS)
def test_what_is_read_elsewhere_or_not_proved_stays(case: str) -> None:
    assert run_pass(MergeConcats(), HEAD + STAYS[case]).record.patches == 0
