"""Layers too wide for matrices of their columns: pruned by the columns' squares, rounded to nearest, not refitted."""

from __future__ import annotations

import pytest

from graphopt import demo
from graphopt.analysis.layer_statistics import reading
from graphopt.graph import read_model
from graphopt.rewrite import PassManager, create
from graphopt.runtime import Feeds


@pytest.mark.parametrize("data", [True, False], ids=["data", "no data"])
def test_wide_layers_are_rounded(monkeypatch: pytest.MonkeyPatch, *, data: bool) -> None:
    monkeypatch.setattr(reading, "LARGEST_COLUMNS", 100)
    model = read_model(demo.CNN)
    feeds = Feeds.open(demo.CALIBRATION, model).take(32) if data else None
    every = PassManager([create("round-weights")], verify="fast").run(read_model(demo.CNN), None).records[-1].patches
    outcome = PassManager([create("round-weights")], verify="fast").run(model, feeds)
    assert outcome.records[-1].patches == every > 3


@pytest.mark.parametrize("name", ["prune-second-order", "prune-wanda"])
def test_wide_layers_are_pruned(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    done = []
    for limit in (5632, 100):
        monkeypatch.setattr(reading, "LARGEST_COLUMNS", limit)
        model = read_model(demo.CNN)
        feeds = Feeds.open(demo.CALIBRATION, model).take(32)
        passes = [create(name, {"allocation": "uniform", "sparsity": 0.5})]
        done.append(PassManager(passes, verify="fast").run(model, feeds).records[-1].patches)
    assert done[0] == done[1] > 3


def test_wide_layers_are_not_refitted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "LARGEST_COLUMNS", 100)
    model = read_model(demo.CNN)
    feeds = Feeds.open(demo.CALIBRATION, model).take(32)
    outcome = PassManager([create("prune-magnitude"), create("refit-weights")], verify="fast").run(model, feeds)
    reasons = [reason for _, reason in outcome.records[-1].skips]
    assert any("columns; its statistics would not fit memory" in reason for reason in reasons)
    assert outcome.records[-1].patches > 0
