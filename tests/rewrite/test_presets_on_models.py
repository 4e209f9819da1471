"""Every preset on real models, under full verification: nothing crashes, no pass breaks what it declares."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from graphopt.graph import read_model
from graphopt.rewrite import PassManager, load_recipe, preset_names
from graphopt.verify.legality import check_legal

ASSETS = os.environ.get("GRAPHOPT_ASSETS")
MODELS = sorted(Path(ASSETS).glob("models/*.onnx")) if ASSETS else []

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not MODELS, reason="GRAPHOPT_ASSETS does not name a folder with models/*.onnx"),
]


@pytest.mark.parametrize("path", MODELS, ids=lambda path: path.stem)
@pytest.mark.parametrize("preset", preset_names())
def test_preset_holds_every_contract(preset: str, path: Path) -> None:
    model = read_model(path)
    outcome = PassManager(load_recipe(preset).create(), verify="full").run(model)
    check_legal(model)
    assert outcome.notes == []
    assert len(outcome.records) == len(load_recipe(preset).passes)
    assert all(reason.strip() for record in outcome.records for _, reason in record.skips)


@pytest.mark.parametrize("path", MODELS, ids=lambda path: path.stem)
def test_same_model_twice_gives_the_same_bytes(path: Path) -> None:
    results = []
    for _ in range(2):
        model = read_model(path)
        PassManager(load_recipe("default").create()).run(model)
        results.append(model.to_bytes())
    assert results[0] == results[1]
