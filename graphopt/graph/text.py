"""Graphs as text: one line per node, weights by shape and digest, the same in every run."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_graphsurgeon as gs

from graphopt.graph.graphs import Function, Graph, node_subgraphs
from graphopt.graph.model import Model
from graphopt.graph.tensors import Constant, Tensor

if TYPE_CHECKING:
    from collections.abc import Iterator

    from graphopt.graph.nodes import Node

_SHORT = 8  # values shown in full


def dump_text(item: Model | Graph) -> str:
    """Return a model or a graph as text, for people, golden files and diffs.

    Args:
        item: What to print. Initializers are shown by their values if there are at most eight, else by a digest.
    """
    if isinstance(item, Model):
        lines = [f"model ir_version={item.ir_version} " + _imports(item.opset_imports)]
        for root in item.roots():
            lines.extend(_graph(root, 0))
    else:
        lines = list(_graph(item, 0))
    return "\n".join(lines) + "\n"


def _imports(imports: dict[str, int]) -> str:
    return "opset " + ", ".join(f"{domain or 'ai.onnx'}={version}" for domain, version in imports.items())


def _graph(graph: Graph, depth: int) -> Iterator[str]:
    pad = "  " * depth
    ins = ", ".join(_typed(t) for t in graph.inputs)
    outs = ", ".join(_typed(t) for t in graph.outputs)
    if isinstance(graph, Function):
        head = f"function {graph.domain}::{graph.name}" + (f":{graph.overload}" if graph.overload else "")
        yield f"{pad}{head} {_imports(graph.imports)}"
        yield f"{pad}({ins}) -> ({outs}) {{"
    else:
        yield f"{pad}graph {graph.name} ({ins}) -> ({outs}) {{"
    for constant in graph.initializers:
        mark = " overridable" if graph.is_overridable(constant) else ""
        yield f"{pad}  {_typed(constant)}{mark} = {_values(constant)}"
    for node in graph.nodes:
        yield from _node(node, depth + 1)
    yield f"{pad}}}"


def _node(node: Node, depth: int) -> Iterator[str]:
    pad = "  " * depth
    outs = ", ".join(_typed(t) for t in node.outputs)
    ins = ", ".join(t.name or "_" for t in node.inputs)
    bodies = dict(node_subgraphs(node))
    shown = {key: value for key, value in node.attrs.items() if key not in bodies}
    attrs = ", ".join(f"{key}={_attribute(shown[key])}" for key in sorted(shown))
    op = f"{node.domain}::{node.op}" if node.domain else node.op
    label = f"  # {node.name}" if node.name else ""
    yield f"{pad}{outs} = {op}({ins})" + (f" <{attrs}>" if attrs else "") + label
    for key in sorted(bodies):
        yield f"{pad}  {key}:"
        yield from _graph(bodies[key], depth + 2)


def _typed(tensor: Tensor) -> str:
    if not tensor.name:
        return "_"
    kind = getattr(tensor, "type", "tensor_type")
    if kind != "tensor_type":
        return f"{tensor.name}: {kind}"
    dtype = tensor.dtype
    if dtype is None:
        return tensor.name
    name = "string" if dtype == np.dtype(object) else str(dtype)
    shape = "" if tensor.shape is None else "[" + ",".join("?" if d is None else str(d) for d in tensor.shape) + "]"
    return f"{tensor.name}: {name}{shape}"


def _values(constant: Constant) -> str:
    array = constant.array()
    if array.size <= _SHORT:
        return str(array.tolist())
    strings = array.dtype == np.dtype(object)
    data = repr(array.tolist()).encode() if strings else np.ascontiguousarray(array).tobytes()
    return f"sha256:{hashlib.sha256(data).hexdigest()[:16]}"


def _attribute(value: Any) -> str:
    if isinstance(value, Constant):
        return f"{value.dtype}{list(value.shape)} {_values(value)}"
    if isinstance(value, gs.Node.AttributeRef):
        return f"@{value.name}"
    if isinstance(value, list) and len(value) > 4 * _SHORT:
        return f"[{len(value)} values]"
    return repr(value)
