"""sink-splits: operations that move before a Split, and those that stay."""

# ruff: noqa: E501 - the tables hold one model per line

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from graphopt.passes.simplify.sink_splits import SinkSplits
from pass_oracle import check_pass, run_pass
from split_models import split_model

if TYPE_CHECKING:
    from collections.abc import Callable


model = partial(split_model, x="n, 3, 8", out="p q r")


S = "a, b, c = Split<axis = -1>(x, s)"
SIZES = {"s": [4, 2, 2]}
HEADS = {**SIZES, "t": [0, 0, 2, 2], "u": [0, 0, 1, 2], "v": [0, 0, -1, 2]}
MOVED: dict[str, tuple[dict[str, Any], list[str]]] = {
    "activation": ({**SIZES, "nodes": f"{S} p = Relu(a) q = Relu(b) r = Relu(c)"}, ["Relu", "Split"]),
    "attribute": ({**SIZES, "nodes": f"{S} p = Elu<alpha = 2.0>(a) q = Elu<alpha = 2.0>(b) r = Elu<alpha = 2.0>(c)"}, ["Elu", "Split"]),
    "chain": ({**SIZES, "nodes": f"{S} d = Tanh(a) e = Tanh(b) f = Tanh(c) p = Neg(d) q = Neg(e) r = Neg(f)"}, ["Tanh", "Neg", "Split"]),
    "heads": ({**HEADS, "nodes": f"{S} p = Reshape(a, t) q = Reshape(b, u) r = Reshape(c, v)"}, ["Reshape", "Split"]),
    "transposed": ({**SIZES, "nodes": f"{S} p = Transpose<perm = [0, 2, 1]>(a) q = Transpose<perm = [0, 2, 1]>(b) r = Transpose<perm = [0, 2, 1]>(c)"}, ["Transpose", "Split"]),
    "attention": ({**HEADS, "nodes": f"{S} d = Reshape(a, t) e = Reshape(b, u) f = Reshape(c, u) p = Transpose<perm = [0, 2, 1, 3]>(d) q = Transpose<perm = [0, 2, 3, 1]>(e) r = Transpose<perm = [0, 2, 1, 3]>(f)"}, ["Reshape", "Transpose", "Split", "Transpose"]),
    "another first": ({**HEADS, "nodes": f"{S} d = Reshape(a, t) e = Reshape(b, u) f = Reshape(c, u) p = Transpose<perm = [2, 3, 1, 0]>(d) q = Transpose<perm = [2, 1, 0, 3]>(e) r = Transpose<perm = [2, 1, 0, 3]>(f)"}, ["Reshape", "Transpose", "Split", "Transpose"]),
    "the same operand": ({**SIZES, "nodes": f"{S} p = Mul(a, k) q = Mul(b, k) r = Mul(c, k)", "k": (3, 1)}, ["Mul", "Split"]),
    "the same first operand": ({**SIZES, "nodes": f"{S} p = Sub(k, a) q = Sub(k, b) r = Sub(k, c)", "k": ()}, ["Sub", "Split"]),
    "operand with the batch": ({**SIZES, "more": ", float[n, 3, 1] k", "nodes": f"{S} p = Div(a, k) q = Div(b, k) r = Div(c, k)"}, ["Div", "Split"]),
    "equal parts": ({"opset": 18, "x": "n, 3, 6", "nodes": "a, b, c = Split<axis = 2, num_outputs = 3>(x) p = Relu(a) q = Relu(b) r = Relu(c)"}, ["Relu", "Split"]),
}  # fmt: skip


@pytest.mark.parametrize("case", MOVED)
def test_operation_moves_before_the_split(case: str) -> None:
    options, ops = MOVED[case]
    done = check_pass(SinkSplits(), model(**options))
    assert done.ops == ops
    assert [tensor.name for tensor in done.model.graph.outputs] == ["p", "q", "r"]


def test_golden(golden: Callable[[str], None]) -> None:
    golden(check_pass(SinkSplits(), model(**MOVED["attention"][0])).text)


