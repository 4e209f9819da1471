"""graphopt statistics, and what prune, quantize and compile do with what it wrote."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import pytest

from graphopt.graph import read_model
from graphopt.report import Report

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    Run = Callable[..., Any]


@pytest.fixture
def shards(graphopt_here: Run, wide: tuple[Path, Path], tmp_path: Path) -> list[Path]:
    """Return statistics of two halves of the data, each collected apart."""
    model, data = wide
    with np.load(data) as arrays:
        x = arrays["x"]
    found = []
    for number, part in enumerate((x[:50], x[50:])):
        np.savez(tmp_path / f"part{number}.npz", x=part)
        found.append(tmp_path / f"part{number}.stats.npz")
        ran = graphopt_here("statistics", "collect", model, "--data", tmp_path / f"part{number}.npz", "-o", found[-1])
        assert ran.status == 0, ran.err
        assert f"{len(part)} samples" in ran.out
    return found


@pytest.fixture
def whole(graphopt_here: Run, wide: tuple[Path, Path], tmp_path: Path) -> Path:
    """Return statistics of all of the data."""
    path = tmp_path / "whole.npz"
    assert graphopt_here("statistics", "collect", wide[0], "--data", wide[1], "-o", path).status == 0
    return path


def test_merged_shards_are_the_whole(graphopt_here: Run, shards: list[Path], whole: Path, tmp_path: Path) -> None:
    merged = tmp_path / "merged.npz"
    ran = graphopt_here("statistics", "merge", *shards, "-o", merged)
    assert ran.status == 0, ran.err
    shown = [json.loads(graphopt_here("statistics", "show", path, "--json").out) for path in (merged, whole)]
    assert shown[0] == shown[1]
    assert shown[0]["samples"] == 80
    assert [(layer["columns"], layer["rows"]) for layer in shown[0]["layers"]] == [(256, 80), (256, 80)]
    again = graphopt_here("statistics", "merge", *reversed(shards), "-o", merged)
    assert again.status == 2
    assert "GO-U002" in again.err
    assert graphopt_here("statistics", "merge", *reversed(shards), "-o", merged, "--force").status == 0


def weights(path: Path) -> list[np.ndarray[Any, Any]]:
    model = onnx.load(path)
    return [onnx.numpy_helper.to_array(each) for each in model.graph.initializer if len(each.dims) == 2]


def test_prune_solves_on_statistics(graphopt_here: Run, wide: tuple[Path, Path], whole: Path, tmp_path: Path) -> None:
    model, data = wide
    for name, flags in {"known": (), "lamp": ("--method", "lamp")}.items():
        given = () if flags else ("--statistics", whole)
        asked = ("prune", model, "-o", tmp_path / f"{name}.onnx", "--sparsity", 0.6, *flags, *given, "--json")
        ran = graphopt_here(*asked)
        assert ran.status == 0, ran.err
        if not flags:
            notes = Report.model_validate_json(ran.out).notes
            assert any("statistics of 80 samples" in note for note in notes)
            assert "prune-second-order" in ran.out
    with np.load(data) as arrays:
        x = arrays["x"].astype(np.float64)
    dense = weights(model)[0]
    errors = []
    for name in ("known", "lamp"):
        found = next(each for each in weights(tmp_path / f"{name}.onnx") if each.shape == dense.shape)
        errors.append(np.square(x @ (found - dense)).sum())
        assert abs(sum((each == 0).mean() for each in weights(tmp_path / f"{name}.onnx")) / 2 - 0.6) < 0.05
    assert errors[0] < 0.7 * errors[1]


def test_quantize_rounds_on_statistics(
    graphopt_here: Run, wide: tuple[Path, Path], whole: Path, tmp_path: Path
) -> None:
    model, data = wide
    out = tmp_path / "few.onnx"
    flags = ("--weights", "int4", "--activations", "none")
    ran = graphopt_here("quantize", model, "-o", out, *flags, "--statistics", whole, "--json")
    assert ran.status == 0, ran.err
    rounded = next(each for each in Report.model_validate_json(ran.out).passes if each.name == "round-weights")
    assert rounded.patches == 2
    blind = tmp_path / "blind.onnx"
    assert graphopt_here("quantize", model, "-o", blind, *flags).status == 0
    ran = graphopt_here("check", model, out, "--data", data, "--contract", "lossy", "--json")
    other = graphopt_here("check", model, blind, "--data", data, "--contract", "lossy", "--json")
    known, nearest = (json.loads(each.out)["quality"]["sqnr_db"]["y"] for each in (ran, other))
    assert known > nearest


def test_compile_takes_them_beside_data(
    graphopt_here: Run, wide: tuple[Path, Path], whole: Path, tmp_path: Path
) -> None:
    given = ("--statistics", whole, "--data", wide[1], "--max-drop", 100, "--json")
    ran = graphopt_here("compile", wide[0], "-o", tmp_path / "out", "--recipe", "sparse", *given)
    assert ran.status == 0, ran.err
    report = Report.model_validate_json(ran.out)
    assert report.quality is not None
    assert report.quality.held_back
    pruned = next(each for each in report.passes if each.name == "prune-second-order")
    assert (pruned.patches, pruned.options["sparsity"]) == (2, 0.8)
    # nothing judges it without data: the preset's gentler variant, but the same pass
    ran = graphopt_here("compile", wide[0], "-o", tmp_path / "two", "--recipe", "sparse", *given[:2], "--json")
    pruned = next(each for each in Report.model_validate_json(ran.out).passes if each.name == "prune-second-order")
    assert (pruned.patches, pruned.options["sparsity"]) == (2, 0.6)


def test_channels_go_by_statistics(graphopt_here: Run, wide: tuple[Path, Path], whole: Path, tmp_path: Path) -> None:
    given = ("--pattern", "channels", "--sparsity", 0.25, "--statistics", whole)
    ran = graphopt_here("prune", wide[0], "-o", tmp_path / "less.onnx", *given, "--json")
    assert ran.status == 0, ran.err
    assert "block-obs" in ran.out
    assert read_model(tmp_path / "less.onnx").graph.nodes[0].inputs[1].shape == (256, 192)
    ran = graphopt_here("prune", wide[0], "-o", tmp_path / "two.onnx", *given, "--method", "entropy")
    assert ran.status == 2
    assert "do not tell samples apart" in ran.err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("prune", "--sparsity", 0.5, "--method", "lamp"), "looks at weights alone"),
        (("prune", "--sparsity", 0.5, "--allocation", "kl"), "what layers cost is measured on data"),
        (("quantize",), "int8 weights are rounded with the activations"),
        (("quantize", "--weights", "int4", "--allocation", "kl"), "what layers cost is measured on data"),
    ],
    ids=str,
)
def test_what_statistics_cannot_do_is_refused(
    graphopt_here: Run, wide: tuple[Path, Path], whole: Path, tmp_path: Path, arguments: tuple[object, ...], said: str
) -> None:
    verb, *flags = arguments
    ran = graphopt_here(verb, wide[0], "-o", tmp_path / "out.onnx", *flags, "--statistics", whole)
    assert ran.status == 2
    assert said in ran.err
    assert not (tmp_path / "out.onnx").exists()


def test_statistics_of_another_model_are_refused(
    graphopt_here: Run, model: Path, feeds: Path, wide: tuple[Path, Path], whole: Path, tmp_path: Path
) -> None:
    ran = graphopt_here("prune", model, "-o", tmp_path / "a.onnx", "--sparsity", 0.5, "--statistics", whole)
    assert ran.status == 2
    assert "GO-D001" in ran.err
    assert "belong to other weights" in ran.err
    other = tmp_path / "other.npz"
    assert graphopt_here("statistics", "collect", model, "--data", feeds, "-o", other).status == 0
    ran = graphopt_here("statistics", "merge", whole, other, "-o", tmp_path / "b.npz")
    assert ran.status == 2
    assert "GO-D001" in ran.err
    assert "different weights cannot be merged" in ran.err
    assert str(other) in ran.err


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 nothing", b"nothing at all" * 100])
def test_files_that_hold_none_are_refused(
    graphopt_here: Run, wide: tuple[Path, Path], tmp_path: Path, content: bytes
) -> None:
    path = tmp_path / "bad.npz"
    path.write_bytes(content)
    for arguments in (
        ("statistics", "show", path),
        ("statistics", "merge", path, path, "-o", tmp_path / "c.npz"),
        ("prune", wide[0], "-o", tmp_path / "c.onnx", "--sparsity", 0.5, "--statistics", path),
        ("prune", wide[0], "-o", tmp_path / "c.onnx", "--sparsity", 0.5, "--statistics", wide[1]),
        ("statistics", "show", tmp_path),
        ("statistics", "show", tmp_path / "none.npz"),
    ):
        ran = graphopt_here(*arguments)
        assert ran.status == 2, arguments
        assert "GO-D001" in ran.err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("collect", "m.onnx"), "missing --data and -o"),
        (("collect", "m.onnx", "n.onnx", "--data", "d", "-o", "s.npz"), "unexpected argument 'n.onnx'"),
        (("merge", "a.npz", "-o", "s.npz"), "one file only"),
        (("merge", "a.npz", "b.npz"), "missing -o"),
        (("merge", "a.npz", "b.npz", "-o", "s.npz", "--data", "d"), "--data has no use here"),
        (("show", "a.npz", "-o", "s.npz"), "--output has no use here"),
        (("colect", "m.onnx"), "Did you mean collect"),
        (("collect", "m.onnx", "--data", "d", "-o", "s.npz", "--samples", "0"), "--samples"),
        (("collect", "m.onnx", "--data", "d", "-o", "none/s.npz"), "there is no folder"),
    ],
    ids=str,
)
def test_usage(graphopt_here: Run, arguments: tuple[object, ...], said: str) -> None:
    ran = graphopt_here("statistics", *arguments)
    assert ran.status in {2, 3}
    assert said in ran.err
