"""Channels of inputs that are rounded at run time: one product evens them out where it pays."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import onnx.parser
import pytest
from onnx import numpy_helper

from graphopt.analysis import Facts
from graphopt.analysis.activation_ranges import Ranges
from graphopt.analysis.calibration_cache import CalibrationCache, structure_of
from graphopt.graph import Model, read_model
from graphopt.passes.quantize.insert_qdq import InsertQdq
from graphopt.passes.quantize.round_weights import RoundWeights
from graphopt.rewrite import PassManager
from graphopt.runtime import Feeds, run, session
from graphopt.target import audit

if TYPE_CHECKING:
    from pathlib import Path

    from graphopt.rewrite.manager import Outcome

TWO = "g (float[n, s, 64] x) => (float[n, s, 48] y, float[n, s, 32] z) { y = MatMul(x, w) z = MatMul(x, v) }"
GEMM = "g (float[n, 64] x) => (float[n, 48] y) { y = Gemm<transB = 1, alpha = 0.5>(x, w, b) }"


def model_of(text: str = TWO, **weights: tuple[int, ...]) -> Model:
    proto = onnx.parser.parse_model('<ir_version: 8, opset_import: ["" : 17]>' + text)
    random = np.random.default_rng(0)
    for name, shape in (weights or {"w": (64, 48), "v": (64, 32)}).items():
        array = random.standard_normal(shape).astype(np.float32) / 8
        proto.graph.initializer.append(numpy_helper.from_array(array, name))
    for number, node in enumerate(proto.graph.node):
        node.name = f"{node.op_type}{number}"
    return read_model(proto)


def data(*shape: int, loud: float = 40, seed: int = 1) -> dict[str, np.ndarray[Any, Any]]:
    x = np.random.default_rng(seed).standard_normal(shape).astype(np.float32)
    x[..., 5] *= loud
    return {"x": x}


def quantize(model: Model, feeds: Feeds | None, **options: Any) -> tuple[Model, Outcome]:
    result = model.copy()
    return result, PassManager([InsertQdq(**options)], verify="full").run(result, feeds)


def sqnr_db(model: Model, other: Model, arrays: dict[str, np.ndarray[Any, Any]]) -> float:
    left, right = run(session(model), arrays), run(session(other), arrays)
    signal = sum(float(np.square(value, dtype=np.float64).sum()) for value in left.values())
    noise = sum(float(np.square(left[name].astype(np.float64) - right[name]).sum()) for name in left)
    return 10 * float(np.log10(signal / noise))


def products(model: Model) -> list[str]:
    return [node.name for node in model.graph.nodes if node.op == "Mul" and "even" in node.outputs[0].name]


def test_layers_that_read_one_tensor_share_one_product() -> None:
    model = model_of()
    feeds = Feeds.open(data(16, 9, 64), model)
    result, outcome = quantize(model, feeds)
    plain, _ = quantize(model, feeds, even_channels=False)
    assert len(products(result)) == 1
    assert products(plain) == []
    held = data(8, 9, 64, seed=2)
    assert sqnr_db(model, result, held) > sqnr_db(model, plain, held) + 6
    assert all("channels evened out" in layer.reason for layer in outcome.records[0].layers)
    assert audit(result).integer == audit(plain).integer


def test_channels_alike_get_no_product() -> None:
    model = model_of()
    result, outcome = quantize(model, Feeds.open(data(16, 9, 64, loud=1), model))
    assert products(result) == []
    assert not any("evened" in layer.reason for layer in outcome.records[0].layers)


def test_without_data_there_is_none() -> None:
    result, _ = quantize(model_of(), None)
    assert products(result) == []
    assert any(node.op == "MatMulInteger" for node in result.graph.nodes)


def test_a_layer_that_stays_float_reads_the_input_as_it_is() -> None:
    model = model_of()
    result, _ = quantize(model, Feeds.open(data(16, 9, 64), model), keep=("MatMul0",))
    kept = next(node for node in result.graph.nodes if node.name == "MatMul0")
    assert kept.inputs[0].name == "x"
    assert len(products(result)) == 1


def test_transposed_weights_and_factors_of_gemm() -> None:
    model = model_of(GEMM, w=(48, 64), b=(48,))
    feeds = Feeds.open(data(64, 64), model)
    result, _ = quantize(model, feeds, activations="dynamic")
    plain, _ = quantize(model, feeds, activations="dynamic", even_channels=False)
    assert len(products(result)) == 1
    held = data(32, 64, seed=2)
    assert sqnr_db(model, result, held) > max(sqnr_db(model, plain, held) + 6, 30)


def test_weights_that_are_on_a_grid_already_stay_there() -> None:
    model = model_of()
    feeds = Feeds.open(data(16, 9, 64), model)
    rounded = model.copy()
    PassManager([RoundWeights(bits=8)]).run(rounded, feeds)
    result, _ = quantize(rounded, feeds)
    assert products(result) == []


def test_a_cache_knows_the_channels(tmp_path: Path) -> None:
    model = model_of()
    feeds = Feeds.open(data(16, 9, 64), model)
    CalibrationCache.of(Facts(model, feeds=feeds).get(Ranges), structure_of(model)).save(tmp_path / "ranges.json")
    result, _ = quantize(model, None, cache=str(tmp_path / "ranges.json"))
    assert len(products(result)) == 1


@pytest.mark.parametrize("loud", [1, 40])
def test_a_second_run_changes_nothing(loud: float) -> None:
    model = model_of()
    feeds = Feeds.open(data(16, 9, 64, loud=loud), model)
    result, _ = quantize(model, feeds)
    again, _ = quantize(result, feeds)
    assert again.to_bytes() == result.to_bytes()
