"""What the layers of a model read: which tensors, and how."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from graphopt.analysis.layer_statistics.form import form_of, inputs_of, use_of
from graphopt.analysis.layer_statistics.layers import Layer, find_layers
from graphopt.analysis.layer_statistics.moments import Reading
from graphopt.graph import constant_value
from graphopt.graph.labels import node_label

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from graphopt.analysis.layer_statistics.rows import Form
    from graphopt.graph import Model

LARGEST_COLUMNS = 5632
"""Matrices of more columns do not fit memory: three to fit on and three to judge by take 1.5 GB for so many."""


def is_wide(groups: int, columns: int) -> bool:
    """Tell whether matrices of a layer's columns do not fit memory."""
    return groups * columns**2 > LARGEST_COLUMNS**2


def layer_key(layer: Layer) -> str:
    """Return what a layer is called among those of a graph: its first output; the recurrent weight of a node apart."""
    name = next((str(tensor.name) for tensor in layer.node.outputs if tensor.name), "")
    return f"{name}/recurrent" if layer.index == 2 else name


def observable(layer: Layer, form: Form, model: Model, computed: set[str]) -> list[tuple[str, Form]] | str:
    """Return the tensors that all uses of a weight read, with how, or why they cannot be observed.

    Args:
        layer: The layer.
        form: How its first use reads.
        model: The model.
        computed: Its `computed_names`.
    """
    found: list[tuple[str, Form]] = []
    for node in layer.nodes:
        if node.graph is not model.graph:
            return "it lies in a body, whose activations cannot be observed"
        index = use_of(node, layer.weight)
        own = form if node is layer.node else form_of(node, index, layer.array())
        if isinstance(own, str) or own.layout != form.layout:
            return f"its weight is used in another way by {node.op} '{node.name}'"
        read = inputs_of(node, index, own)
        if isinstance(read, str):
            return read
        found += [(str(tensor.name), each) for tensor, each in read]
    missing = [name for name, _ in found if name not in computed]
    return f"'{missing[0]}', which it reads, is not computed in the main graph" if missing else found


def computed_names(model: Model) -> set[str]:
    """Return the names of all tensors of the main graph that are fed or computed."""
    made = {str(tensor.name) for node in model.graph.nodes for tensor in node.outputs if tensor.name}
    return made | {str(tensor.name) for tensor in model.graph.inputs}


def column_norms(form: Form, weight: NDArray[Any]) -> NDArray[np.float64]:
    """Return the norm of each column of each group's matrix, [groups * columns]."""
    return np.concatenate([np.sqrt(np.einsum("rc,rc->c", part, part)) for part in form.matrices(weight)])


def find_readings(model: Model) -> tuple[dict[str, list[Reading]], dict[str, NDArray[np.float64]], dict[str, str]]:
    """Return what every layer reads and its `column_norms`, by `layer_key`, and why others cannot be observed.

    Reasons are by the labels of nodes.
    """
    readings: dict[str, list[Reading]] = {}
    norms: dict[str, NDArray[np.float64]] = {}
    refused: dict[str, str] = {}
    computed = computed_names(model)
    for layer in find_layers(model, depthwise=True, recurrent=True):
        if not isinstance(layer, Layer):
            refused[node_label(layer.node)] = layer.reason
            continue
        array = layer.array()
        form = form_of(layer.node, layer.index, array)
        found = form if isinstance(form, str) else observable(layer, form, model, computed)
        if isinstance(form, str) or isinstance(found, str):
            refused[node_label(layer.node)] = str(found)
            continue
        columns = form.columns(array.shape)
        wide = is_wide(form.groups, columns)
        readings[layer_key(layer)] = [Reading("", name, each, columns, wide=wide) for name, each in found]
        norms[layer_key(layer)] = column_norms(form, array)
    return readings, norms, refused


def find_lookups(model: Model) -> dict[str, tuple[str, int]]:
    """Return the indices that each Gather of the main graph reads from constant rows, and how many rows there are."""
    computed = computed_names(model)
    found = {}
    for node in model.graph.nodes:
        if node.op != "Gather" or node.domain not in {None, "", "ai.onnx"} or int(node.attrs.get("axis", 0)) != 0:
            continue
        value = constant_value(node.inputs[0])
        if value is not None and value.ndim == 2 and len(value) and node.inputs[1].name in computed:
            found[str(node.outputs[0].name)] = (str(node.inputs[1].name), len(value))
    return found
