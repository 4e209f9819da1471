"""Errors of a quantized model as a table, a plot and a page: every figure is in them, no name gets loose."""

from __future__ import annotations

import xml.dom.minidom

import pytest
from pydantic import ValidationError

from graphopt.report.quantization_errors import QuantizationErrors, TensorEntry, decibels, render, sentence, span
from graphopt.report.quantization_plot import draw, page
from graphopt.report.report import Environment, ModelInfo, SkipEntry, Tool

EVIL = "<script>alert(1)</script>\x1b[31m"


def entry(name: str, own: float, accumulated: float, drop: float = 0.0, reason: str = "") -> TensorEntry:
    return TensorEntry(
        name=name,
        op="Conv",
        layer=f"node of {name}",
        counterpart=name,
        how="name",
        rounded=True,
        own_db=own,
        accumulated_db=accumulated,
        drop_db=drop,
        weight_db=44.5,
        low=-1.0,
        high=2.0,
        grid_low=-1.0,
        grid_high=1.5,
        outside=0.25,
        reason=reason,
    )


def errors(*tensors: TensorEntry, worst: str | None = None, evil: str = "") -> QuantizationErrors:
    info = [ModelInfo(path=f"m/{n}{evil}.onnx", sha256="", nodes=3, bytes=9, parameters=9, operators={}) for n in "ab"]
    return QuantizationErrors(
        tool=Tool(version="0.1.0"),
        model=info[0],
        quantized=info[1],
        data="feeds.npz",
        samples=32,
        tensors=tensors,
        worst=worst,
        unmatched=(SkipEntry(node=f"lost{evil}", reason="nothing there"),),
        environment=Environment(onnxruntime="1", onnx="1", numpy="1", python="3", cpu="c", isa="none"),
    )


FOUND = errors(entry("first", 42.0, 41.0), entry("bad", 8.0, 7.5, 32.0, "its range is clipped"), worst="bad")


def test_json_round_trips_and_refuses_unknown_keys() -> None:
    assert QuantizationErrors.model_validate_json(FOUND.to_json()) == FOUND
    with pytest.raises(ValidationError, match="extra"):
        QuantizationErrors.model_validate_json(FOUND.to_json().replace('"worst"', '"worse"'))


def test_figures_are_short() -> None:
    assert (decibels(None), decibels(31.44), decibels(200.0)) == ("", "31.4", "equal")
    assert (span(None, 1.0), span(-0.5, 1.25)) == ("", "-0.5 to 1.25")


def test_the_finding_names_layer_loss_and_reason() -> None:
    assert sentence(FOUND) == "First bad layer: Conv 'node of bad' loses 32.0 dB: its range is clipped."
    assert "No layer stands out" in sentence(errors(entry("first", 42.0, 41.0)))


def test_table_has_every_tensor_or_the_worst() -> None:
    shown = render(FOUND)
    for word in ("first", "bad", "41.0", "7.5", "44.5", "25.0 %", "-1 to 1.5", "Not compared: 1"):
        assert word in shown
    few = render(FOUND, rows=1)
    assert "first" not in few
    assert "1 tensors with smaller drops are not shown" in few


def test_plot_is_xml_with_a_mark_per_figure() -> None:
    made = xml.dom.minidom.parseString(draw(FOUND))
    assert len(made.getElementsByTagName("circle")) == 3
    assert len(made.getElementsByTagName("rect")) == 6


def test_names_do_no_harm() -> None:
    made = page(errors(entry(f"t{EVIL}", 42.0, 41.0), evil=EVIL))
    assert "<script>" not in made
    assert "\x1b" not in made + render(errors(entry(f"t{EVIL}", 42.0, 41.0)))
    assert "http" not in made.replace("http://www.w3.org/2000/svg", "").replace(
        'http-equiv="Content-Security-Policy"', ""
    )
