"""Costs measured on a real small network, plans carried out on it, and budgets that hold in the result."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

import graphopt
from graphopt.errors import UsageError
from graphopt.graph import read_model
from graphopt.mixed_precision import Budgets, Request, compile_within, make_plan, measure_costs, pieces
from graphopt.mixed_precision import costs as measuring
from graphopt.mixed_precision.costs import rounding_options
from graphopt.report.precision import PrecisionTable
from graphopt.target import audit

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from graphopt.report.precision import PrecisionPlan

DEMO = Path(graphopt.__file__).parent / "demo"
MODEL, DATA = DEMO / "digits_cnn.onnx", str(DEMO / "digits_calibration.npz")


@pytest.fixture(scope="module")
def costs() -> Iterator[PrecisionTable]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pieces, "SECONDS_PER_PIECE", 0.0)  # fewer runs: what is timed matters here, not how well
        patch.setattr(measuring, "JUDGING_SAMPLES", 64)
        yield measure_costs(MODEL, DATA)


def test_every_layer_has_its_forms_and_costs(costs: PrecisionTable) -> None:
    convolutions = [unit for unit in costs.units if unit.op == "Conv"]
    assert len(convolutions) == 6
    assert costs.measure == "kl"
    assert not costs.skips
    for unit in convolutions[1:]:
        by_choice = {each.choice: each for each in unit.choices}
        assert {"float", "int8", "weights8", "weights4"} == by_choice.keys()
        assert by_choice["int8"].bytes < 0.35 * by_choice["float"].bytes
        assert by_choice["weights4"].bytes < 0.2 * by_choice["float"].bytes
        assert by_choice["weights8"].damage < by_choice["weights4"].damage
        assert 0 < by_choice["int8"].damage < 1e-3
        assert all(each.seconds > 0 for each in unit.choices)
    additions = [unit for unit in costs.units if unit.op == "Add"]
    assert [each.choice for each in additions[0].choices] == ["float", "int8"]
    assert len(additions[0].nodes) == 2  # with the Relu that rounding takes over
    made = {each.tensor for each in costs.tensors}
    assert "logits" in made
    assert any("" in each.readers for each in costs.tensors)


def given(**more: Any) -> dict[str, Any]:
    return {"data": DATA, **more}


def test_a_budget_of_bytes_holds_in_the_file(costs: PrecisionTable) -> None:
    shown: list[PrecisionPlan] = []
    model = read_model(MODEL)
    result = compile_within(model, costs, Request(size=0.3, relative_size=True), show=shown.append, **given())
    assert result.met
    assert result.unmet == ()
    assert len(result.model.to_bytes()) <= 0.3 * MODEL.stat().st_size
    assert shown
    assert all(entry.why for entry in shown[0].entries)


def test_a_plan_becomes_the_operators_that_it_names(costs: PrecisionTable) -> None:
    model = read_model(MODEL)
    shown: list[PrecisionPlan] = []
    result = compile_within(model, costs, Request(drop=50.0), show=shown.append, **given())
    planned = [entry for entry in shown[-1].entries if entry.choice == "int8"]
    found = audit(result.model, compare=False)
    assert found.integer.get("QLinearConv", 0) == sum(entry.op == "Conv" for entry in planned)
    assert found.integer.get("QLinearAdd", 0) == sum(entry.op == "Add" for entry in planned)


def test_a_loss_that_nothing_fits_leaves_the_model_float(costs: PrecisionTable) -> None:
    shown: list[PrecisionPlan] = []
    result = compile_within(read_model(MODEL), costs, Request(drop=0.0), show=shown.append, **given())
    assert result.report.quality is not None
    assert result.report.quality.drop == 0.0


def test_time_that_cannot_be_reached_is_said(costs: PrecisionTable) -> None:
    fastest = make_plan(costs, Budgets()).seconds
    request = Request(seconds=fastest * 1.0001)
    slow = costs.model_copy(update={"float_seconds": costs.float_seconds * 0.5})  # a table that promises too much
    result = compile_within(
        read_model(MODEL), slow, Request(seconds=fastest * 0.55), show=lambda _plan: None, **given()
    )
    assert not result.met
    assert any("are allowed" in each for each in result.unmet)
    assert request.seconds is not None


def test_a_table_of_another_model_is_refused(costs: PrecisionTable) -> None:
    other = costs.model_copy(update={"model_sha256": "b" * 64})
    with pytest.raises(UsageError, match="another model"):
        compile_within(read_model(MODEL), other, Request(drop=1.0), show=lambda _plan: None, **given())


def test_rounding_names_what_it_keeps() -> None:
    options = rounding_options(["a", "b", "b", "c"], {"b": 4})
    assert options["keep"] == ("a", "c")
    assert options["levels"] == ("b=4",)


def test_the_same_table_gives_the_same_model(
    graphopt_here: Callable[..., Any], costs: PrecisionTable, tmp_path: Path
) -> None:
    table, out = tmp_path / "costs.json", tmp_path / "out.onnx"
    table.write_text(costs.to_json())
    base = ("quantize", MODEL, "-o", out, "--data", DATA, "--precision-table", table, "--budget-size", "0.3x")
    done = graphopt_here(*base)
    assert done.status == 0, done.err
    assert "The plan, before it runs:" in done.err
    written = out.read_bytes()
    assert graphopt_here(*base, "--force").status == 0
    assert out.read_bytes() == written


@pytest.mark.slow
def test_the_command_writes_what_it_measured(graphopt_here: Callable[..., Any], tmp_path: Path) -> None:
    table, out = tmp_path / "costs.json", tmp_path / "out.onnx"
    done = graphopt_here(
        "quantize", MODEL, "-o", out, "--data", DATA, "--precision-table", table, "--budget-latency", "0.9x"
    )
    assert done.status == 0, done.err
    assert PrecisionTable.model_validate_json(table.read_text()).units


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--budget-size", "much"), "not a number above 0"),
        (("--budget-latency", "3MB"), "not a number above 0"),
        (("--budget-size", "1MB", "--weights", "int4"), "a budget chooses precisions itself"),
    ],
)
def test_wrong_budgets_are_usage_errors(
    graphopt_here: Callable[..., Any], tmp_path: Path, arguments: tuple[str, ...], message: str
) -> None:
    done = graphopt_here("quantize", MODEL, "-o", tmp_path / "o.onnx", "--data", DATA, *arguments)
    assert done.status == 2
    assert message in done.err


def test_a_budget_needs_data(graphopt_here: Callable[..., Any], tmp_path: Path) -> None:
    done = graphopt_here("quantize", MODEL, "-o", tmp_path / "o.onnx", "--budget-size", "1MB")
    assert done.status == 2
    assert "measured on data" in done.err


def test_a_table_that_is_none_is_an_error(graphopt_here: Callable[..., Any], tmp_path: Path) -> None:
    table = tmp_path / "costs.json"
    table.write_text("{}")
    arguments = ("--data", DATA, "--budget-size", "1MB", "--precision-table", table)
    done = graphopt_here("quantize", MODEL, "-o", tmp_path / "o.onnx", *arguments)
    assert done.status == 2
    assert "cannot be understood" in done.err
