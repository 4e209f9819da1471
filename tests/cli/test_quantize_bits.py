"""graphopt quantize below 8 bits, and the preset int4."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import onnxruntime
import pytest

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    Run = Callable[..., Any]

FLOAT_BYTES = 4 * (256 * 256 + 256 * 128)
"""The model has a first and a last layer alone: all of its weights are rounded as asked."""


@pytest.mark.parametrize(
    ("flags", "size", "error"),
    [
        (("--weights", "int6"), 0.3, 0.003),
        (("--weights", "int4"), 0.18, 0.02),
        (("--bits", "4", "--block", "0"), 0.15, 0.03),
        (("--weights", "int3"), 0.18, 0.06),
        (("--weights", "kmeans16", "--activations", "none"), 0.15, 0.02),
    ],
    ids=str,
)
def test_file_shrinks_and_computes_nearly_the_same(
    graphopt_here: Run, wide: tuple[Path, Path], tmp_path: Path, flags: tuple[str, ...], size: float, error: float
) -> None:
    model, data = wide
    out = tmp_path / "few.onnx"
    ran = graphopt_here("quantize", model, "-o", out, *flags, "--data", data, "--max-drop", 100)
    assert ran.status == 0, ran.err
    assert out.stat().st_size < size * FLOAT_BYTES
    found = onnxruntime.InferenceSession(out, providers=["CPUExecutionProvider"])
    before = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    with np.load(data) as arrays:
        one, other = found.run(None, dict(arrays))[0], before.run(None, dict(arrays))[0]
    assert np.square(one - other).mean() < error * np.square(other).mean()


@pytest.mark.parametrize(("weights", "opset"), [("ternary", 25), ("int2", 25), ("int4", 21)])
def test_opset_is_raised_to_what_has_the_type(
    graphopt_here: Run, wide: tuple[Path, Path], tmp_path: Path, weights: str, opset: int
) -> None:
    out = tmp_path / "few.onnx"
    ran = graphopt_here("quantize", wide[0], "-o", out, "--weights", weights)
    assert ran.status == 0, ran.err
    assert onnx.load(out).opset_import[0].version == opset


def test_preset_int4(graphopt_here: Run, wide: tuple[Path, Path], tmp_path: Path) -> None:
    out = tmp_path / "bundle"
    ran = graphopt_here("compile", wide[0], "-o", out, "--recipe", "int4", "--data", wide[1], "--max-drop", 100)
    assert ran.status == 0, ran.err
    assert "round-weights" in ran.out
    assert (out / "model.onnx").stat().st_size < 0.18 * FLOAT_BYTES


def test_blocks_must_be_powers_of_two(graphopt_here: Run, wide: tuple[Path, Path], tmp_path: Path) -> None:
    ran = graphopt_here("quantize", wide[0], "-o", tmp_path / "o.onnx", "--weights", "int4", "--block", "24")
    assert ran.status == 2
    assert "power of two" in ran.err


@pytest.mark.parametrize("flags", [("--block", "32"), ("--weights", "kmeans16", "--block", "64")], ids=str)
def test_blocks_are_refused_where_nothing_has_any(
    graphopt_here: Run, wide: tuple[Path, Path], tmp_path: Path, flags: tuple[str, ...]
) -> None:
    ran = graphopt_here("quantize", wide[0], "-o", tmp_path / "few.onnx", *flags)
    assert ran.status == 2
    assert "have no blocks" in ran.err


@pytest.mark.parametrize("kind", ["uint8", "int4"])
def test_activations_on_grids_are_refused_where_nothing_shows_their_ranges(
    graphopt_here: Run, wide: tuple[Path, Path], tmp_path: Path, kind: str
) -> None:
    ran = graphopt_here("quantize", wide[0], "-o", tmp_path / "few.onnx", "--activations", kind)
    assert ran.status == 2
    assert "Give --data FEEDS" in ran.err
