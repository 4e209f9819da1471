"""merge-twin-branches: what two parts of a Split can share, and what keeps them apart."""

# ruff: noqa: E501 - the tables hold one model per line

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import onnx
import onnx.parser
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from graphopt.passes.simplify.merge_twin_branches import MergeTwinBranches
from pass_oracle import check_pass, run_pass
from split_models import split_model

if TYPE_CHECKING:
    from collections.abc import Callable


model = partial(split_model, x="n, 6, 4, 4", out="p q")


def rotated(source: str, result: str) -> str:
    """Return the rotary embedding of a tensor."""
    t = result
    return f"{t}l, {t}h = Split<axis = 3>({source}, half) {t}n = Neg({t}h) {t}c = Concat<axis = -1>({t}n, {t}l) {t}s = Mul({t}c, sin) {t}m = Mul({source}, cos) {t} = Add({t}m, {t}s)"


ROPE: dict[str, Any] = {"more": ", float[4, 4] sin, float[n, 1, 4, 4] cos", "half": [2, 2]}
S2, S3 = "a, b = Split<axis = 1>(x, s)", "a, b, c = Split<axis = 1>(x, s)"
MERGED: dict[str, tuple[dict[str, Any], list[str]]] = {
    "rotary embedding": ({**ROPE, "s": [2, 2, 2], "nodes": f"{S3} r = Relu(c) {rotated('a', 'p')} {rotated('b', 'q')}", "out": "p q r"}, ["Split", "Relu", "Split", "Neg", "Concat", "Mul", "Mul", "Add", "Split"]),
    "unequal parts": ({**ROPE, "s": [4, 2], "nodes": f"{S2} {rotated('a', 'p')} {rotated('b', 'q')}"}, ["Split", "Neg", "Concat", "Mul", "Mul", "Add", "Split"]),
    "equal constants": ({"s": [4, 2], "i": [0], "j": [0], "k": [2], "l": [2], "z": [3], "nodes": f"{S2} d = Slice(a, i, k, z) p = Neg(d) e = Slice(b, j, l, z) q = Neg(e)"}, ["Slice", "Neg", "Split"]),
    "the last two": ({"s": [1, 3, 2], "nodes": f"{S3} r = Relu(a) d = Exp(b) p = Neg(d) e = Exp(c) q = Neg(e)", "out": "r p q"}, ["Split", "Relu", "Exp", "Neg", "Split"]),
    "three alike": ({"s": [1, 3, 2], "nodes": f"{S3} d = Exp(a) p = Neg(d) e = Exp(b) q = Neg(e) f = Exp(c) r = Neg(f)", "out": "p q r"}, ["Exp", "Neg", "Split", "Split"]),
    "a part read elsewhere": ({"s": [4, 2], "nodes": f"{S2} d = Exp(a) e = Neg(d) f = Sin(e) g = Exp(b) h = Neg(g) q = Sin(h) p = Mul(a, f)"}, ["Split", "Exp", "Neg", "Sin", "Split", "Mul"]),
    "a result read on the way": ({"s": [4, 2], "nodes": f"{S2} d = Exp(a) e = Neg(d) f = Sin(e) g = Exp(b) h = Neg(g) q = Sin(h) p = Mul(d, f)"}, ["Exp", "Neg", "Sin", "Split", "Split", "Mul"]),
    "heads": ({"x": "n, 4, 6", "s": [4, 2], "t": [0, 0, 2, 2], "u": [0, 0, 1, 2], "v": [0, 0, -1, 1, 2], "nodes": "a, b = Split<axis = 2>(x, s) d = Reshape(a, t) e = Transpose<perm = [0, 2, 1, 3]>(d) p = Relu(e) f = Reshape(b, u) g = Transpose<perm = [0, 2, 1, 3]>(f) q = Relu(g)"}, ["Reshape", "Transpose", "Relu", "Split"]),
    "selections": ({"s": [4, 2], "i": [0], "one": [1], "two": [2], "z": [0, 2], "nodes": f"{S2} d = Gather<axis = 3>(a, k) e = Slice(d, i, two, two, one) f = Unsqueeze(e, z) g = Squeeze(f, i) p = Softmax(g) d2 = Gather<axis = 3>(b, k) e2 = Slice(d2, i, two, two, one) f2 = Unsqueeze(e2, z) g2 = Squeeze(f2, i) q = Softmax(g2)", "more": ", int64[3] k"}, ["Gather", "Slice", "Unsqueeze", "Squeeze", "Softmax", "Split"]),
    "scalar selection before the axis": ({"x": "2, 3, 6, 4", "s": [4, 2], "k": (), "nodes": "z = Cast<to = 7>(k) a, b = Split<axis = 2>(x, s) d = Gather<axis = 0>(a, z) p = Sin(d) e = Gather<axis = 0>(b, z) q = Sin(e)"}, ["Cast", "Gather", "Sin", "Split"]),
    "normalized": ({"s": [4, 2], "w": (4,), "nodes": f"{S2} d = LayerNormalization(a, w) p = Sigmoid(d) e = LayerNormalization(b, w) q = Sigmoid(e)"}, ["LayerNormalization", "Sigmoid", "Split"]),
}  # fmt: skip


