"""Inferred types against the expected outputs of onnx's own test cases, with numbers and with symbols as sizes."""

from __future__ import annotations

import glob
import warnings
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx.backend.test.case.node import collect_testcases

from graphopt.analysis import Facts, Types
from graphopt.graph import read_model
from shape_agreement import Agreement, agreement

STORED = sorted(glob.glob(str(Path(onnx.__file__).parent / "backend/test/data/*/*/model.onnx")))  # noqa: PTH207

SAMPLED = 6
"""One case in so many is in the fast tests."""

_CONSTANT_TYPES = {TensorProto.FLOAT, TensorProto.INT32, TensorProto.INT64, TensorProto.BOOL, TensorProto.DOUBLE}


@cache
def node_cases() -> dict[str, Any]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return {case.name: case for case in collect_testcases(None) if case.model is not None and case.data_sets}


def undeclared(proto: onnx.ModelProto) -> onnx.ModelProto:
    """Return a copy that declares nothing but its inputs."""
    bare = onnx.ModelProto()
    bare.CopyFrom(proto)
    bare.ir_version = max(bare.ir_version, 8)
    del bare.graph.value_info[:]
    for output in bare.graph.output:
        output.ClearField("type")
    return bare


def infer_case(case: Any, *, symbolic: bool) -> Agreement:
    """Infer a case whose small inputs are constants, and compare with what the case expects.

    Args:
        case: The test case.
        symbolic: Whether every size of every other input is a symbol of its own instead of a number.
    """
    proto = undeclared(case.model)
    inputs, outputs = case.data_sets[0]
    actual: dict[str, Any] = {}
    kept = []
    for info, given in zip(list(proto.graph.input), inputs, strict=False):
        kept.append(info)
        if info.type.WhichOneof("value") != "tensor_type" or not isinstance(given, np.ndarray | np.generic):
            continue
        array = np.asarray(given)
        if array.ndim <= 1 and array.size <= 32 and info.type.tensor_type.elem_type in _CONSTANT_TYPES:
            proto.graph.initializer.append(numpy_helper.from_array(array, info.name))
            kept.pop()
            continue
        actual[info.name] = array
        if symbolic and array.ndim:
            shape = [f"{info.name}_{axis}" for axis in range(array.ndim)]
            info.CopyFrom(helper.make_tensor_value_info(info.name, info.type.tensor_type.elem_type, shape))
    kept += list(proto.graph.input)[len(inputs) :]
    del proto.graph.input[:]
    proto.graph.input.extend(kept)
    for info, expected in zip(case.model.graph.output, outputs, strict=True):
        if info.type.WhichOneof("value") == "tensor_type":
            given = numpy_helper.to_array(expected) if isinstance(expected, TensorProto) else expected
            actual[info.name] = np.asarray(given)
    return agreement(read_model(proto), actual)


def _check_cases(names: list[str], *, symbolic: bool) -> Agreement:
    total = Agreement()
    for name in names:
        found = infer_case(node_cases()[name], symbolic=symbolic)
        total.wrong += [f"{name}: {claim}" for claim in found.wrong]
        total.sizes += found.sizes
        total.static += found.static
        total.unknown_rank += found.unknown_rank
    assert total.wrong == []
    return total


@pytest.mark.parametrize("symbolic", [False, True], ids=["numbers", "symbols"])
def test_a_sample_of_the_node_cases(symbolic: bool) -> None:
    total = _check_cases(sorted(node_cases())[::SAMPLED], symbolic=symbolic)
    assert total.sizes > 2000
    assert total.unknown_rank * 100 < total.sizes
    assert symbolic or total.static * 100 > total.sizes * 98


@pytest.mark.slow
@pytest.mark.parametrize("symbolic", [False, True], ids=["numbers", "symbols"])
def test_all_node_cases(symbolic: bool) -> None:
    total = _check_cases(sorted(node_cases()), symbolic=symbolic)
    assert total.sizes > 14_000
    assert total.unknown_rank * 500 < total.sizes


def test_stored_cases_have_the_shapes_that_are_expected() -> None:
    compared = 0
    for path in STORED:
        proto = onnx.load(path)
        model = read_model(undeclared(proto))
        types = Facts(model).get(Types)
        for index, (tensor, info) in enumerate(zip(model.graph.outputs, proto.graph.output, strict=True)):
            stored = Path(path).parent / "test_data_set_0" / f"output_{index}.pb"
            if info.type.WhichOneof("value") != "tensor_type" or not stored.exists():
                continue
            expected = TensorProto.FromString(stored.read_bytes())
            shape = types.shape(tensor)
            assert types.dtype(tensor) in {0, expected.data_type}, path
            if shape is not None:
                assert len(shape) == len(expected.dims), path
                assert all(a == b for a, b in zip(shape, expected.dims, strict=True) if isinstance(a, int)), path
                compared += 1
    assert compared > 100


def test_onnx_knows_no_full_shape_that_is_not_known_here() -> None:
    missing = set()
    for name in sorted(node_cases())[::SAMPLED]:
        bare = undeclared(node_cases()[name].model)
        model = read_model(bare)
        types = Facts(model).get(Types)
        inferred = {info.name: info.type.tensor_type for info in onnx.shape_inference.infer_shapes(bare).graph.output}
        for tensor in model.graph.outputs:
            declared = inferred[tensor.name].shape
            full = inferred[tensor.name].HasField("shape") and all(dim.HasField("dim_value") for dim in declared.dim)
            if full and types.static_shape(tensor) != tuple(dim.dim_value for dim in declared.dim):
                missing.add(next(iter(model.graph.nodes)).op)
    # FlexAttention computes with graphs that its attributes hold; only onnx's built-in inference looks through them.
    assert missing <= {"FlexAttention", "STFT"}
