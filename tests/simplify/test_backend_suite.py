"""ONNX's own test suite through simplification: the outputs that the suite states must come out."""

from __future__ import annotations

import warnings
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.backend.test
import pytest
from onnx import TensorProto, numpy_helper

from graphopt.errors import GraphoptError
from graphopt.runtime import run
from graphopt.verify.reference import interpret, open_unoptimized
from simplify_oracle import SimplifyFaultError, judge, operators

STORED = sorted((Path(onnx.backend.test.__file__).parent / "data").glob("*/*/model.onnx"))

SAMPLED = 24
"""One case in so many is in the fast tests."""

INTERPRETED_ELEMENTS = 10_000
"""Cases with larger inputs are not run in onnx.reference, which takes seconds for a pooling of three axes."""

_RANDOM = ("Random", "Bernoulli", "Multinomial", "Dropout")


@cache
def cases() -> dict[str, Any]:
    """Return the node and model cases that the onnx wheel generates, by name."""
    from onnx.backend.test.case.model import collect_testcases as model_cases
    from onnx.backend.test.case.node import collect_testcases as node_cases

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = [*node_cases(None), *model_cases()]
    return {case.name: case for case in found if case.model is not None and case.data_sets}


def check_case(model: onnx.ModelProto, data_sets: list[tuple[list[Any], list[Any]]]) -> bool:
    """Simplify a case and compare with what it states; tell whether anything ran it.

    The suite states rounded outputs, with a tolerance: where the original itself is within the suite's tolerance, the
    result has to be too, besides equalling the original under its contract.
    """
    names = [value.name for value in model.graph.input]
    feeds = [dict(zip(names, map(_value, inputs), strict=False)) for inputs, _ in data_sets]
    random = any(op.startswith(_RANDOM) for op in operators(model))
    given = [value for feed in feeds for value in feed.values()]
    tensors = all(isinstance(value, np.ndarray) for value in given)
    tensors = tensors and sum(value.size for value in given) <= INTERPRETED_ELEMENTS
    verdict = judge(model, feeds, random=random, interpreter=tensors)
    if random:
        return verdict.compared > 0
    stated = [[_value(output) for output in outputs] for _, outputs in data_sets]
    after = verdict.result.SerializeToString()
    for evaluate in (_by_runtime, _by_reference) if tensors else (_by_runtime,):
        for feed, right in zip(feeds, stated, strict=True):
            first = evaluate(model.SerializeToString(), feed)
            if first is None or not all(_is_near(a, b) for a, b in zip(first, right, strict=True)):
                continue
            found = evaluate(after, feed)
            if found is None:
                if evaluate is _by_reference:
                    continue  # it does not implement every operator that may be new
                raise SimplifyFaultError("refused", "the result does not run")
            wrong = [at for at, (a, b) in enumerate(zip(found, right, strict=True)) if not _is_near(a, b)]
            if wrong:
                raise SimplifyFaultError(
                    "wrong", f"outputs {wrong} are not what the suite states ({evaluate.__name__})"
                )
    return verdict.compared + verdict.interpreted > 0


def _by_runtime(model: bytes, feed: dict[str, Any]) -> list[Any] | None:
    try:
        return list(run(open_unoptimized(model), feed).values())
    except GraphoptError:
        return None


def _by_reference(model: bytes, feed: dict[str, Any]) -> list[Any] | None:
    try:
        with np.errstate(all="ignore"):
            return list(interpret(model, [feed])[0].values())
    except Exception:
        return None


def _value(value: Any) -> Any:
    if isinstance(value, TensorProto):
        return numpy_helper.to_array(value)
    if isinstance(value, np.generic):
        return np.asarray(value)
    return value


def _is_near(found: Any, stated: Any) -> bool:
    if found is None or stated is None:
        return found is stated
    if isinstance(found, list) and isinstance(stated, list):
        return len(found) == len(stated) and all(_is_near(a, b) for a, b in zip(found, stated, strict=True))
    if isinstance(stated, dict) or isinstance(found, dict):
        return bool(found == stated)
    a, b = np.asarray(found), np.asarray(stated)
    if a.shape != b.shape or a.dtype != b.dtype:
        return False
    if a.dtype.kind in "OUSb":
        return bool(np.array_equal(a, b))
    kind = np.complex128 if a.dtype.kind == "c" else np.float64
    narrow = a.dtype.itemsize < 4 and a.dtype.kind not in "iu"
    tolerance = 4e-2 if a.dtype.name == "bfloat16" else 1e-2 if narrow else 1e-3
    return bool(np.allclose(a.astype(kind), b.astype(kind), rtol=tolerance, atol=1e-5, equal_nan=True))


def check_all(names: list[str]) -> int:
    """Check some cases, report all that fail together, and return how many were run by something."""
    ran, faults = 0, []
    for name in names:
        case = cases()[name]
        try:
            ran += check_case(case.model, case.data_sets)
        except SimplifyFaultError as fault:
            faults.append(f"{name}: {fault}")
    assert not faults, f"{len(faults)} of {len(names)}\n" + "\n".join(faults)
    return ran


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_a_sample_of_the_generated_cases() -> None:
    names = sorted(cases())[::SAMPLED]
    assert check_all(names) > 0.9 * len(names)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize("part", range(8))
def test_all_generated_cases(part: int) -> None:
    names = sorted(cases())[part::8]
    assert check_all(names) > 0.9 * len(names)


def stored_case(path: Path) -> bool:
    """Check one case that the onnx wheel contains; its data may be missing."""
    model = onnx.load(path)
    data_sets = []
    for folder in sorted(path.parent.glob("test_data_set_*")):
        inputs, outputs = (
            [_load(folder / f"{kind}_{index}.pb", value) for index, value in enumerate(values)]
            for kind, values in (("input", _fed(model)), ("output", model.graph.output))
        )
        data_sets.append((inputs, outputs))
    return check_case(model, data_sets)


def _fed(model: onnx.ModelProto) -> list[onnx.ValueInfoProto]:
    given = {tensor.name for tensor in model.graph.initializer}
    return [value for value in model.graph.input if value.name not in given]


def _load(path: Path, value: onnx.ValueInfoProto) -> Any:
    kind = value.type.WhichOneof("value")
    data = path.read_bytes()
    if kind == "tensor_type":
        return numpy_helper.to_array(TensorProto.FromString(data))
    if kind == "sequence_type":
        return numpy_helper.to_list(onnx.SequenceProto.FromString(data))
    return numpy_helper.to_optional(onnx.OptionalProto.FromString(data))


def test_a_sample_of_the_stored_cases() -> None:
    check_stored(STORED[::4])


@pytest.mark.slow
def test_all_stored_cases() -> None:
    check_stored(STORED)


def check_stored(paths: list[Path]) -> None:
    """Check some stored cases and report all that fail together."""
    faults, ran = [], 0
    for path in paths:
        try:
            ran += stored_case(path)
        except SimplifyFaultError as fault:
            faults.append(f"{path.parent.name}: {fault}")
    assert not faults, f"{len(faults)} of {len(paths)}\n" + "\n".join(faults)
    assert ran > 0.9 * len(paths)