@pytest.mark.parametrize("case", MERGED)
def test_branches_are_merged(case: str) -> None:
    options, ops = MERGED[case]
    if case == "selections":
        options = {**options, "more": "", "k": [0, 2, 1]}
    done = check_pass(MergeTwinBranches(), model(**options))
    assert sorted(done.ops) == sorted(ops)
    assert [tensor.name for tensor in done.model.graph.outputs] == options.get("out", "p q").split()


def test_golden(golden: Callable[[str], None]) -> None:
    golden(check_pass(MergeTwinBranches(), model(**MERGED["heads"][0])).text)


KEPT: dict[str, dict[str, Any]] = {
    "one node, three parts": {"s": [2, 2, 2], "nodes": f"{S3} p = Neg(a) q = Neg(b) r = Relu(c)", "out": "p q r"},
    "parts apart": {"s": [2, 2, 2], "nodes": f"{S3} d = Exp(a) p = Neg(d) q = Relu(b) e = Exp(c) r = Neg(e)", "out": "p q r"},
    "other operators": {"s": [4, 2], "nodes": f"{S2} p = Neg(a) q = Exp(b)"},
    "other attributes": {"s": [4, 2], "nodes": f"{S2} p = Elu(a) q = Elu<alpha = 2.0>(b)"},
    "other operands": {"s": [4, 2], "k": (), "l": (), "nodes": f"{S2} p = Mul(a, k) q = Mul(b, l)"},
    "operand that varies along the axis": {"s": [2, 2], "x": "n, 4, 4, 4", "k": (2, 1, 1), "nodes": f"{S2} p = Mul(a, k) q = Mul(b, k)"},
    "slices of other lengths": {"s": [4, 2], "i": [0], "k": [2], "l": [3], "z": [3], "nodes": f"{S2} d = Slice(a, i, k, z) p = Neg(d) e = Slice(b, i, l, z) q = Neg(e)"},
    "softmax along the axis": {"s": [4, 2], "nodes": f"{S2} p = Softmax<axis = 1>(a) q = Softmax<axis = 1>(b)"},
    "softmax before opset 13": {"opset": 12, "nodes": "a, b = Split<axis = 1>(x) p = Softmax(a) q = Softmax(b)"},
    "slices along the axis": {"s": [4, 2], "i": [0], "one": [1], "nodes": f"{S2} p = Slice(a, i, one, one) q = Slice(b, i, one, one)"},
    "joined along the axis": {"s": [4, 2], "nodes": f"{S2} p = Concat<axis = 1>(a, a) q = Concat<axis = 1>(b, b)"},
    "reshaped otherwise": {"x": "n, 6", "s": [4, 2], "t": [0, 2, 2], "u": [0, 2, 1], "nodes": "a, b = Split<axis = 1>(x, s) p = Reshape(a, t) q = Reshape(b, u)"},
    "flattened": {"s": [4, 2], "t": [-1], "nodes": f"{S2} p = Reshape(a, t) q = Reshape(b, t)"},
    "outer products": {"x": "n, 6", "s": [3, 3], "t": [0, 1, 3], "nodes": "a, b = Split<axis = 1>(x, s) d = Reshape(a, t) p = Mul(d, a) e = Reshape(b, t) q = Mul(e, b)"},
    "size that is not known": {"x": "n, m, 4", "nodes": "a, b = Split<axis = 1>(x) p = Neg(a) q = Neg(b)"},
    "product with the other part": {"s": [3, 3], "nodes": f"{S2} p = Mul(a, b) q = Sub(b, a)"},
    "part given out": {"s": [4, 2], "nodes": f"{S2} p = Neg(a) q = Neg(b)", "out": "p q a"},
}  # fmt: skip


