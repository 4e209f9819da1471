"""Inferred shapes against a run: every tensor of a model as an output, and every inferred size compared with it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import onnxruntime as ort
from onnx import helper, parser

from graphopt.analysis import Expr, Facts, ShapeValues, Types
from graphopt.analysis.dim_values import evaluate
from graphopt.graph import Model, read_model

if TYPE_CHECKING:
    from collections.abc import Mapping

Feed = dict[str, Any]


def read_text(text: str) -> Model:
    """Read a model; an output written as ``float y`` declares its element type and no shape."""
    proto = parser.parse_model(text)
    for output in proto.graph.output:
        if not output.type.tensor_type.shape.dim:
            output.type.tensor_type.ClearField("shape")
    return read_model(proto)


def observe(proto: onnx.ModelProto, feed: Mapping[str, Any]) -> dict[str, Any]:
    """Run the model without optimization and return every tensor of the main graph."""
    shown = onnx.ModelProto()
    shown.CopyFrom(proto)
    present = {info.name for info in shown.graph.output}
    for node in shown.graph.node:
        for name in node.output:
            if name and name not in present:
                present.add(name)
                shown.graph.output.append(helper.make_empty_tensor_value_info(name))
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4
    session = ort.InferenceSession(shown.SerializeToString(), options, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return {**dict(zip(names, session.run(names, dict(feed)), strict=True)), **feed}


@dataclass
class Agreement:
    """How many sizes and elements a run confirmed, and which it contradicts."""

    wrong: list[str] = field(default_factory=list)
    sizes: int = 0
    static: int = 0
    unresolved: int = 0
    unknown_rank: int = 0
    elements: int = 0


def agreement(model: Model, actual: Mapping[str, Any]) -> Agreement:
    """Compare what the analyses say with the tensors of one run.

    A symbol takes the first value seen for it and must keep it: two sizes with one symbol must be equal.
    """
    facts = Facts(model)
    types, values = facts.get(Types), facts.get(ShapeValues)
    tensors = [t for t in model.graph.inputs if t.name in actual]
    tensors += [t for node in model.graph.nodes for t in node.outputs if t.name in actual]
    found = Agreement()
    bound: dict[str, int] = {}
    claims: list[tuple[str, Any, int]] = []
    for tensor in tensors:
        array = actual[tensor.name]
        if not isinstance(array, np.ndarray):
            continue
        dtype, shape = types.dtype(tensor), types.shape(tensor)
        kind = (
            "STRING" if array.dtype == object else np.dtype(helper.tensor_dtype_to_np_dtype(dtype)) if dtype else None
        )
        if dtype and kind not in {"STRING", array.dtype}:
            found.wrong.append(f"{tensor.name}: element type {dtype} is {array.dtype}")
        if shape is None:
            found.unknown_rank += 1
            continue
        if len(shape) != array.ndim:
            found.wrong.append(f"{tensor.name}: shape {tuple(map(str, shape))} is {array.shape}")
            continue
        claims += [
            (f"{tensor.name} axis {i}", dim, size) for i, (dim, size) in enumerate(zip(shape, array.shape, strict=True))
        ]
        value = values.array(tensor)
        if value is not None:
            for index, (entry, real) in enumerate(zip(value.ravel().tolist(), array.ravel().tolist(), strict=True)):
                if isinstance(entry, Expr) or type(entry) is int:
                    claims.append((f"{tensor.name} element {index}", entry, int(real)))
                elif entry is not None and entry != real:
                    found.wrong.append(f"{tensor.name} element {index}: {entry} is {real}")
                found.elements += 1
    for _, dim, size in claims:
        if isinstance(dim, Expr) and len(dim.terms) == 1 and dim.terms[0][1] == 1:
            mono = dim.terms[0][0]
            if len(mono) == 1 and mono[0][1] == 1 and mono[0][0].kind == "symbol":
                bound.setdefault(mono[0][0].text, size)
    for where, dim, size in claims:
        found.sizes += 1
        found.static += isinstance(dim, int)
        got = evaluate(dim, bound)
        if got is None:
            found.unresolved += 1
        elif got != size:
            found.wrong.append(f"{where}: {dim} = {got} is {size}")
    return found


def check_run(model: Model, feed: Feed) -> Agreement:
    """Run the model and require that nothing inferred is contradicted."""
    found = agreement(model, observe(model.to_proto(), feed))
    assert found.wrong == []
    return found