KEPT: dict[str, dict[str, Any]] = {
    "different operators": {**SIZES, "nodes": f"{S} p = Relu(a) q = Relu(b) r = Neg(c)"},
    "different attributes": {**SIZES, "nodes": f"{S} p = Elu(a) q = Elu(b) r = Elu<alpha = 2.0>(c)"},
    "a part read twice": {**SIZES, "nodes": f"{S} p = Relu(a) q = Relu(b) d = Relu(c) r = Add(d, c)"},
    "a part that is an output": {**SIZES, "nodes": f"{S} p = Relu(a) q = Relu(b) r = Relu(c)", "out": "p q r c"},
    "a part nobody reads": {**SIZES, "nodes": f"{S} p = Relu(a) q = Relu(b)", "out": "p q"},
    "heads of other sizes": {**SIZES, "nodes": f"{S} p = Reshape(a, t) q = Reshape(b, u) r = Reshape(c, u)", "t": [0, 0, 1, 4], "u": [0, 0, 1, 2]},
    "flattened": {**SIZES, "nodes": f"{S} p = Reshape(a, t) q = Reshape(b, t) r = Reshape(c, t)", "t": [-1]},
    "another axis": {"nodes": "a, b, c = Split<axis = 1>(x) p = Reshape(a, t) q = Reshape(b, t) r = Reshape(c, t)", "t": [0, 0, 2, 4]},
    "no two alike": {**SIZES, "nodes": f"{S} p = Transpose<perm = [0, 2, 1]>(a) q = Transpose<perm = [1, 0, 2]>(b) r = Transpose<perm = [2, 1, 0]>(c)"},
    "operands of the parts": {"s": [2, 2, 4], "nodes": f"{S} p = Mul(a, k) q = Mul(b, k) r = Mul(c, l)", "k": (2,), "l": (4,)},
    "operand along the axis": {"x": "n, 3, 6", "s": [2, 2, 2], "nodes": f"{S} p = Mul(a, k) q = Mul(b, k) r = Mul(c, k)", "k": (2,)},
    "operand of more axes": {**SIZES, "nodes": f"{S} p = Mul(a, k) q = Mul(b, k) r = Mul(c, k)", "k": (2, 1, 1, 1)},
    "operand on either side": {**SIZES, "nodes": f"{S} p = Sub(a, k) q = Sub(k, b) r = Sub(c, k)", "k": ()},
    "operand that is a part": {"x": "n, 3, 3", "s": [1, 1, 1], "nodes": f"{S} p = Mul(a, a) q = Mul(b, b) r = Mul(c, c)"},
    "old opset": {"opset": 11, "nodes": "a, b, c = Split<axis = 2, split = [4, 2, 2]>(x) p = Relu(a) q = Relu(b) r = Relu(c)"},
}  # fmt: skip


@pytest.mark.parametrize("case", KEPT)
def test_operation_that_stays_behind_the_split(case: str) -> None:
    proto = model(**KEPT[case])
    done = run_pass(SinkSplits(), proto, verify="fast")
    assert done.ops == [node.op_type for node in proto.graph.node]


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.data())
def test_generated_parts_hold_the_rounding_bound(data: st.DataObject) -> None:
    width, axis = data.draw(st.integers(1, 3)), data.draw(st.integers(0, 2))
    parts = data.draw(st.lists(st.integers(1, 3), min_size=2, max_size=4))
    shape = [2, 3, 2]
    shape[axis] = sum(parts) * width
    names = [f"t{index}" for index in range(len(parts))]
    lines = [f"{', '.join(names)} = Split<axis = {axis}>(x, s)"]
    weights: dict[str, Any] = {"s": [part * width for part in parts]}
    rank = 3
    for step in range(data.draw(st.integers(1, 3))):
        kind = data.draw(st.sampled_from(["Relu", "Mul", "Transpose", "Reshape"]))
        perms = [data.draw(st.permutations(range(rank))) for _ in range(2)]
        after = []
        for index, name in enumerate(names):
            made = f"u{step}_{index}"
            if kind == "Reshape":
                weights[f"h{step}_{index}"] = [*[0] * (rank - 1), -1, width]
                lines.append(f"{made} = Reshape({name}, h{step}_{index})")
            elif kind == "Transpose":
                lines.append(f"{made} = Transpose<perm = {list(perms[index == 1])}>({name})")
            else:
                lines.append(f"{made} = {kind}({name}{', k' if kind == 'Mul' else ''})")
            after.append(made)
        if kind == "Reshape" and (axis != 2 or step):
            del lines[-len(names) :]
            continue
        rank += kind == "Reshape"
        names = after
    weights["k"] = ()
    lines += [f"o{index} = Identity({name})" for index, name in enumerate(names)]
    out = " ".join(f"o{index}" for index in range(len(names)))
    check_pass(SinkSplits(), model(" ".join(lines), x=", ".join(map(str, shape)), out=out, **weights), samples=1)
