"""Runs the command line on bad input and checks what every refusal must be."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import onnx
from onnx import TensorProto, helper

from graphopt import errors

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

INSTALLED = Path(errors.__file__).parents[1]
VALUE = helper.make_tensor_value_info


@dataclass(frozen=True)
class Ended:
    """How a command ended."""

    status: int
    out: str
    err: str


def graphopt(*arguments: object, cwd: Path | None = None, env: Mapping[str, str] | None = None) -> Ended:
    """Run the command line in a process of its own."""
    done = subprocess.run(
        command(*arguments),
        cwd=cwd,
        env=environment(env),
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    return Ended(done.returncode, done.stdout, done.stderr)


def command(*arguments: object) -> list[str]:
    return [sys.executable, "-P", "-m", "graphopt", *map(str, arguments)]


def environment(more: Mapping[str, str] | None = None) -> dict[str, str]:
    paths = [str(INSTALLED), os.environ.get("PYTHONPATH", "")]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths)), **(more or {})}


def assert_refused(ended: Ended, code: str, status: int, *words: str) -> None:
    """Assert one clear message: the code, the exit status, the words; no traceback and no result."""
    shown = f"{ended.status}\n{ended.out}\n{ended.err}"
    assert ended.status == status, shown
    assert re.search(rf"\b{code}\b", ended.err), shown
    assert "Traceback" not in ended.err, shown
    assert "internal error" not in ended.err, shown
    assert not ended.out, shown
    for word in words:
        assert word in ended.err, f"{word!r} is missing:\n{shown}"


def assert_only(folder: Path, names: Sequence[str]) -> None:
    """Assert that a folder holds these entries and nothing half-written beside them."""
    assert sorted(entry.name for entry in folder.iterdir()) == sorted(names)


def linear(weight: TensorProto, shape: Sequence[int] = (2, 2)) -> onnx.ModelProto:
    """Return y = x W with one stored weight ``w``, whatever that is."""
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"], name="linear")],
        "g",
        [VALUE("x", TensorProto.FLOAT, ["n", shape[0]])],
        [VALUE("y", TensorProto.FLOAT, ["n", shape[1]])],
        [weight],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
