"""Types of broken models: whatever a node looks like, inference ends, and what it could not do is recorded."""

from __future__ import annotations

import random
import warnings
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import AttributeProto, TensorProto, helper, numpy_helper
from onnx.backend.test.case.node import collect_testcases

from graphopt.analysis import Cost, Facts, Liveness, Types
from graphopt.errors import GraphoptError
from graphopt.graph import read_model

ODD_INTS = (-(2**63), -7, -1, 0, 1, 2, 3, 5, 64, 2**31, 2**63 - 1)


OPS = ("Conv", "Reshape", "Slice", "Concat", "LSTM", "Gemm", "Loop", "If", "Pad", "Range", "Attention", "Split", "Tile")


def _mutate_attribute(rng: random.Random, node: onnx.NodeProto) -> None:
    if not node.attribute or rng.random() < 0.3:
        name = rng.choice(["axis", "axes", "perm", "kernel_shape", "strides", "pads", "group", "to", "value", "split"])
        node.attribute.append(helper.make_attribute(name, [rng.choice(ODD_INTS) for _ in range(rng.randint(1, 3))]))
        return
    attribute = rng.choice(list(node.attribute))
    if attribute.type == AttributeProto.GRAPH:
        return
    values: list[Any] = [rng.choice(ODD_INTS), [rng.choice(ODD_INTS)] * rng.randint(1, 5), 0.5, "odd", [1.5, -2.0]]
    name = attribute.name
    node.attribute.remove(attribute)
    if rng.random() < 0.85:
        node.attribute.append(helper.make_attribute(name, rng.choice(values)))


def _mutate_inputs(rng: random.Random, graph: onnx.GraphProto, node: onnx.NodeProto) -> None:
    if not node.input:
        return
    index = rng.randrange(len(node.input))
    match rng.randrange(4):
        case 0:
            node.input[index] = ""
        case 1:
            node.input[index] = rng.choice(list(node.input))
        case 2:
            del node.input[index]
        case _:
            odd = np.array([rng.choice(ODD_INTS) for _ in range(rng.randint(0, 4))], np.int64)
            name = f"odd{len(graph.initializer)}"
            graph.initializer.append(numpy_helper.from_array(odd, name))
            node.input[index] = name


def _mutate_shapes(rng: random.Random, graph: onnx.GraphProto) -> None:
    if not graph.input:
        return
    info = rng.choice(list(graph.input))
    if info.type.WhichOneof("value") != "tensor_type":
        return
    shape: list[Any] = [rng.choice([0, 1, 2, 7, "n", "m", None]) for _ in range(rng.randint(0, 5))]
    kind = rng.choice([TensorProto.FLOAT, TensorProto.INT64, TensorProto.STRING, info.type.tensor_type.elem_type])
    info.CopyFrom(helper.make_tensor_value_info(info.name, kind, rng.choice([None, shape, shape])))


def _mutated(rng: random.Random, source: onnx.ModelProto) -> onnx.ModelProto:
    proto = onnx.ModelProto()
    proto.CopyFrom(source)
    for _ in range(rng.randint(1, 3)):
        node = rng.choice(list(proto.graph.node))
        match rng.randrange(4):
            case 0:
                _mutate_attribute(rng, node)
            case 1:
                _mutate_inputs(rng, proto.graph, node)
            case 2:
                _mutate_shapes(rng, proto.graph)
            case _:
                node.op_type = rng.choice(
                    ["Conv", "Reshape", "Slice", "Concat", "LSTM", "Gemm", "Loop", "If", "Pad", "Range"]
                )
    return proto


def _infer_mutations(count: int, seed: int) -> int:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        cases = [case.model for case in collect_testcases(None) if case.model is not None]
    rng = random.Random(seed)
    inferred = 0
    for _ in range(count):
        proto = _mutated(rng, rng.choice(cases))
        try:
            model = read_model(proto)
        except GraphoptError:
            continue
        facts = Facts(model)
        types = facts.get(Types)
        facts.get(Cost).total(default=2)
        facts.get(Liveness).peak(model.graph, default=2)
        for node in model.graph.nodes:
            for tensor in node.outputs:
                shape = types.shape(tensor)
                assert shape is None or all(not isinstance(size, int) or size >= 0 for size in shape)
        inferred += 1
    return inferred


def test_mutated_models_are_inferred_without_a_crash() -> None:
    assert _infer_mutations(1500, seed=0) > 800


@pytest.mark.slow
def test_many_mutated_models_are_inferred_without_a_crash() -> None:
    assert _infer_mutations(40_000, seed=1) > 20_000