@pytest.mark.parametrize("case", KEPT)
def test_branches_that_stay_apart(case: str) -> None:
    proto = model(**KEPT[case])
    done = run_pass(MergeTwinBranches(), proto, verify="fast")
    assert done.ops == [node.op_type for node in proto.graph.node]


_STEPS = (
    "{t} = Relu({s})", "{t} = Mul({s}, k)", "{t} = Add(k, {s})", "{t} = Transpose<perm = [0, 2, 1]>({s})", "{t} = Mul({s}, {o})", "{t} = Sub({s}, w)",
    "{t}a, {t}b = Split<axis = 2, num_outputs = 2>({s}) {t} = Concat<axis = 2>({t}b, {t}a)", "{t} = Softmax<axis = 2>({s})", "{t} = Gather<axis = 2>({s}, i)",
    "{t} = Slice({s}, zero, two, two)", "{t}u = Unsqueeze({s}, one) {t} = Squeeze({t}u, one)", "{t} = Reshape({s}, r)",
)  # fmt: skip


@settings(max_examples=80, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.data())
def test_generated_branches_hold_the_rounding_bound(data: st.DataObject) -> None:
    axis = data.draw(st.integers(0, 2))
    parts = data.draw(st.lists(st.sampled_from([2, 4]), min_size=2, max_size=3))
    shape = [4, 4, 4]
    shape[axis] = sum(parts)
    names = [f"t{index}" for index in range(len(parts))]
    lines = [f"{', '.join(names)} = Split<axis = {axis}>(x, s)"]
    sources, outputs = list(names), []
    previous = list(names)
    for step in range(data.draw(st.integers(1, 5))):
        kind = data.draw(st.sampled_from(_STEPS))
        for index, source in enumerate(sources):
            if data.draw(st.integers(0, 15)) == 0:
                continue
            made = f"s{step}x{index}"
            lines.append(kind.format(t=made, s=source, o=previous[index]))
            if data.draw(st.integers(0, 7)) == 0:
                lines.append(f"o{made} = Neg({source})")
                outputs.append(f"o{made}")
            previous[index], sources[index] = source, made
    lines += [f"y{index} = Identity({source})" for index, source in enumerate(sources)]
    outputs += [f"y{index}" for index in range(len(sources))]
    proto = model(
        " ".join(lines),
        x=", ".join(map(str, shape)),
        out=" ".join(outputs),
        opset=18,
        s=parts,
        k=(),
        w=(4, 1),
        i=[1, 0],
        zero=[0],
        one=[1],
        two=[2],
        r=[0, 0, -1, 1],
    )
    try:
        onnx.shape_inference.infer_shapes(proto, strict_mode=True, check_type=True, data_prop=True)
        onnx.checker.check_model(proto)
    except (onnx.shape_inference.InferenceError, onnx.checker.ValidationError):
        return
    check_pass(MergeTwinBranches(), proto, samples=1)
