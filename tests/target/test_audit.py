"""The audit: it counts what ONNX Runtime fused and names the condition that the rest breaks."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import onnx
import onnx.parser
import pytest

from graphopt.cli import main
from graphopt.errors import ReadError, UsageError
from graphopt.graph import Model, read_model
from graphopt.target import TARGETS, audit, find_target

if TYPE_CHECKING:
    from pathlib import Path

SCALES = "float s = {0.05}, uint8 z = {0}, uint8 z9 = {128}, float ws = {0.01}, int8 wz = {0}"


def quantized_model(body: str, outputs: str = "float[1, 8, 8, 8] out", scales: str = SCALES) -> Model:
    """Return a model with a quantized input xd and a restored int8 weight wd."""
    text = (
        '<ir_version: 8, opset_import: ["" : 17]> g (float[1, 8, 8, 8] x, int8[8, 8, 1, 1] w) => '
        f"({outputs}) <{scales}> {{ xq = QuantizeLinear(x, s, z9) xd = DequantizeLinear(xq, s, z9) "
        f"wd = DequantizeLinear(w, ws, wz) {body} }}"
    )
    proto = onnx.parser.parse_model(text)
    values = np.random.default_rng(0).integers(-127, 128, (8, 8, 1, 1)).astype(np.int8)
    proto.graph.initializer.append(onnx.numpy_helper.from_array(values, "w"))
    del proto.graph.input[1]
    return read_model(proto)


FUSED = "c = Conv(xd, wd) q = QuantizeLinear(c, s, z9) out = DequantizeLinear(q, s, z9)"

BROKEN = {
    "G1 an input stays float": (
        (
            "c = Conv(xd, wd) q = QuantizeLinear(c, s, z9) d = DequantizeLinear(q, s, z9) t = Tanh(x) "
            "a = Add(d, t) aq = QuantizeLinear(a, s, z9) out = DequantizeLinear(aq, s, z9)"
        ),
        "Add",
        "G1",
    ),
    "G2 the output is not rounded": ("c = Conv(xd, wd) out = Erf(c)", "Conv", "G2"),
    "G2 a float operator reads it too": (
        "c = Conv(xd, wd) q = QuantizeLinear(c, s, z9) d = DequantizeLinear(q, s, z9) t = Tanh(c) out = Sub(d, t)",
        "Conv",
        "G2",
    ),
    "G4 the activation cuts off what the grid holds": (
        "c = Conv(xd, wd) r = Relu(c) q = QuantizeLinear(r, s, z9) out = DequantizeLinear(q, s, z9)",
        "FusedConv",
        "G4",
    ),
    "no kernel": (
        "c = Conv(xd, wd) q = QuantizeLinear(c, s, z9) d = DequantizeLinear(q, s, z9) out = Erf(d)",
        "Erf",
        "no kernel",
    ),
}


def test_fused_model_has_nothing_to_report() -> None:
    found = audit(quantized_model(FUSED))
    assert dict(found.integer) == {"QLinearConv": 1}
    assert found.integer_count == 1
    assert found.floating_count == 0
    assert found.conversions == 2
    assert found.stayed_float == ()
    assert found.optimization_error is not None
    assert found.optimization_error < 0.02


@pytest.mark.parametrize("name", BROKEN)
def test_broken_condition_is_named(name: str) -> None:
    body, op, rule = BROKEN[name]
    found = {node.op: node for node in audit(quantized_model(body), compare=False).stayed_float}
    assert found[op].rule == rule, found
    assert found[op].reason


def test_a_file_and_bytes_are_taken_as_well(tmp_path: Path) -> None:
    model = quantized_model(FUSED)
    path = tmp_path / "model.onnx"
    model.save(path)
    assert audit(path) == audit(model.to_bytes()) == audit(model)


def test_weights_in_a_data_file_are_found(tmp_path: Path) -> None:
    """What the runtime optimized lies in another folder than the data file of the model."""
    model = quantized_model(FUSED)
    model.save(tmp_path / "inside.onnx")
    message = onnx.load(str(tmp_path / "inside.onnx"))
    onnx.save(message, str(tmp_path / "beside.onnx"), save_as_external_data=True, size_threshold=0, location="w.data")
    assert (tmp_path / "w.data").exists()
    assert audit(tmp_path / "beside.onnx").integer == audit(tmp_path / "inside.onnx").integer


def test_float_model_has_no_integer_operators() -> None:
    graph = "g (float[2, 3] x, float[3, 4] y) => (float[2, 4] z) { z = MatMul(x, y) }"
    text = f'<ir_version: 8, opset_import: ["" : 17]> {graph}'
    found = audit(read_model(onnx.parser.parse_model(text)))
    assert (dict(found.integer), dict(found.floating), found.conversions) == ({}, {"MatMul": 1}, 0)


def test_unknown_target_lists_the_valid_ones() -> None:
    with pytest.raises(UsageError, match="ort-cpu"):
        audit(quantized_model(FUSED), target="abacus")
    assert find_target("ort-cpu").name == "ort-cpu"


def test_file_that_is_no_model_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "broken.onnx"
    path.write_bytes(b"\x00garbage")
    with pytest.raises(ReadError):
        audit(path)


def test_help_names_every_target(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["audit", "--help"]) == 0
    shown = " ".join(capsys.readouterr().out.split()).replace("- ", "-")  # names break at hyphens
    assert all(name in shown for name in TARGETS)
