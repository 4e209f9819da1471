"""graphopt quantize on models that are quantized already: kept as they are, or quantized again."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

import graphopt
from graphopt.runtime import Feeds, session
from graphopt.target import audit
from peer_quantized import quantized_by_peer

if TYPE_CHECKING:
    from collections.abc import Callable

DEMO = Path(graphopt.__file__).parent / "demo"
MODEL, DATA = DEMO / "digits_cnn.onnx", DEMO / "digits_calibration.npz"


@pytest.fixture(scope="module")
def quantized(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    quantized_by_peer(MODEL, "qoperator", Feeds.open(DATA, session(MODEL)).take(16), folder)
    return folder / f"{MODEL.stem}_qoperator.onnx"


def test_a_quantized_model_is_kept_byte_for_byte(
    graphopt_here: Callable[..., Any], quantized: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out.onnx"
    done = graphopt_here("quantize", quantized, "-o", out, "--data", DATA)
    assert done.status == 0
    assert "the model is quantized already: it has" in done.out
    assert out.read_bytes() == quantized.read_bytes()


def test_it_is_quantized_again_where_the_user_asks(
    graphopt_here: Callable[..., Any], quantized: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out.onnx"
    done = graphopt_here("quantize", quantized, "-o", out, "--data", DATA, "--requantize")
    assert done.status == 0, done.err
    found = audit(out, compare=False)
    assert found.integer["QLinearConv"] == 5
    assert found.conversions <= 2
    assert session(out).get_inputs()[0].name == session(MODEL).get_inputs()[0].name


def test_the_preset_takes_it_back_to_float(graphopt_here: Callable[..., Any], quantized: Path, tmp_path: Path) -> None:
    done = graphopt_here("compile", quantized, "-o", tmp_path / "out", "--recipe", "dequantize", "--data", DATA)
    assert done.status == 0, done.err
    found = audit(tmp_path / "out" / "model.onnx", compare=False)
    assert found.integer_count == 0
    assert found.conversions == 0
