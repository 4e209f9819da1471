"""Finds the weights of a model: what every pass that changes them asks first."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from graphopt.graph import Constant, Function, constant_value, enclosing, is_graph_output, producer, uses
from graphopt.graph.labels import node_label
from graphopt.graph.weights import SparseWeight

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator

    from numpy.typing import NDArray

    from graphopt.graph import Graph, Model, Node, Tensor

_OPERATORS = {"Conv", "ConvTranspose", "Gemm", "MatMul"}
_RECURRENT = {"LSTM", "GRU", "RNN"}
_STANDARD = {None, "", "ai.onnx"}
_FLOATS = {"float16", "float32", "float64", "bfloat16"}


@dataclass(frozen=True, slots=True)
class Refusal:
    """A layer whose weight must stay as it is, and why: a sentence for the owner of the model."""

    node: Node
    reason: str


@dataclass(frozen=True, slots=True)
class Layer:
    """One weight that can be changed.

    Attributes:
        node: The first node that uses it.
        nodes: All nodes that use it, the first one first.
        index: Which input of ``node`` it is.
        weight: The initializer, or the output of a Constant node.
        scope: The graph that ``node`` lies in.
    """

    node: Node
    nodes: tuple[Node, ...]
    index: int
    weight: Tensor
    scope: Graph

    @property
    def row_axis(self) -> int:
        """The axis of the weight that counts output rows (of one group, for ConvTranspose)."""
        if self.node.op == "Conv":
            return 0
        if self.node.op == "ConvTranspose" or self.node.op in _RECURRENT:
            return 1
        if self.node.op == "Gemm":
            return 0 if self.node.attrs.get("transB", 0) else 1
        rank = len(self.weight.shape or ())
        return rank - 1 if self.index == 1 else rank - 2

    def array(self) -> NDArray[Any]:
        """Return the values, read-only."""
        value = constant_value(self.weight)
        assert value is not None
        return value

    def per_row(self, values: NDArray[np.floating]) -> NDArray[np.floating]:
        """Return one number per output row in a shape that broadcasts to the weight."""
        shape = list(self.array().shape)
        groups = int(self.node.attrs.get("group", 1)) if self.node.op == "ConvTranspose" else 1
        if groups > 1:
            inputs = shape[0] // groups
            return np.repeat(values.reshape(groups, -1), inputs, axis=0).reshape(shape[0], -1, *[1] * (len(shape) - 2))
        wanted = [1] * len(shape)
        wanted[self.row_axis] = -1
        return values.reshape(wanted)

    @property
    def rows(self) -> int:
        """Number of output rows over all groups."""
        groups = int(self.node.attrs.get("group", 1)) if self.node.op == "ConvTranspose" else 1
        return int(self.array().shape[self.row_axis]) * groups


def find_layers(
    model: Model, *, keep: Collection[str] = (), depthwise: bool = False, recurrent: bool = False
) -> Iterator[Layer | Refusal]:
    """Yield every weight that can be changed once, and a refusal for every layer whose weight cannot.

    Args:
        model: The model; weights in the bodies of If, Loop and Scan count too.
        keep: Names of nodes whose weights stay as they are.
        depthwise: Take depthwise convolutions too.
        recurrent: Take the input and recurrent weights of LSTM, GRU and RNN too.
    """
    seen: set[Tensor] = set()
    for graph, node in model.walk():
        if node.domain not in _STANDARD:
            continue
        if node.op in _RECURRENT and not recurrent:
            yield Refusal(node, f"the weights of {node.op} are not pruned: errors add up from step to step")
            continue
        if node.op not in _OPERATORS and node.op not in _RECURRENT:
            continue
        indices = weight_indices(node)
        if not indices:
            yield Refusal(node, _no_weight(node))
        for index in indices:
            weight = node.inputs[index]
            if weight in seen:
                continue
            seen.add(weight)
            consumers = tuple(dict.fromkeys((node, *(use.node for use in uses(weight)))))
            reason = _refusal(node, weight, consumers, graph, keep, depthwise=depthwise)
            yield Refusal(node, reason) if reason else Layer(node, consumers, index, weight, graph)


def weight_indices(node: Node) -> list[int]:
    """Return which inputs of a layer's node are its weights: the constant ones, where not all are constant."""
    if node.op in _RECURRENT:
        return [index for index in (1, 2) if len(node.inputs) > index and _is_constant(node.inputs[index])]
    if node.op != "MatMul":
        return [1] if len(node.inputs) > 1 and _is_constant(node.inputs[1]) else []
    constant = [index for index, tensor in enumerate(node.inputs[:2]) if _is_constant(tensor)]
    return constant if len(constant) == 1 else []


def _is_constant(tensor: Tensor) -> bool:
    if isinstance(tensor, Constant):
        return True
    made = producer(tensor)
    return made is not None and made.op == "Constant" and made.domain in _STANDARD


def _no_weight(node: Node) -> str:
    if len(node.inputs) < 2:
        return "it has no second input"
    makers = [producer(tensor) for tensor in node.inputs[:2]]
    if any(maker is not None and maker.op == "DequantizeLinear" for maker in makers):
        return "its weight is quantized already: prune before quantizing"
    if node.op == "MatMul":
        return "it has no weight: " + (
            "both inputs are constant" if all(map(_is_constant, node.inputs[:2])) else "both inputs are computed"
        )
    maker = producer(node.inputs[1])
    source = f"computed by {maker.op} '{maker.name}'" if maker is not None else "fed from outside"
    return f"its weight is not constant but {source}; fold-constants makes it so where that can be"


def _refusal(
    node: Node, weight: Tensor, consumers: tuple[Node, ...], graph: Graph, keep: Collection[str], *, depthwise: bool
) -> str:
    """Return why a weight stays as it is, or nothing."""
    kept = next((label for label in map(node_label, consumers) if label in keep), None)
    if kept is not None:
        shared = f"its weight is shared with '{kept}', which is to be kept"
        return "it is to be kept" if kept == node_label(node) else shared
    other = next((each for each in consumers if not _uses_as_weight(each, weight)), None)
    if other is not None:
        return f"its weight is also read by {other.op} '{other.name}'"
    if is_graph_output(weight):
        return f"its weight '{weight.name}' is an output of the graph"
    if any(isinstance(scope, Function) for scope in enclosing(graph)):
        return "it lies in a function of the model, which several places may call"
    if isinstance(weight, Constant) and isinstance(weight.weight, SparseWeight):
        return f"its weight '{weight.name}' is stored sparse already"
    value = constant_value(weight)
    if value is None:
        return f"its weight '{weight.name}' is also an input of the graph, so callers may replace it"
    if value.dtype.name not in _FLOATS:
        return f"its weight is {value.dtype.name}, not a float"
    if value.ndim < 2 or value.size == 0:
        return f"its weight has the shape {list(value.shape)}"
    convolution = node.op in {"Conv", "ConvTranspose"}
    if not depthwise and convolution and value.shape[1] == 1 and int(node.attrs.get("group", 1)) > 1:
        return "it is depthwise: few weights, none redundant; the option depthwise takes them"
    if not np.isfinite(value).all():
        return f"its weight '{weight.name}' holds NaN or infinite values"
    return ""


def _uses_as_weight(node: Node, weight: Tensor) -> bool:
    if node.domain not in _STANDARD or node.op not in {*_OPERATORS, *_RECURRENT}:
        return False
    places = [index for index, each in enumerate(node.inputs) if each is weight]
    return len(places) == 1 and places[0] in weight_indices(node)
