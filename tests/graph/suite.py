"""The models of ONNX's backend test suite: those that the wheel generates and those that it contains."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import TYPE_CHECKING

import onnx.backend.test

if TYPE_CHECKING:
    from collections.abc import Iterator

    from onnx import ModelProto


def generated_cases() -> Iterator[tuple[str, ModelProto]]:
    """Yield the node and model cases, which the onnx wheel generates."""
    from onnx.backend.test.case.model import collect_testcases as model_cases
    from onnx.backend.test.case.node import collect_testcases as node_cases

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        cases = [*node_cases(None), *model_cases()]
    for case in cases:
        if case.model is not None:
            yield case.name, case.model


def stored_cases() -> list[Path]:
    """Return the light, simple, pytorch-converted and pytorch-operator cases, which the onnx wheel contains."""
    data = Path(onnx.backend.test.__file__).parent / "data"
    return sorted([*data.glob("*/*/model.onnx"), *data.glob("light/*.onnx")])
