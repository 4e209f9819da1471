"""graphopt audit --repair: the table, the file, and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

import graphopt
from graphopt.cli.audit import REPAIRS
from graphopt.graph import read_model
from graphopt.runtime import Feeds, session
from peer_quantized import quantized_by_peer

if TYPE_CHECKING:
    from collections.abc import Callable

DEMO = Path(graphopt.__file__).parent / "demo"
MODEL, DATA = DEMO / "digits_cnn.onnx", DEMO / "digits_calibration.npz"


@pytest.fixture(scope="module")
def signed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the demo model as ONNX Runtime's tool quantizes it by default: with int8 activations."""
    from onnxruntime.quantization import QuantType

    folder = tmp_path_factory.mktemp("models")
    feeds = Feeds.open(DATA, session(MODEL)).take(16)
    quantized_by_peer(MODEL, "qdq", feeds, folder, activation_type=QuantType.QInt8)
    return folder / "digits_cnn_qdq.onnx"


def test_counts_and_repairs_are_shown_and_the_model_written(
    graphopt_here: Callable[..., Any], signed: Path, tmp_path: Path
) -> None:
    out = tmp_path / "mended.onnx"
    done = graphopt_here("audit", signed, "--repair", "-o", out, "--data", DATA)
    assert done.status == 0
    assert "integer operators" in done.out
    assert "int8 activations as the uint8 that stand for the same numbers" in done.out
    assert "agreement" in done.out
    types = {str(node.inputs[2].dtype) for node in read_model(out).graph.nodes if node.op == "QuantizeLinear"}
    assert types == {"uint8"}
    again = graphopt_here("audit", out, "--repair", "-o", tmp_path / "again.onnx")
    assert "Nothing to mend." in again.out


def test_json_has_both_accounts(graphopt_here: Callable[..., Any], signed: Path, tmp_path: Path) -> None:
    done = graphopt_here("audit", signed, "--repair", "-o", tmp_path / "m.onnx", "--json")
    found = json.loads(done.out)
    assert found["random"] is True
    assert found["repairs"]["shared-signed"] > 0
    assert set(found["repairs"]) <= set(REPAIRS)
    assert sum(found["after"]["integer"].values()) >= sum(found["before"]["integer"].values())


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--repair",), "the mended model needs a file"),
        (("-o", "x.onnx"), "an audit alone writes no model"),
        (("--repair", "-o", "x.onnx", "--target", "qnn"), "there are no repairs for qnn"),
        (("--repair", "-o", "missing/x.onnx"), "there is no folder"),
    ],
)
def test_what_it_refuses(
    graphopt_here: Callable[..., Any],
    signed: Path,
    flags: tuple[str, ...],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    done = graphopt_here("audit", signed, *flags)
    assert done.status != 0
    assert message in done.err
    assert not list(tmp_path.iterdir())
