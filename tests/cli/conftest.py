from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import onnx
import pytest
from onnx import numpy_helper, parser

import graphopt
from graphopt.cli import main

if TYPE_CHECKING:
    from collections.abc import Callable

ROOT = Path(next(iter(graphopt.__path__))).parent


@dataclass(frozen=True)
class Ran:
    """What one command did."""

    status: int
    out: str
    err: str


@pytest.fixture
def graphopt_here(capsys: pytest.CaptureFixture[str]) -> Callable[..., Ran]:
    """Run a command in this process."""

    def run(*arguments: object) -> Ran:
        capsys.readouterr()
        status = main([str(each) for each in arguments])
        shown = capsys.readouterr()
        return Ran(status, shown.out, shown.err)

    return run


@pytest.fixture
def command() -> list[str]:
    """Return what starts the command line in a process of its own."""
    return [sys.executable, "-c", "import sys; from graphopt.cli import main; sys.exit(main())"]


@pytest.fixture
def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT)}


@pytest.fixture
def graphopt_process(command: list[str], environment: dict[str, str]) -> Callable[..., Ran]:
    """Run a command in a process of its own."""

    def run(*arguments: object, cwd: Path | None = None, **variables: str) -> Ran:
        done = subprocess.run(
            [*command, *map(str, arguments)],
            capture_output=True,
            text=True,
            cwd=cwd,
            env={**environment, **variables},
            timeout=120,
            check=False,
        )
        return Ran(done.returncode, done.stdout, done.stderr)

    return run


TEXT = """
<ir_version: 8, opset_import: ["": 17]>
small (float[N, 8] x) => (float[N, 4] y)
<float[8, 16] w1, float[16] b1, float[16, 4] w2>
{
  a = MatMul(x, w1)
  b = Add(a, b1)
  c = Relu(b)
  d = Identity(c)
  y = MatMul(d, w2)
}
"""


def small_model() -> onnx.ModelProto:
    """Return two linear layers with a Relu and an Identity between them."""
    model = parser.parse_model(TEXT)
    random = np.random.default_rng(7)
    values = {"w1": (8, 16), "b1": (16,), "w2": (16, 4)}
    del model.graph.initializer[:]
    for name, shape in values.items():
        array = random.standard_normal(shape).astype(np.float32)
        model.graph.initializer.append(numpy_helper.from_array(array, name))
    for index, node in enumerate(model.graph.node):
        node.name = f"{node.op_type.lower()}{index}"
    return model


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """Return the file of a small model."""
    path = tmp_path / "small.onnx"
    onnx.save(small_model(), path)
    return path


@pytest.fixture
def feeds(tmp_path: Path) -> Path:
    """Return data for the small model, 80 samples."""
    path = tmp_path / "feeds.npz"
    np.savez(path, x=np.random.default_rng(3).standard_normal((80, 8)).astype(np.float32))
    return path
