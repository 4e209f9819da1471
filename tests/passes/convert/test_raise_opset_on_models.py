"""raise-opset on models nobody wrote for it: drawn ones, the suites of ONNX, exported ones."""

from __future__ import annotations

import os
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from graphopt.errors import GraphoptError
from graphopt.graph import read_model
from graphopt.passes.convert.raise_opset import NEWEST, RaiseOpset
from graphopt.rewrite.manager import PassManager
from graphopt.verify.reference import evaluate
from pass_oracle import check_pass

if TYPE_CHECKING:
    from collections.abc import Iterator

REDUCTIONS = (
    "ReduceSum",
    "ReduceMean",
    "ReduceMax",
    "ReduceMin",
    "ReduceProd",
    "ReduceL1",
    "ReduceL2",
    "ReduceSumSquare",
)


@st.composite
def old_models(draw: st.DrawFn) -> tuple[onnx.ModelProto, int, list[int]]:
    """Draw a chain of operators in their forms of opset 7 to 12; return it with a target and the shape of its input."""
    opset = draw(st.integers(7, 12))
    shape = draw(st.lists(st.integers(1, 4), min_size=1, max_size=4))
    now = list(shape)
    nodes: list[onnx.NodeProto] = []
    weights: list[onnx.TensorProto] = []
    last = "x"
    for count in range(draw(st.integers(1, 6))):
        made = f"t{count}"
        op, now, inputs, attributes = draw(_steps(now, opset, made, weights))
        nodes.append(helper.make_node(op, [last, *inputs], [made], **attributes))
        last = made
    dims: list[Any] = [f"d{axis}" if draw(st.booleans()) else size for axis, size in enumerate(shape)]
    graph = helper.make_graph(
        nodes,
        "old",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, dims)],
        [helper.make_tensor_value_info(last, TensorProto.FLOAT, [None] * len(now))],
        weights,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
    return model, draw(st.integers(opset + 1, 24)), shape


@st.composite
def _steps(
    draw: st.DrawFn, shape: list[int], opset: int, name: str, weights: list[onnx.TensorProto]
) -> tuple[str, list[int], list[str], dict[str, Any]]:
    """Draw an operator with its attributes and inputs, and the shape it gives."""
    rank = len(shape)
    axis = draw(st.integers(0, max(rank - 1, 0)))
    kind = draw(st.sampled_from(("view", "reduce", "bounds", "soft", "cut", "turn")))
    if kind == "reduce" and rank:
        kept = draw(st.integers(0, 1))
        after = [1 if kept and place == axis else size for place, size in enumerate(shape) if kept or place != axis]
        return draw(st.sampled_from(REDUCTIONS)), after, [], {"axes": [axis], "keepdims": kept}
    if kind == "soft" and rank:
        return draw(st.sampled_from(("Softmax", "LogSoftmax", "Hardmax"))), shape, [], {"axis": axis}
    if kind == "cut" and rank:
        if opset < 10:
            return "Slice", [*shape[:axis], 1, *shape[axis + 1 :]], [], {"axes": [axis], "starts": [0], "ends": [1]}
        limits = {"starts": [0], "ends": [1], "axes": [axis]}
        weights.extend(numpy_helper.from_array(np.array(value), f"{name}_{key}") for key, value in limits.items())
        return "Slice", [*shape[:axis], 1, *shape[axis + 1 :]], [f"{name}_{key}" for key in limits], {}
    if kind == "bounds" and opset < 11:
        if draw(st.booleans()) and rank:
            after = [size + (place == axis) for place, size in enumerate(shape)]
            pads = [0] * rank + [int(place == axis) for place in range(rank)]
            return "Pad", after, [], {"pads": pads, "value": 0.5}
        return "Clip", shape, [], {"min": -0.75}
    if kind == "turn" and rank:
        return "Transpose", shape[::-1], [], {}
    ones = [place for place, size in enumerate(shape) if size == 1]
    if len(ones) > 0 and draw(st.booleans()):
        return "Squeeze", [size for place, size in enumerate(shape) if place != ones[0]], [], {"axes": [ones[0]]}
    if rank < 5:
        return "Unsqueeze", [*shape[:axis], 1, *shape[axis:]], [], {"axes": [axis]}
    return "Dropout" if opset < 12 else "Relu", shape, [], {"ratio": 0.5} if opset < 12 else {}


@settings(max_examples=50, deadline=None)
@given(old_models(), st.integers(0, 2**32 - 1))
def test_drawn_models_keep_their_values(drawn: tuple[onnx.ModelProto, int, list[int]], seed: int) -> None:
    proto, to, shape = drawn
    feeds = [{"x": np.random.default_rng(seed).standard_normal(shape).astype(np.float32)}]
    done = check_pass(RaiseOpset(to=to), proto, feeds, interpreted=False)  # type: ignore[arg-type]
    if done.record.patches:
        assert done.model.opset == to
        onnx.checker.check_model(done.model.to_proto())


def node_cases() -> Iterator[tuple[str, onnx.ModelProto, dict[str, Any]]]:
    """Yield the node tests of ONNX with one feed each."""
    from onnx.backend.test.case.node import collect_testcases

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        cases = collect_testcases(None)
    for case in cases:
        if case.model is not None and case.data_sets:
            names = [value.name for value in case.model.graph.input]
            yield case.name, case.model, dict(zip(names, case.data_sets[0][0], strict=False))


def runs(model: onnx.ModelProto, feed: dict[str, Any]) -> dict[str, Any] | None:
    """Return the outputs of a model, None where it is not legal or ONNX Runtime does not run it."""
    try:
        onnx.checker.check_model(model, full_check=True)
        return dict(evaluate(read_model(model), [feed])[0])
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError, GraphoptError):
        return None


@pytest.mark.slow
@pytest.mark.parametrize(("low", "to"), [(7, 13), (9, 18), (11, 20), (13, 23), (18, 23), (21, NEWEST)])
def test_node_tests_of_onnx(low: int, to: int) -> None:
    """Every node test that is legal in an older opset gives the same in a newer one, or is refused."""
    same = 0
    for name, original, feed in node_cases():
        model = onnx.ModelProto()
        model.CopyFrom(original)
        for entry in model.opset_import:
            if entry.domain in {"", "ai.onnx"}:
                entry.version = low
        expected = runs(model, feed)
        if expected is None:
            continue
        raised = read_model(model)
        if not PassManager([RaiseOpset(to=to)]).run(raised).patches:
            continue
        proto = raised.to_proto()
        onnx.checker.check_model(proto)
        found = evaluate(read_model(proto), [feed])[0]
        for key, value in expected.items():
            if isinstance(value, np.ndarray) and value.dtype.kind == "f":
                np.testing.assert_allclose(found[key], value, rtol=1e-6, atol=1e-6, err_msg=name)
            elif isinstance(value, np.ndarray):
                np.testing.assert_array_equal(found[key], value, err_msg=name)
        same += 1
    assert same > 100


@pytest.mark.slow
@pytest.mark.skipif("GRAPHOPT_ASSETS" not in os.environ, reason="needs GRAPHOPT_ASSETS")
@pytest.mark.parametrize(
    "name", ["graphs/bert_ts", "graphs/llama_ts", "models/gtcrn_stream_op11_raw", "models/mnist_cntk_op8"]
)
def test_exported_models(name: str) -> None:
    done = check_pass(
        RaiseOpset(to=23), read_model(Path(os.environ["GRAPHOPT_ASSETS"]) / f"{name}.onnx"), interpreted=False
    )
    assert done.model.opset == 23
