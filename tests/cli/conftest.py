from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import onnx
import pytest
from onnx import numpy_helper, parser

import graphopt
from command_runs import Ran, graphopt_here

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["graphopt_here"]

ROOT = Path(next(iter(graphopt.__path__))).parent


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
small (float[N, I] x) => (float[N, O] y)
<float[I, H] w1, float[H] b1, float[H, O] w2>
{
  a = MatMul(x, w1)
  b = Add(a, b1)
  c = Relu(b)
  d = Identity(c)
  y = MatMul(d, w2)
}
"""


def linear_model(inputs: int, inner: int, outputs: int) -> onnx.ModelProto:
    """Return two linear layers with a Relu and an Identity between them."""
    text = TEXT
    for letter, size in (("I", inputs), ("H", inner), ("O", outputs)):
        text = text.replace(f" {letter}]", f" {size}]").replace(f"[{letter}", f"[{size}")
    model = parser.parse_model(text)
    random = np.random.default_rng(7)
    values = {"w1": (inputs, inner), "b1": (inner,), "w2": (inner, outputs)}
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
    onnx.save(linear_model(8, 16, 4), path)
    return path


@pytest.fixture
def feeds(tmp_path: Path) -> Path:
    """Return data for the small model, 80 samples."""
    path = tmp_path / "feeds.npz"
    np.savez(path, x=np.random.default_rng(3).standard_normal((80, 8)).astype(np.float32))
    return path


@pytest.fixture
def wide(tmp_path: Path) -> tuple[Path, Path]:
    """Return a model whose layers are large enough for integers to pay, and 80 samples of data for it."""
    model, data = tmp_path / "wide.onnx", tmp_path / "wide.npz"
    onnx.save(linear_model(256, 256, 128), model)
    np.savez(data, x=np.random.default_rng(3).standard_normal((80, 256)).astype(np.float32))
    return model, data
