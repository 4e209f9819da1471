"""The form of quantized operators: types by target, sharing of scales, integer operators on request."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import pytest

from placed_models import RESIDUAL, float_model

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path]:
    """Return a float model and data for it."""
    model, data = tmp_path / "model.onnx", tmp_path / "feeds.npz"
    float_model(RESIDUAL).save(model)
    np.savez(data, x=np.random.default_rng(0).standard_normal((40, 16, 16, 16)).astype(np.float32))
    return model, data


def operators(path: Path) -> set[str]:
    return {node.op_type for node in onnx.load(path).graph.node}


@pytest.mark.parametrize(
    ("options", "present", "absent"),
    [
        (["--format", "qoperator"], {"QLinearConv", "QLinearAdd", "QGemm"}, {"Conv", "Add"}),
        (["--target", "tensorrt"], {"Conv", "QuantizeLinear"}, {"QLinearConv"}),
        (["--target", "openvino", "--symmetric", "--per", "tensor"], {"Conv", "Relu"}, {"QLinearConv"}),
        (["--target", "qnn", "--activations", "int16"], {"Conv"}, {"Relu"}),
        (["--weights", "fp8"], {"DequantizeLinear"}, {"QuantizeLinear"}),
        (["--weights", "int4", "--format", "qoperator", "--activations", "none"], {"DequantizeLinear"}, {"QGemm"}),
    ],
)
def test_form_is_written(
    options: list[str], present: set[str], absent: set[str], files: tuple[Path, Path], graphopt_here: Callable[..., Any]
) -> None:
    model, data = files
    output = model.parent / "out.onnx"
    ran = graphopt_here("quantize", model, "-o", output, "--data", data, "--max-drop", 100, *options)
    assert ran.status == 0, ran.err
    found = operators(output)
    assert present <= found
    assert not absent & found


def test_one_scale_per_tensor(files: tuple[Path, Path], graphopt_here: Callable[..., Any]) -> None:
    model, data = files
    output = model.parent / "out.onnx"
    ran = graphopt_here("quantize", model, "-o", output, "--data", data, "--max-drop", 100, "--per", "tensor")
    assert ran.status == 0, ran.err
    sizes = {tensor.name: list(tensor.dims) for tensor in onnx.load(output).graph.initializer}
    assert all(dims in ([], [1]) for name, dims in sizes.items() if name.endswith("_scale"))


def test_report_names_the_runtime_that_is_not_installed(
    files: tuple[Path, Path], graphopt_here: Callable[..., Any]
) -> None:
    model, data = files
    output = model.parent / "out.onnx"
    ran = graphopt_here("quantize", model, "-o", output, "--data", data, "--max-drop", 100, "--target", "openvino")
    assert "Declared for OpenVINO, which is not installed here" in ran.out + ran.err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--activations", "int16"], "Activations are one of: uint8"),
        (["--target", "qnn", "--format", "qoperator"], "QNN does not read integer operators"),
        (["--target", "abacus"], "there is no target 'abacus'"),
    ],
)
def test_what_does_not_go_together_is_refused(
    options: list[str], message: str, files: tuple[Path, Path], graphopt_here: Callable[..., Any]
) -> None:
    model, data = files
    ran = graphopt_here("quantize", model, "-o", model.parent / "out.onnx", "--data", data, *options)
    assert ran.status == 2
    assert message in ran.err
