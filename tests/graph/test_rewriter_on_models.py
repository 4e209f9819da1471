"""An Identity after every tensor and away again: the rewriter on real graphs of every kind."""

from __future__ import annotations

import onnx
import pytest
from onnx import ModelProto
from suite import generated_cases, stored_cases

from graphopt.graph import Model, Rewriter, eliminate_unreachable, is_sorted, read_model


def valid(proto: ModelProto) -> bool:
    try:
        onnx.checker.check_model(proto, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError):
        return False
    return all(is_sorted(root, nested=True) for root in read_model(proto).roots())


def has_sequences(model: Model) -> bool:
    return any("Sequence" in node.op or "Optional" in node.op for _, node in model.walk()) or any(
        getattr(tensor, "type", "tensor_type") != "tensor_type"
        for _, node in model.walk()
        for tensor in (*node.inputs, *node.outputs)
    )


def check_there_and_back(proto: ModelProto) -> bool:
    model = read_model(proto)
    if not valid(proto) or has_sequences(model):
        return False
    count = sum(1 for _ in model.walk())
    added = []
    for _, node in list(model.walk()):
        for tensor in list(node.outputs):
            if tensor.name:
                with Rewriter(model) as rw:
                    copy = rw.op("Identity", [tensor], near=node, like=tensor, origin=[node])
                    rw.replace_tensor(tensor, copy)
                added.append(copy.inputs[0])
    assert all(is_sorted(root, nested=True) for root in model.roots())
    written = model.to_proto()
    onnx.checker.check_model(written, full_check=True)
    assert list(written.graph.input) == list(proto.graph.input)
    assert list(written.graph.output) == list(proto.graph.output)
    for node in added:
        with Rewriter(model) as rw:
            rw.replace_tensor(node.outputs[0], node.inputs[0])
            rw.erase(node)
    assert sum(1 for _ in model.walk()) == count
    written = model.to_proto()
    onnx.checker.check_model(written, full_check=True)
    assert list(written.graph.output) == list(proto.graph.output)
    eliminate_unreachable(model.graph)
    onnx.checker.check_model(model.to_proto(), full_check=True)
    return True


def test_there_and_back_on_a_sample() -> None:
    assert sum(check_there_and_back(onnx.load(path)) for path in stored_cases()[::6]) > 5


@pytest.mark.slow
def test_there_and_back_on_the_backend_suite() -> None:
    protos = [proto for _, proto in generated_cases()] + [onnx.load(path) for path in stored_cases()]
    assert sum(map(check_there_and_back, protos)) > 1000
