from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest
from pydantic import ValidationError

from graphopt.report import EQUAL_DB, Latency, Quality, Report

if TYPE_CHECKING:
    from collections.abc import Callable


def test_report_written_and_read_back_is_the_same(make_big: Callable[[int], Report]) -> None:
    report = make_big(12)
    assert Report.model_validate_json(report.to_json()) == report


def test_report_keys_are_those_of_the_public_interface(make_big: Callable[[int], Report]) -> None:
    found = json.loads(make_big(6).to_json())
    assert found["schema_version"] == 1
    for side in ("before", "after"):
        assert {"path", "sha256", "nodes", "bytes", "parameters", "operators"} <= found["model"][side].keys()
    assert {"samples", "agreement", "sqnr_db", "standard_error", "metric", "budget", "met"} <= found["quality"].keys()
    assert {"before", "after", "threads", "runs"} <= found["latency_ms"].keys()
    assert {"name", "patches", "skips", "seconds"} <= found["passes"][0].keys()
    assert found["passes"][0]["skips"][0].keys() == {"node", "reason"}
    assert {"name", "op", "what", "kept", "reverted", "reason"} <= found["layers"][0].keys()


def test_json_has_no_token_that_json_does_not_know() -> None:
    quality = Quality(samples=1, sqnr_db=float("inf"))
    assert quality.sqnr_db == EQUAL_DB
    assert Quality(samples=1, sqnr_db=float("nan")).sqnr_db == -EQUAL_DB
    json.loads(quality.model_dump_json(), parse_constant=pytest.fail)


@pytest.mark.parametrize(
    "wrong",
    [
        {"samples": -1},
        {"samples": 1, "agreement": 1.2},
        {"samples": 1, "before": float("nan")},
        {"samples": 1, "agrement": 1.0},
    ],
)
def test_figures_that_cannot_be_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValidationError):
        Quality.model_validate(wrong)


def test_report_cannot_be_changed_and_has_no_other_keys(tiny: Report) -> None:
    with pytest.raises(ValidationError):
        tiny.seed = 3
    with pytest.raises(ValidationError):
        Report.model_validate({**tiny.model_dump(), "extra": 1})


def test_schema_describes_every_key_and_forbids_others() -> None:
    schema = Report.model_json_schema()
    parts = [schema, *(part for part in schema["$defs"].values() if "properties" in part)]
    assert len(parts) > 8
    assert all(part["additionalProperties"] is False for part in parts)
    assert schema["$defs"]["Latency"]["properties"]["runs"]["description"] == "Timed runs of each model."


def test_report_is_met_unless_a_budget_was_exceeded(tiny: Report) -> None:
    assert tiny.met
    failed = Quality(samples=4, agreement=0.5, budget=1.0, drop=50.0, met=False)
    assert not tiny.model_copy(update={"quality": failed}).met


def test_latency_needs_at_least_one_run() -> None:
    with pytest.raises(ValidationError):
        Latency(before=1.0, after=1.0, threads=1, runs=0)
