"""``Graph.layer``: the way code for graphsurgeon appends nodes."""

from __future__ import annotations

import numbers
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_graphsurgeon as gs

from graphopt.errors import GraphError
from graphopt.graph.nodes import Node
from graphopt.graph.tensors import Constant, Variable

if TYPE_CHECKING:
    from graphopt.graph.edges import Edges
    from graphopt.graph.graphs import Graph


def append_layer(graph: Graph, inputs: list[Any], outputs: list[Any], *args: Any, **kwargs: Any) -> Edges:
    """Append a node and make the tensors it needs; see Graph.layer.

    Raises:
        GraphError: An input or output is nothing a tensor can be made of.
    """
    taken = {t.name for node in graph.nodes for t in (*node.inputs, *node.outputs)}
    taken.update(t.name for t in (*graph.inputs, *graph.outputs, *graph.initializers))
    tensors = [_tensor(graph, item, taken) for item in inputs]
    results = [_tensor(graph, item, taken) for item in outputs]
    if "name" not in kwargs:
        kwargs["name"] = _new_name(graph, "onnx_graphsurgeon_node", {node.name for node in graph.nodes})
    kwargs.update(inputs=tensors, outputs=results)
    node = Node(*args, **kwargs)
    graph.nodes.append(node)
    return node.outputs


def _tensor(graph: Graph, item: Any, taken: set[str]) -> Any:
    if isinstance(item, gs.Tensor):
        tensor = item
    elif isinstance(item, str):
        tensor = Variable(_new_name(graph, item, taken))
    elif isinstance(item, np.ndarray):
        tensor = Constant(_new_name(graph, "onnx_graphsurgeon_constant", taken), item)
    elif isinstance(item, list | tuple | numbers.Number):
        items = item if isinstance(item, list | tuple) else [item]
        dtype = np.float32 if any(isinstance(x, float) for x in items) else np.int64
        tensor = Constant(_new_name(graph, "onnx_graphsurgeon_lst_constant", taken), np.array(item, dtype))
    else:
        raise GraphError(
            f"Graph.layer was given a {type(item).__name__}",
            where=f"graph '{graph.name}'",
            must="It takes tensors, strings, arrays and numbers",
        )
    taken.add(tensor.name)
    return tensor


def _new_name(graph: Graph, stem: str, taken: set[str]) -> str:
    name = stem
    while name in taken or name == stem:
        name = f"{stem}_{graph.name_idx}"
        graph.name_idx += 1
    return name
