"""merge-pads: pads add up where nothing is cut and the filling is the same."""

# ruff: noqa: E501 - the tables hold one model per line

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from graphopt.passes.simplify.merge_pads import MergePads
from pass_oracle import check_pass, run_pass

if TYPE_CHECKING:
    from collections.abc import Callable

HEAD = '<ir_version: 9, opset_import: ["" : 19]>\n'
PADS = "int64[4] p = {0, 1, 0, 2}, int64[4] q = {1, 0, 0, 3}"

MERGED: dict[str, str] = {
    "zeros": f"g (float[n, 3] x) => (float[m, 9] y) <{PADS}> {{ a = Pad(x, p) y = Pad(a, q) }}",
    "zero given and not": f"g (float[n, 3] x) => (float[m, 9] y) <{PADS}, float z = {{0}}> {{ a = Pad(x, p, z) y = Pad(a, q) }}",
    "same constant": f"g (float[n, 3] x) => (float[m, 9] y) <{PADS}, float z = {{7}}, float w = {{7}}> {{ a = Pad(x, p, z) y = Pad(a, q, w) }}",
    "edge": f'g (float[n, 3] x) => (float[m, 9] y) <{PADS}> {{ a = Pad<mode = "edge">(x, p) y = Pad<mode = "edge">(a, q) }}',
    "axes": "g (float[n, 3] x) => (float[m, 9] y) <int64[4] p = {0, 1, 0, 2}, float z = {0}, int64[2] q = {3, 0}, int64[1] w = {-1}> { a = Pad(x, p) y = Pad(a, q, z, w) }",
}  # fmt: skip

STAYS: dict[str, str] = {
    "other constants": f"g (float[n, 3] x) => (float[m, 9] y) <{PADS}, float z = {{7}}> {{ a = Pad(x, p, z) y = Pad(a, q) }}",
    "zeros of other signs": f"g (float[n, 3] x) => (float[m, 9] y) <{PADS}, float z = {{-0.0}}> {{ a = Pad(x, p, z) y = Pad(a, q) }}",
    "reflect": f'g (float[4, 5] x) => (float[5, 11] y) <{PADS}> {{ a = Pad<mode = "reflect">(x, p) y = Pad<mode = "reflect">(a, q) }}',
    "other modes": f'g (float[4, 5] x) => (float[5, 11] y) <{PADS}> {{ a = Pad<mode = "edge">(x, p) y = Pad(a, q) }}',
    "cut and pad": "g (float[4, 5] x) => (float[4, 5] y) <int64[4] p = {0, -1, 0, 0}, int64[4] q = {0, 1, 0, 0}> { a = Pad(x, p) y = Pad(a, q) }",
    "read elsewhere": f"g (float[n, 3] x) => (float[m, 9] y, float[k, 6] a) <{PADS}> {{ a = Pad(x, p) y = Pad(a, q) }}",
}  # fmt: skip


@pytest.mark.parametrize("case", MERGED)
def test_pads_add_up(case: str) -> None:
    assert check_pass(MergePads(), HEAD + MERGED[case]).ops == ["Pad"]


@pytest.mark.parametrize("case", STAYS)
def test_what_does_not_add_up_stays(case: str) -> None:
    done = run_pass(MergePads(), HEAD + STAYS[case])
    assert done.record.patches == 0
    assert bool(done.skips) == (case == "cut and pad")


def test_attributes_of_old_opsets(golden: Callable[[str], None]) -> None:
    text = """<ir_version: 4, opset_import: ["" : 9]> g (float[2, 3] x) => (float[3, 9] y) {
      a = Pad<pads = [0, 1, 0, 2], value = 2.0>(x) y = Pad<pads = [1, 0, 0, 3], value = 2.0>(a) }"""
    golden(check_pass(MergePads(), text, interpreted=False).text)
