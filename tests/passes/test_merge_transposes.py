"""merge-transposes: two permutations become one, or none."""

# ruff: noqa: E501 - the tables hold one model per line

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from graphopt.passes.simplify.merge_transposes import MergeTransposes
from pass_oracle import check_pass, run_pass

if TYPE_CHECKING:
    from collections.abc import Callable

HEAD = '<ir_version: 9, opset_import: ["" : 19]>\n'


def test_two_become_one(golden: Callable[[str], None]) -> None:
    done = check_pass(
        MergeTransposes(),
        HEAD
        + "g (float[n, 3, 2] x) => (float[2, n, 3] y) { a = Transpose<perm = [1, 0, 2]>(x) y = Transpose<perm = [2, 1, 0]>(a) }",
    )
    golden(done.text)
    assert done.ops == ["Transpose"]


def test_two_that_undo_each_other_go() -> None:
    text = "g (float[n, 3, 2] x) => (float[n, 3, 2] y) { b = Neg(x) a = Transpose(b) y = Transpose(a) }"
    assert check_pass(MergeTransposes(), HEAD + text).ops == ["Neg"]


def test_public_input_and_output_need_a_node() -> None:
    text = "g (float[n, 3, 2] x) => (float[n, 3, 2] y) { a = Transpose(x) y = Transpose(a) }"
    done = check_pass(MergeTransposes(), HEAD + text)
    assert done.ops == ["Transpose", "Transpose"]
    assert "'x' keeps its own" in done.skips.popitem()[1]


def test_first_with_another_reader_stays() -> None:
    text = "g (float[4, 3, 2] x) => (float[3, 4, 2] z, float[2, 3, 4] y) { a = Transpose<perm = [1, 0, 2]>(x) y = Transpose<perm = [2, 0, 1]>(a) z = Neg(a) }"
    done = check_pass(MergeTransposes(), HEAD + text)
    assert sorted(done.ops) == ["Neg", "Transpose", "Transpose"]
    assert all(node.inputs[0].name == "x" for node in done.model.graph.nodes if node.op == "Transpose")


@pytest.mark.parametrize(
    "text",
    [
        "g (float[4, 3] x) => (float[3, 4] y) { y = Transpose(x) }",
        "g (float[4, 3] x) => (float[4, 3] y) { a = Transpose(x) b = Neg(a) y = Transpose(b) }",
    ],
)
def test_one_alone_stays(text: str) -> None:
    assert run_pass(MergeTransposes(), HEAD + text).record.patches == 0


def test_unknown_rank_and_function_attribute_stay() -> None:
    done = run_pass(
        MergeTransposes(),
        """<ir_version: 9, opset_import: ["" : 19, "f" : 1]>
    g (float[2, 3] x) => (float[2, 3] y) { y = f.two<perm = [1, 0]>(x) }
    <opset_import: ["" : 19], domain: "f"> two <perm>(x) => (y) { a = Transpose<perm: ints = @perm>(x) y = Transpose<perm = [1, 0]>(a) }""",
    )
    assert done.record.patches == 0


@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.integers(0, 4).flatmap(lambda rank: st.lists(st.permutations(range(rank)), min_size=2, max_size=4)))
def test_generated_chains_keep_their_outputs(perms: list[list[int]]) -> None:
    rank = len(perms[0])
    shape = f"[{', '.join(map(str, (2, 3, 1, 4)[:rank]))}]" if rank else ""
    made = f"[{', '.join(f'd{axis}' for axis in range(rank))}]" if rank else ""
    lines = [f"t{step + 1} = Transpose<perm: ints = {perm}>(t{step})" for step, perm in enumerate(perms)]
    body = " ".join(["t0 = Neg(x)", *lines, f"y = Neg(t{len(perms)})"])
    done = check_pass(MergeTransposes(), f"{HEAD}g (float{shape} x) => (float{made} y) {{ {body} }}")
    assert done.ops.count("Transpose") <= 1
