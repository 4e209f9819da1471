"""Models for the tests of the graph layer."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import onnx
import onnx.parser
import pytest

from graphopt.graph import Model, read_model

sys.path.insert(0, str(Path(__file__).parent))  # crafted.py


def from_text(text: str) -> Model:
    """Read a model from ONNX text."""
    return read_model(onnx.parser.parse_model(text))


@pytest.fixture
def chain() -> Model:
    """x -> Relu -> h -> Add(w) -> s -> Neg -> y."""
    return from_text(
        """<ir_version: 8, opset_import: ["": 17]>
        g (float[N, 4] x) => (float[N, 4] y) <float[4] w = {1, 2, 3, 4}> {
            h = Relu(x)
            s = Add(h, w)
            y = Neg(s)
        }"""
    )


@pytest.fixture
def branches() -> Model:
    """An If whose branches both capture h and w."""
    return from_text(
        """<ir_version: 8, opset_import: ["": 17]>
        g (float[N, 4] x, bool c) => (float[N, 4] y) <float[4] w = {1, 2, 3, 4}> {
            h = Relu(x)
            z = If (c) <
                then_branch = t () => (float[N, 4] a) { a = Add(h, w) },
                else_branch = e () => (float[N, 4] b) { b = Sub(h, w) }
            >
            y = Neg(z)
        }"""
    )


@pytest.fixture(scope="session")
def assets() -> Path:
    """The folder of real models."""
    folder = os.environ.get("GRAPHOPT_ASSETS")
    if not folder:
        pytest.skip("GRAPHOPT_ASSETS is not set: no real models")
    return Path(folder)
