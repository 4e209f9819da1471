"""prune --permute: channels change places before weights are pruned, and only where that can help."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from graphopt import demo

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    Run = Callable[..., Any]


def test_channels_change_places_first(graphopt_here: Run, tmp_path: Path) -> None:
    call = ("prune", demo.CNN, "-o", tmp_path / "out.onnx", "--pattern", "2:4", "--permute", "--json")
    ran = graphopt_here(*call)
    assert ran.status == 0, ran.err
    steps = {each["name"]: each["patches"] for each in json.loads(ran.out)["passes"]}
    assert steps["permute-channels"] > 0
    assert steps["prune-magnitude"] > 0
    assert list(steps).index("permute-channels") < list(steps).index("prune-magnitude")


@pytest.mark.parametrize(
    ("flags", "text"),
    [
        (("--sparsity", 0.5), "gains nothing from another order"),
        (("--sparsity", 0.5, "--pattern", "channels"), "gains nothing from another order"),
        (("--pattern", "2:4", "--statistics", "known.npz"), "hold for one order of channels"),
    ],
)
def test_where_it_cannot_help_it_is_refused(
    graphopt_here: Run, tmp_path: Path, flags: tuple[object, ...], text: str
) -> None:
    ran = graphopt_here("prune", demo.CNN, "-o", tmp_path / "out.onnx", "--permute", *flags)
    assert ran.status == 2
    assert text in ran.err
