"""fuse-bias: a constant behind a convolution becomes its bias."""

# ruff: noqa: E501 - the tables hold one model per line

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import onnx
import onnx.parser
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import numpy_helper

from graphopt.graph import Model, read_model
from graphopt.passes.quantize.fuse_bias import FuseBias
from pass_oracle import check_pass, run_pass

if TYPE_CHECKING:
    from collections.abc import Callable

CONV = "g (float[1, 4, 5, 5] x, float[6, 4, 3, 3] w, float{bias} b) => (float[1, 6, 3, 3] y) {{ c = Conv(x, w) y = Add({order}) }}"


def model_of(graph: str, dtype: type = np.float32) -> Model:
    """Parse a graph whose inputs named w..., b... and k... become random initializers."""
    proto = onnx.parser.parse_model('<ir_version: 8, opset_import: ["" : 17]> ' + graph)
    random = np.random.default_rng(0)
    for value in [each for each in proto.graph.input if each.name[0] in "wbk"]:
        shape = [dim.dim_value for dim in value.type.tensor_type.shape.dim]
        proto.graph.initializer.append(numpy_helper.from_array(random.standard_normal(shape).astype(dtype), value.name))
        proto.graph.input.remove(value)
    return read_model(proto)


FUSED = {
    "per channel": CONV.format(bias="[6, 1, 1]", order="c, b"),
    "constant first": CONV.format(bias="[6, 1, 1]", order="b, c"),
    "four axes": CONV.format(bias="[1, 6, 1, 1]", order="c, b"),
    "one value": CONV.format(bias="[1]", order="c, b"),
    "scalar": CONV.format(bias="[]", order="c, b"),
    "onto a bias": "g (float[1, 4, 5, 5] x, float[6, 4, 3, 3] w, float[6] k, float[6, 1, 1] b) => (float[1, 6, 3, 3] y) { c = Conv(x, w, k) y = Add(c, b) }",
    "depthwise": "g (float[1, 4, 5, 5] x, float[4, 1, 3, 3] w, float[4, 1, 1] b) => (float[1, 4, 3, 3] y) { c = Conv<group = 4>(x, w) y = Add(c, b) }",
    "transposed": "g (float[1, 4, 5, 5] x, float[4, 6, 2, 2] w, float[6, 1, 1] b) => (float[1, 6, 6, 6] y) { c = ConvTranspose(x, w) y = Add(c, b) }",
    "one axis": "g (float[1, 4, 9] x, float[6, 4, 3] w, float[6, 1] b) => (float[1, 6, 7] y) { c = Conv(x, w) y = Add(c, b) }",
}  # fmt: skip

APART = {
    "per column": (CONV.format(bias="[3]", order="c, b"), "not one value per channel"),
    "read twice": ("g (float[1, 4, 5, 5] x, float[6, 4, 3, 3] w, float[6, 1, 1] b) => (float[1, 6, 3, 3] y, float[1, 6, 3, 3] z) { c = Conv(x, w) y = Add(c, b) z = Neg(c) }", "read without"),
    "is an output": ("g (float[1, 4, 5, 5] x, float[6, 4, 3, 3] w, float[6, 1, 1] b) => (float[1, 6, 3, 3] y, float[1, 6, 3, 3] c) { c = Conv(x, w) y = Add(c, b) }", "read without"),
    "bias from a caller": ("g (float[1, 4, 5, 5] x, float[6, 4, 3, 3] w, float[6] v, float[6, 1, 1] b) => (float[1, 6, 3, 3] y) { c = Conv(x, w, v) y = Add(c, b) }", "is not a constant"),
}  # fmt: skip


@pytest.mark.parametrize("name", FUSED)
def test_constant_becomes_the_bias(name: str) -> None:
    done = check_pass(FuseBias(), model_of(FUSED[name]))
    assert "Add" not in done.ops
    assert done.record.patches == 1


@pytest.mark.parametrize("name", APART)
def test_refusal_has_its_reason(name: str) -> None:
    graph, reason = APART[name]
    done = run_pass(FuseBias(), model_of(graph))
    assert done.record.patches == 0
    assert reason in done.record.skips[0][1]


def test_sum_of_two_activations_is_no_bias() -> None:
    done = run_pass(
        FuseBias(),
        model_of(
            "g (float[1, 4, 5, 5] x, float[4, 4, 1, 1] w) => (float[1, 4, 5, 5] y) { c = Conv(x, w) y = Add(c, x) }"
        ),
    )
    assert (done.record.patches, done.record.skips) == (0, [])


def test_golden(golden: Callable[[str], None]) -> None:
    golden(check_pass(FuseBias(), model_of(FUSED["onto a bias"])).text)


@given(st.integers(1, 5), st.integers(0, 3), st.booleans())
@settings(max_examples=20, deadline=None)
def test_chain_of_additions_ends_in_one_bias(channels: int, additions: int, biased: bool) -> None:
    names = [f"b{number}" for number in range(additions)]
    declared = "".join(f", float[{channels}, 1, 1] {name}" for name in names)
    bias, argument = (f", float[{channels}] k", ", k") if biased else ("", "")
    body = f"t0 = Conv(x, w{argument}) " + "".join(f"t{i + 1} = Add(t{i}, {name}) " for i, name in enumerate(names))
    graph = f"g (float[1, 2, 4, 4] x, float[{channels}, 2, 1, 1] w{bias}{declared}) => (float[1, {channels}, 4, 4] t{additions}) {{ {body}}}"
    done = check_pass(FuseBias(), model_of(graph))
    assert done.ops == ["Conv"]


def test_groups_that_are_an_argument_of_a_function_are_left() -> None:
    function = """<ir_version: 8, opset_import: ["" : 17, "f" : 1]>
g (float[1, 4, 5, 5] x) => (float[1, 4, 7, 7] y) { y = f.up <n = 1> (x) }
<domain: "f", opset_import: ["" : 17]> up <n> (x) => (y) {
    s = Constant <value_ints = [4, 4, 3, 3]> () w = ConstantOfShape <value = float[1] {0.5}> (s)
    k = Constant <value = float[4, 1, 1] {1, 2, 3, 4}> ()
    v = Constant <value = float[4, 4, 1, 1] {1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16}> ()
    t = ConvTranspose <group: int = @n> (x, w) c = ConvTranspose <group: int = @n> (t, v) y = Add(c, k) }"""
    done = run_pass(FuseBias(), onnx.parser.parse_model(function))
    assert done.outcome.patches == 0
    assert any("argument of its function" in reason for reason in done.skips.values())
