from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from graphopt import tuning
from graphopt.analysis.cost_table import CostTable, tuned_path
from graphopt.tuning import Plan

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from command_runs import Ran

    Run = Callable[..., Ran]

TINY = Plan(
    rows=(1, 3),
    matrices=((32, 16),),
    maps=(5,),
    channels=(8,),
    pointwise=(8,),
    sparsities=(0.5, 0.9),
    bits=(4, 8),
    seconds=0.0,
    layers=2,
)


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("graphopt.analysis.cost_table._cache_folder", lambda: tmp_path / "cache")
    monkeypatch.delenv("GRAPHOPT_COST_TABLE")
    monkeypatch.setattr(tuning, "QUICK", TINY)


def test_tune_writes_the_users_table_which_then_decides(graphopt_here: Run) -> None:
    ran = graphopt_here("tune", "--quick", "--json")
    assert ran.status == 0
    said = json.loads(ran.out)
    assert said["path"] == str(tuned_path())
    table = CostTable.find()
    assert table is not CostTable.default()
    assert table.measured_on == said["measured_on"]
    assert {row["kernel"] for row in said["kernels"]} == set(table.kernels)
    assert table.kernels["sparse-matmul"].m == (1, 3)
    assert table.kernels["sparse-matmul"].levels == (0.5, 0.9)
    assert table.kernels["matmul-nbits"].levels == (4, 8)


def test_tune_measures_anew_into_the_cache_without_force(graphopt_here: Run) -> None:
    assert graphopt_here("tune", "--quick").status == 0
    first = tuned_path().stat().st_mtime_ns
    assert graphopt_here("tune", "--quick").status == 0
    assert tuned_path().stat().st_mtime_ns > first


def test_tune_into_a_file_leaves_the_cache_alone(graphopt_here: Run, tmp_path: Path) -> None:
    path = tmp_path / "table.json"
    assert graphopt_here("tune", "--quick", "-o", path).status == 0
    assert CostTable.load(path).kernels
    assert not tuned_path().exists()
    assert graphopt_here("tune", "--quick", "-o", path).status == 2
    assert graphopt_here("tune", "--quick", "-o", path, "--force").status == 0


def test_tune_show_tells_which_table_decides(
    graphopt_here: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran = graphopt_here("tune", "--show")
    assert "the table that comes with graphopt: measured on" in ran.out
    assert "sparse-matmul" in ran.out
    graphopt_here("tune", "--quick")
    assert f"{tuned_path()}: measured on" in graphopt_here("tune", "--show").out
    monkeypatch.setenv("GRAPHOPT_COST_TABLE", "default")
    assert json.loads(graphopt_here("tune", "--show", "--json").out)["path"] == ""
    monkeypatch.setenv("GRAPHOPT_COST_TABLE", str(tmp_path / "none.json"))
    assert graphopt_here("tune", "--show").status == 2


def test_tune_forget_removes_the_users_table(graphopt_here: Run) -> None:
    graphopt_here("tune", "--quick")
    assert "removed" in graphopt_here("tune", "--forget").out
    assert not tuned_path().exists()
    assert json.loads(graphopt_here("tune", "--forget", "--json").out)["removed"] is False


@pytest.mark.parametrize("arguments", [("--show", "--forget"), ("--show", "--quick"), ("--forget", "-o", "x")])
def test_tune_refuses_options_that_contradict_each_other(graphopt_here: Run, arguments: tuple[str, ...]) -> None:
    ran = graphopt_here("tune", *arguments)
    assert ran.status == 2
    assert "graphopt tune" in ran.err
