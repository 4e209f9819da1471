"""graphopt debug-quantization: the table, the files, and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

import graphopt
from graphopt.graph import read_model
from graphopt.rewrite import PassManager
from graphopt.runtime import Feeds, session

if TYPE_CHECKING:
    from collections.abc import Callable

DEMO = Path(graphopt.__file__).parent / "demo"
MODEL, DATA = DEMO / "digits_cnn.onnx", DEMO / "digits_calibration.npz"


@pytest.fixture(scope="module")
def quantized(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("models") / "int8.onnx"
    model = read_model(MODEL)
    PassManager(["raise-opset", "insert-qdq"]).run(model, Feeds.open(DATA, session(MODEL)).take(16))
    model.sort()
    model.save(path)
    return path


def test_table_page_and_figures(graphopt_here: Callable[..., Any], quantized: Path, tmp_path: Path) -> None:
    page, figures = tmp_path / "errors.html", tmp_path / "errors.json"
    done = graphopt_here(
        "debug-quantization", MODEL, quantized, "--data", DATA, "--html", page, "-o", figures, "--samples", 8
    )
    assert done.status == 0
    assert "logits" in done.out
    assert "No layer stands out" in done.out
    assert "8 samples" in done.out
    found = json.loads(figures.read_text())
    assert found["worst"] is None
    assert {"own_db", "accumulated_db", "weight_db", "reason"} <= found["tensors"][0].keys()
    text = page.read_text()
    assert "<svg" in text
    assert text.count("<tr>") == len(found["tensors"]) + 1


def test_json_goes_to_stdout(graphopt_here: Callable[..., Any], quantized: Path) -> None:
    done = graphopt_here("debug-quantization", MODEL, quantized, "--json", "--samples", 2)
    found = json.loads(done.out)
    assert found["data"] == "random"
    assert found["samples"] == 2


def test_only_the_worst_are_shown(graphopt_here: Callable[..., Any], quantized: Path) -> None:
    done = graphopt_here("debug-quantization", MODEL, quantized, "--data", DATA, "--worst", 3, "--samples", 4)
    assert "tensors with smaller drops are not shown" in done.out
    assert sum("Conv_output" in line or "Relu" in line for line in done.out.splitlines()) <= 3


def test_an_output_that_is_there_is_kept(graphopt_here: Callable[..., Any], quantized: Path, tmp_path: Path) -> None:
    page = tmp_path / "errors.html"
    page.write_text("mine")
    done = graphopt_here("debug-quantization", MODEL, quantized, "--html", page)
    assert done.status == 2
    assert "GO-U002" in done.err
    assert page.read_text() == "mine"


def test_missing_file_is_an_error(graphopt_here: Callable[..., Any], tmp_path: Path) -> None:
    done = graphopt_here("debug-quantization", MODEL, tmp_path / "none.onnx")
    assert done.status == 3
    assert "none.onnx" in done.err
