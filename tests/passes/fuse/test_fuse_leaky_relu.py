"""fuse-leaky-relu: choices between x and a multiple of it become LeakyRelu, bit for bit."""

# ruff: noqa: E501 - the tables hold one model per line

from __future__ import annotations

import numpy as np
import onnx.parser
import pytest
from onnx import numpy_helper

from graphopt.graph import Model, read_model
from graphopt.passes.fuse.fuse_leaky_relu import FuseLeakyRelu
from pass_oracle import check_pass, run_pass

CONSTANTS = "h = Constant<value_float = 0.5>() two = Constant<value_float = 2.0>() z = Constant<value_float = 0.0>() minus = Constant<value_float = -0.5>()"
SPECIAL = np.array([[np.nan, np.inf, -np.inf, -0.0, 0.0, 1e38, -1e38, 1e-40, -1e-40, 2.5, -2.5]], np.float32)


def model_of(body: str, weights: dict[str, np.ndarray] | None = None) -> Model:
    text = f'<ir_version: 8, opset_import: ["" : 16]> g (float[N, 11] x) => (float[N, 11] y) {{ {CONSTANTS} {body} }}'
    proto = onnx.parser.parse_model(text)
    for name, value in (weights or {}).items():
        proto.graph.initializer.append(numpy_helper.from_array(value, name))
    return read_model(proto)


FUSED: dict[str, tuple[str, dict[str, np.ndarray]]] = {
    "Max": ("a = Mul(x, h) y = Max(x, a)", {}),
    "Max, swapped": ("a = Mul(h, x) y = Max(a, x)", {}),
    "PRelu of one slope": ("y = PRelu(x, s)", {"s": np.array([0.25], np.float32)}),
    "PRelu of equal slopes": ("y = PRelu(x, s)", {"s": np.full(11, -0.25, np.float32)}),
}  # fmt: skip


@pytest.mark.parametrize("name", FUSED)
def test_same_bits(name: str) -> None:
    body, weights = FUSED[name]
    feeds = [{"x": SPECIAL}, {"x": SPECIAL[:, ::-1].copy()}]
    done = check_pass(FuseLeakyRelu(), model_of(body, weights), feeds, interpreted=False)  # type: ignore[arg-type]
    assert [op for op in done.ops if op != "Constant"] == ["LeakyRelu"]


APART: dict[str, tuple[str, dict[str, np.ndarray]]] = {
    "Max, steep": ("a = Mul(x, two) y = Max(x, a)", {}),
    "Max, negative": ("a = Mul(x, minus) y = Max(x, a)", {}),
    "Max of three": ("a = Mul(x, h) y = Max(x, a, z)", {}),
    "different slopes": ("y = PRelu(x, s)", {"s": np.arange(11, dtype=np.float32)}),
    "infinite slope": ("y = PRelu(x, s)", {"s": np.array([np.inf], np.float32)}),
}  # fmt: skip


@pytest.mark.parametrize("name", APART)
def test_what_is_another_function_stays(name: str) -> None:
    body, weights = APART[name]
    assert run_pass(FuseLeakyRelu(), model_of(body, weights)).record.patches == 0


def test_fed_slope_and_double_stay() -> None:
    fed = (
        '<ir_version: 8, opset_import: ["" : 16]> g (float[2, 3] x, float[1] s) => (float[2, 3] y) { y = PRelu(x, s) }'
    )
    assert run_pass(FuseLeakyRelu(), fed).record.patches == 0
    double = '<ir_version: 8, opset_import: ["" : 16]> g (double[2, 3] x) => (double[2, 3] y) <double[1] s = {0.5}> { y = PRelu(x, s) }'
    assert run_pass(FuseLeakyRelu(), double).record.patches == 0
