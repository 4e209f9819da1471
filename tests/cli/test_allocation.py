"""--allocation: bits and zeros shared out by what layers cost the outputs, where that can be measured."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from graphopt import demo

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    Run = Callable[..., Any]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("verb", "flags", "option"),
    [
        ("quantize", ("--weights", "int3", "--block", "0", "--activations", "none"), "round-weights"),
        ("prune", ("--sparsity", "0.6", "--method", "wanda"), "prune-wanda"),
    ],
)
def test_layers_get_different_shares(
    graphopt_here: Run, tmp_path: Path, verb: str, flags: tuple[str, ...], option: str
) -> None:
    call = (verb, demo.CNN, "-o", tmp_path / "out.onnx", "--data", demo.CALIBRATION, *flags, "--max-drop", 100)
    ran = graphopt_here(*call, "--allocation", "kl", "--json")
    assert ran.status == 0, ran.err
    report = json.loads(ran.out)
    (used,) = [entry for entry in report["passes"] if entry["name"] == option]
    assert used["options"]["allocation"] == "kl"
    shares = {entry["what"].split(" ")[0] for entry in report["layers"] if entry["pass_name"] == option}
    assert len(shares) > 2


@pytest.mark.parametrize(
    ("verb", "flags", "message"),
    [
        ("quantize", ("--weights", "int8", "--allocation", "kl"), "int8 has no bits to share out"),
        ("quantize", ("--weights", "ternary", "--allocation", "uniform"), "ternary has no bits to share out"),
        ("quantize", ("--weights", "int4", "--allocation", "kl"), "what layers cost is measured on data"),
        ("quantize", ("--weights", "int4", "--allocation", "hawq"), "'hawq' is unknown"),
        ("prune", ("--sparsity", "0.5", "--allocation", "kl"), "method lamp shares zeros out by itself"),
    ],
)
def test_what_cannot_be_shared_out_is_refused(
    graphopt_here: Run, tmp_path: Path, verb: str, flags: tuple[str, ...], message: str
) -> None:
    ran = graphopt_here(verb, demo.CNN, "-o", tmp_path / "out.onnx", *flags)
    assert ran.status == 2
    assert message in ran.err
    assert not (tmp_path / "out.onnx").exists()
