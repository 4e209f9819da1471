"""Sensitivities as a table, a plot and a page: every figure is in them, nothing of a model's names gets loose."""

from __future__ import annotations

import xml.dom.minidom

import pytest
from pydantic import ValidationError

from graphopt.report.report import Environment, ModelInfo, SkipEntry, Tool
from graphopt.report.sensitivity import LayerDamage, LevelDamage, Sensitivity, figure, render
from graphopt.report.sensitivity_plot import LEFT, WIDTH, draw, page

LEVELS = ("bits=8", "bits=2", "sparsity=0.9", "pattern=2:4")
EVIL = "<script>alert(1)</script>\x1b[31m"


def level(name: str, damage: float, error: float = 0.0) -> LevelDamage:
    return LevelDamage(level=name, size=0.5, damage=damage, damage_error=error, kl=damage, agreement=0.98, sqnr_db=20.0)


def sensitivity(*layers: tuple[str, tuple[float, ...]], skips: int = 0, evil: str = "") -> Sensitivity:
    rows = tuple(
        LayerDamage(
            name=name,
            op="Conv",
            shape=(4, 4, 3, 3),
            weights=144,
            solved=name != "blind",
            levels=tuple(level(each, damage, damage / 5) for each, damage in zip(LEVELS, damages, strict=True)),
        )
        for name, damages in layers
    )
    return Sensitivity(
        tool=Tool(version="0.1.0"),
        model=ModelInfo(path=f"models/net{evil}.onnx", sha256="", nodes=3, bytes=9, parameters=9, operators={}),
        data="feeds.npz",
        samples=128,
        calibration_samples=512,
        measure="kl",
        levels=LEVELS,
        layers=rows,
        skips=tuple(SkipEntry(node=f"n{number}{evil}", reason=f"reason {number // 2}") for number in range(skips)),
        environment=Environment(onnxruntime="1", onnx="1", numpy="1", python="3", cpu="c", isa="none"),
    )


FOUND = sensitivity(("conv1", (1e-6, 0.02, 0.4, 0.0)), ("blind", (1e-5, 0.01, 0.5, 0.03)), skips=3)


def test_json_round_trips_and_refuses_unknown_keys() -> None:
    assert Sensitivity.model_validate_json(FOUND.to_json()) == FOUND
    assert '"schema_version": 1' in FOUND.to_json()
    with pytest.raises(ValidationError, match="extra"):
        Sensitivity.model_validate_json(FOUND.to_json().replace('"measure"', '"measures"'))


def test_a_figure_is_short_and_has_its_error() -> None:
    assert figure(level("bits=8", 0.0)) == "0"
    assert figure(level("bits=8", 0.01234, 0.0019)) == "0.012 ± 0.002"


def test_table_has_every_layer_level_and_reason() -> None:
    shown = render(FOUND)
    for word in ("conv1", "blind *", "0.02", "± 0.004", "0.4", "KL divergence", "128 held-back", "reason 0", "2x"):
        assert word in shown
    assert "could not be observed" in shown
    assert "n0 and others" in shown


def test_table_of_nothing_is_no_error() -> None:
    assert "Damage" in render(sensitivity())


def test_plot_is_well_formed_and_in_order() -> None:
    tree = xml.dom.minidom.parseString(draw(FOUND))
    rows = 2 * 4
    marks = [*tree.getElementsByTagName("circle"), *tree.getElementsByTagName("rect")]
    assert len(marks) == rows + len(LEVELS)
    circles = [float(each.getAttribute("cx")) for each in tree.getElementsByTagName("circle")]
    first, second = circles[2:4]  # behind those of the legend: bits=8 and bits=2 of conv1
    assert LEFT <= first < second <= LEFT + WIDTH
    texts = "".join(each.toxml() for each in tree.getElementsByTagName("text"))
    assert "conv1" in texts
    assert "sparsity=0.9" in texts


@pytest.mark.parametrize("damages", [(0.0,) * 4, (1e-30, 1e-30, 1e-30, 2.0), (5.0,) * 4])
def test_plot_stands_odd_figures(damages: tuple[float, ...]) -> None:
    tree = xml.dom.minidom.parseString(draw(sensitivity(("a", damages))))
    for each in tree.getElementsByTagName("circle"):
        assert 0 <= float(each.getAttribute("cx")) <= LEFT + WIDTH + 1
    assert len(tree.getElementsByTagName("text")) < 40


def test_names_of_a_model_are_inert() -> None:
    found = sensitivity((EVIL, (0.1,) * 4), skips=1, evil=EVIL)
    for text in (draw(found), page(found), render(found)):
        assert "\x1b" not in text
    for text in (draw(found), page(found)):
        assert "<script" not in text
    assert "default-src 'none'" in page(found)
    assert "conv1" in page(FOUND)
