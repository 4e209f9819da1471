"""write-qoperators: what it writes is what ONNX Runtime makes of the same model, bit for bit, and runs alike."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest

from graphopt.passes.quantize.insert_qdq import InsertQdq
from graphopt.passes.quantize.write_qoperators import WriteQoperators
from graphopt.rewrite import PassManager
from graphopt.runtime import random_feeds, run, session
from graphopt.target import audit, placement
from pass_oracle import check_pass, run_pass
from placed_models import ATTENTION, CONCAT, RESIDUAL, float_model

if TYPE_CHECKING:
    from collections.abc import Callable

    from graphopt.graph import Model
    from graphopt.runtime import Feeds

BETWEEN = {
    "clip": "lo = Constant<value = float {0.0}>() hi = Constant<value = float {6.0}>() r = Clip(x, lo, hi)",
    "add": "r = Add(x, x)",
    "silu": "s = Sigmoid(x) r = Mul(x, s)",
    "leaky-relu": "r = LeakyRelu<alpha = 0.1>(x)",
    "average-pool": "r = AveragePool<kernel_shape = [2, 2], strides = [1, 1], pads = [0, 0, 1, 1]>(x)",
    "global-average-pool": "r = GlobalAveragePool(x)",
    "softmax": "r = Softmax<axis = 3>(x)",
    "concat": "t = Relu(x) z = AveragePool<kernel_shape = [1, 1]>(t) r = Concat<axis = 2>(t, z)",
    "max-pool": "r = MaxPool<kernel_shape = [2, 2]>(x)",
}


@pytest.fixture(autouse=True)
def however_small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let regions be quantized that are too small to gain from it."""
    monkeypatch.setattr(placement, "PRODUCTS_PER_CONVERSION", 0)


def quantized(graph: str) -> tuple[Model, Feeds]:
    model = float_model(graph)
    data = random_feeds(model, count=8, seed=1)
    PassManager([InsertQdq(calibrator="minmax", correct_bias=False), "eliminate-dead"]).run(model, data)
    return model, data


def convolutions(body: str) -> str:
    return (
        "g (float[1, 8, 8, 8] in, float[16, 8, 3, 3] w0, float[16] b0, float[16, 16, 1, 1] w1, float[16] b1) "
        f"=> (float[1, 16, h, w] out) {{ x = Conv<pads = [1, 1, 1, 1]>(in, w0, b0) {body} out = Conv(r, w1, b1) }}"
    )


def same_bits(one: Model, other: Model, data: Feeds) -> bool:
    first, second = session(one), session(other)
    pairs = [(run(first, feed), run(second, feed)) for feed in data]
    return all(np.array_equal(left[name], right[name]) for left, right in pairs for name in left)


@pytest.mark.parametrize("name", BETWEEN)
def test_written_operators_are_those_that_the_runtime_makes(name: str) -> None:
    model, data = quantized(convolutions(BETWEEN[name]))
    done = run_pass(WriteQoperators(), model)
    assert dict(audit(done.model, compare=False).integer) == dict(audit(model, compare=False).integer)
    assert audit(model, compare=False).integer_count >= 2
    assert "Conv" not in done.ops
    assert same_bits(model, done.model, data)


@pytest.mark.parametrize("graph", [RESIDUAL, CONCAT])
def test_networks_have_the_same_bits_and_only_two_conversions(graph: str) -> None:
    model, data = quantized(graph)
    done = run_pass(WriteQoperators(), model)
    assert done.ops.count("QuantizeLinear") == 1
    assert done.ops.count("DequantizeLinear") <= 1
    assert {"Conv", "Add", "Gemm"}.isdisjoint(done.ops)
    assert same_bits(model, done.model, data)


def test_residual_network(golden: Callable[[str], None]) -> None:
    model, data = quantized(RESIDUAL)
    golden(check_pass(WriteQoperators(), model, data, interpreted=False).text)


def test_matrix_products_that_give_floats() -> None:
    graph = "g (float[n, 64] x, float[64, 32] w0) => (float[n, 32] y) { y = MatMul(x, w0) }"
    model = float_model(graph)
    data = random_feeds(model, count=4, seed=1)
    PassManager([InsertQdq(activations="uint8")]).run(model, data)
    done = run_pass(WriteQoperators(), model)
    assert "MatMulIntegerToFloat" in done.ops
    assert same_bits(model, done.model, data)


def test_dynamic_layers_are_integer_operators_already() -> None:
    model, _ = quantized(ATTENTION)
    done = run_pass(WriteQoperators(), model)
    assert done.outcome.patches == 0


SKIPPED = {
    "one of its inputs is float": (
        "t = Tanh(x) a = Add(xd, t) q = QuantizeLinear(a, s, z) y = DequantizeLinear(q, s, z)"
    ),
    "its output is not rounded": "y = Sigmoid(xd)",
    "'xq' has no written zero point": (
        "r = DequantizeLinear(xq, s) a = Sigmoid(r) q = QuantizeLinear(a, s, z) y = DequantizeLinear(q, s, z)"
    ),
}


@pytest.mark.parametrize("reason", SKIPPED)
def test_what_does_not_fit_is_skipped_with_the_reason(reason: str) -> None:
    text = (
        '<ir_version: 8, opset_import: ["" : 17]> g (float[2, 3] x) => (float[2, 3] y) '
        "<float s = {0.05}, uint8 z = {0}> "
        f"{{ xq = QuantizeLinear(x, s, z) xd = DequantizeLinear(xq, s, z) {SKIPPED[reason]} }}"
    )
    done = run_pass(WriteQoperators(), text)
    assert reason in done.skips.values()


def test_activation_that_the_grid_does_not_make_redundant_stays() -> None:
    text = (
        '<ir_version: 8, opset_import: ["" : 17]> g (float[2, 3] x) => (float[2, 3] y) '
        "<float s = {0.05}, uint8 z = {128}> { xq = QuantizeLinear(x, s, z) xd = DequantizeLinear(xq, s, z) "
        "a = Add(xd, xd) r = Relu(a) q = QuantizeLinear(r, s, z) y = DequantizeLinear(q, s, z) }"
    )
    done = run_pass(WriteQoperators(), text)
    assert "Relu" in done.ops
    assert done.outcome.patches == 0
