"""Makes a failing model small: outputs, nodes and inputs go as long as it fails in the same way."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
from onnx import helper

from graphopt.errors import GraphoptError
from graphopt.runtime import run
from graphopt.verify.reference import open_unoptimized

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

Feeds = list[dict[str, Any]]


def reduce_model(
    model: onnx.ModelProto, feeds: Sequence[Mapping[str, Any]], fails: Callable[[onnx.ModelProto, Feeds], bool]
) -> tuple[onnx.ModelProto, Feeds]:
    """Return a smaller model that still fails, with its feeds.

    Args:
        model: A model that fails.
        feeds: Feeds of it.
        fails: Tells whether a model fails in the way that matters; it must not raise.
    """
    kept: Feeds = [dict(feed) for feed in feeds]
    for each in _single_feeds(kept):
        if fails(model, each):
            kept = each
            break
    changed = True
    while changed:
        changed = False
        for step in (_fewer_outputs, _cut_behind, _cut_before, _fewer_nodes_in_line):
            model, kept, reduced = step(model, kept, fails)
            changed |= reduced
    return model, kept


def _single_feeds(feeds: Feeds) -> list[Feeds]:
    return [[feed] for feed in feeds] if len(feeds) > 1 else []


def _fewer_outputs(model: onnx.ModelProto, feeds: Feeds, fails: Any) -> tuple[onnx.ModelProto, Feeds, bool]:
    """Keep one output."""
    if len(model.graph.output) < 2:
        return model, feeds, False
    for info in model.graph.output:
        smaller = _with_outputs(model, [info])
        if fails(smaller, feeds):
            return smaller, feeds, True
    return model, feeds, False


def _cut_behind(model: onnx.ModelProto, feeds: Feeds, fails: Any) -> tuple[onnx.ModelProto, Feeds, bool]:
    """Make an inner tensor the only output."""
    known = _tensors(model, feeds)
    last = {value.name for value in model.graph.output}
    for node in model.graph.node:
        for name in node.output:
            if name not in known or (name in last and len(last) == 1):
                continue
            smaller = _with_outputs(model, [_info(name, [each[name] for each in known[name]])])
            if len(smaller.graph.node) < len(model.graph.node) and fails(smaller, feeds):
                return smaller, feeds, True
    return model, feeds, False


def _cut_before(model: onnx.ModelProto, feeds: Feeds, fails: Any) -> tuple[onnx.ModelProto, Feeds, bool]:
    """Make an inner tensor an input."""
    known = _tensors(model, feeds)
    public = {value.name for value in model.graph.output}
    for node in reversed(model.graph.node):
        if len(node.output) != 1 or node.output[0] not in known or node.output[0] in public or not node.input:
            continue
        name = node.output[0]
        values = [each[name] for each in known[name]]
        smaller = onnx.ModelProto()
        smaller.CopyFrom(model)
        smaller.graph.node.remove(node)
        smaller.graph.input.append(_info(name, values))
        smaller = _with_outputs(smaller, list(smaller.graph.output))
        more = [{**feed, name: value} for feed, value in zip(feeds, values, strict=True)]
        if fails(smaller, more):
            return smaller, more, True
    return model, feeds, False


def _fewer_nodes_in_line(model: onnx.ModelProto, feeds: Feeds, fails: Any) -> tuple[onnx.ModelProto, Feeds, bool]:
    """Let readers of a node read its input instead."""
    public = {value.name for value in model.graph.output}
    for index, node in enumerate(model.graph.node):
        if len(node.output) != 1 or node.output[0] in public:
            continue
        for source in dict.fromkeys(name for name in node.input if name):
            smaller = onnx.ModelProto()
            smaller.CopyFrom(model)
            for reader in smaller.graph.node:
                reader.input[:] = [source if name == node.output[0] else name for name in reader.input]
            del smaller.graph.node[index]
            smaller = _with_outputs(smaller, list(smaller.graph.output))
            for value in smaller.graph.output:
                rank = len(value.type.tensor_type.shape.dim)
                info = helper.make_tensor_value_info(value.name, value.type.tensor_type.elem_type, [None] * rank)
                value.CopyFrom(info)
            if fails(smaller, feeds):
                return smaller, feeds, True
    return model, feeds, False


def _with_outputs(model: onnx.ModelProto, outputs: list[onnx.ValueInfoProto]) -> onnx.ModelProto:
    """Return a copy with these outputs and only what they need; all annotations go."""
    smaller = onnx.ModelProto()
    smaller.CopyFrom(model)
    kept = [onnx.ValueInfoProto.FromString(info.SerializeToString()) for info in outputs]
    del smaller.graph.output[:]
    smaller.graph.output.extend(kept)
    del smaller.graph.value_info[:]
    needed = {info.name for info in kept}
    nodes = []
    for node in reversed(smaller.graph.node):
        if needed.intersection(node.output):
            nodes.append(node)
            needed.update(node.input)
            needed.update(_inner_names(node))
    nodes = [onnx.NodeProto.FromString(node.SerializeToString()) for node in reversed(nodes)]
    del smaller.graph.node[:]
    smaller.graph.node.extend(nodes)
    for field in (smaller.graph.initializer, smaller.graph.input):
        used = [each.SerializeToString() for each in field if each.name in needed]
        kind = onnx.TensorProto if field is smaller.graph.initializer else onnx.ValueInfoProto
        del field[:]
        field.extend(kind.FromString(each) for each in used)
    called = {node.op_type for node in smaller.graph.node}
    functions = [each.SerializeToString() for each in smaller.functions if each.name in called]
    del smaller.functions[:]
    smaller.functions.extend(onnx.FunctionProto.FromString(each) for each in functions)
    return smaller


def _inner_names(node: onnx.NodeProto) -> set[str]:
    found: set[str] = set()
    for attribute in node.attribute:
        for graph in (*attribute.graphs, *([attribute.g] if attribute.HasField("g") else [])):
            found.update(value.name for value in graph.output)
            for inner in graph.node:
                found.update(inner.input)
                found |= _inner_names(inner)
    return found


def _tensors(model: onnx.ModelProto, feeds: Feeds) -> dict[str, list[dict[str, Any]]]:
    """Return, per inner tensor, what it holds on each feed; nothing where ONNX Runtime does not run the model."""
    names = [name for node in model.graph.node for name in node.output if name]
    open_model = onnx.ModelProto()
    open_model.CopyFrom(model)
    declared = {value.name for value in model.graph.output}
    open_model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names if name not in declared)
    try:
        running = open_unoptimized(open_model.SerializeToString())
        found = [run(running, feed) for feed in feeds]
    except GraphoptError:
        return {}
    return {name: found for name in names if all(isinstance(each[name], np.ndarray) for each in found)}


def _info(name: str, values: Sequence[np.ndarray]) -> onnx.ValueInfoProto:
    shape = [None] * values[0].ndim
    if len({value.ndim for value in values}) > 1:
        return onnx.ValueInfoProto(name=name)
    return helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(values[0].dtype), shape)
