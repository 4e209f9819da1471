"""What differs between two models: interface, operators, nodes, weights; by names, without running anything."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from graphopt.graph.attributes import RawAttribute
from graphopt.graph.graphs import Graph, node_subgraphs
from graphopt.graph.tensors import Constant

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from graphopt.graph.model import Model
    from graphopt.graph.nodes import Node
    from graphopt.graph.tensors import Tensor


@dataclass(frozen=True, slots=True)
class Change:
    """Something that is in one model only, or is another in the second.

    Attributes:
        name: Its name, with the path of the body or function it lies in.
        before: What it is in the first model; empty where it is not there.
        after: What it is in the second model; empty where it is not there.
    """

    name: str
    before: str
    after: str


@dataclass(slots=True)
class Difference:
    """What differs between two models.

    Attributes:
        properties: Versions of IR and operators, metadata.
        interface: Inputs and outputs, with their types.
        operators: Number of nodes by operator, before and after, over all scopes; all operators.
        nodes: Nodes by name, or by first output where they have none.
        weights: Initializers by name.
        weight_bytes: Bytes of all initializers, before and after.
    """

    properties: list[Change] = field(default_factory=list)
    interface: list[Change] = field(default_factory=list)
    operators: dict[str, tuple[int, int]] = field(default_factory=dict)
    nodes: list[Change] = field(default_factory=list)
    weights: list[Change] = field(default_factory=list)
    weight_bytes: tuple[int, int] = (0, 0)

    @property
    def equal(self) -> bool:
        """Whether nothing differs."""
        return not (self.properties or self.interface or self.nodes or self.weights)


def difference(first: Model, second: Model) -> Difference:
    """Compare two models by names.

    Weights of equal names are compared by value; two of several GB are read once, one pair at a time.

    Args:
        first: The model before.
        second: The model after.
    """
    counts = [Counter(_operator(node) for _, node in model.walk()) for model in (first, second)]
    operators = {op: (counts[0][op], counts[1][op]) for op in sorted(counts[0].keys() | counts[1].keys())}
    weights = [dict(_weights(model)) for model in (first, second)]
    return Difference(
        _changes(_properties(first), _properties(second)),
        _changes(_interface(first), _interface(second)),
        operators,
        _changes(dict(_nodes(first)), dict(_nodes(second))),
        list(_weight_changes(*weights)),
        (sum(c.nbytes for c in weights[0].values()), sum(c.nbytes for c in weights[1].values())),
    )


def _changes(before: Mapping[str, str], after: Mapping[str, str]) -> list[Change]:
    names = dict.fromkeys((*before, *after))
    return [
        Change(name, before.get(name, ""), after.get(name, "")) for name in names if before.get(name) != after.get(name)
    ]


def _properties(model: Model) -> dict[str, str]:
    found = {"IR version": str(model.ir_version)}
    found |= {f"operators of {domain or 'ai.onnx'}": str(version) for domain, version in model.opset_imports.items()}
    found |= {f"metadata {key}": value for key, value in model.metadata.items()}
    return found


def _interface(model: Model) -> dict[str, str]:
    graph = model.graph
    found = {f"input {tensor.name}": _type(tensor) for tensor in graph.inputs}
    found |= {f"overridable input {c.name}": _type(c) for c in graph.initializer_inputs if graph.is_overridable(c)}
    found |= {f"output {tensor.name}": _type(tensor) for tensor in graph.outputs}
    return found


def _type(tensor: Tensor) -> str:
    shape = "of unknown rank" if tensor.shape is None else str([None if s is None else s for s in tensor.shape])
    return f"{tensor.dtype if tensor.dtype is not None else 'unknown type'} {shape}"


def _scopes(model: Model) -> Iterator[tuple[str, Graph]]:
    """Yield every graph with the path that its names are given with."""
    stack: list[tuple[str, Graph]] = [("", model.graph)]
    stack += [(f"{function.domain}::{function.name}{function.overload}/", function) for function in model.functions]
    while stack:
        path, graph = stack.pop()
        yield path, graph
        for node in graph.nodes:
            stack += [(f"{path}{_label(node)}.{key}/", body) for key, body in node_subgraphs(node)]


def _label(node: Node) -> str:
    return node.name or next((str(tensor.name) for tensor in node.outputs if tensor.name), node.op)


def _operator(node: Node) -> str:
    return f"{node.domain}::{node.op}" if node.domain not in {None, "", "ai.onnx"} else str(node.op)


def _nodes(model: Model) -> Iterator[tuple[str, str]]:
    seen: Counter[str] = Counter()
    for path, graph in _scopes(model):
        for node in graph.nodes:
            name = f"{path}{_label(node)}"
            seen[name] += 1
            yield (name if seen[name] == 1 else f"{name} ({seen[name]})"), _described(node)


def _described(node: Node) -> str:
    attributes = ", ".join(f"{name}={_value(value)}" for name, value in sorted(node.attrs.items()))
    inputs = ", ".join(str(tensor.name) for tensor in node.inputs)
    outputs = ", ".join(str(tensor.name) for tensor in node.outputs)
    return f"{_operator(node)}{f'<{attributes}>' if attributes else ''}({inputs}) -> {outputs}"


def _value(value: Any) -> str:
    if isinstance(value, Graph):
        return "{...}"
    if isinstance(value, Constant):
        content = f" {value.array().tolist()}" if value.nbytes <= 64 else f", {value.nbytes} bytes"
        return f"{value.dtype} {list(value.shape)}{content}"
    if isinstance(value, RawAttribute):
        return f"<{type(value).__name__}>"
    return str(value)


def _weights(model: Model) -> Iterator[tuple[str, Constant]]:
    for path, graph in _scopes(model):
        for constant in graph.initializers:
            yield f"{path}{constant.name}", constant


def _weight_changes(before: Mapping[str, Constant], after: Mapping[str, Constant]) -> Iterator[Change]:
    for name in dict.fromkeys((*before, *after)):
        old, new = before.get(name), after.get(name)
        if old is None or new is None:
            yield Change(name, "" if old is None else _stored(old), "" if new is None else _stored(new))
        elif old.onnx_dtype != new.onnx_dtype or old.shape != new.shape:
            yield Change(name, _stored(old), _stored(new))
        elif old.weight is not new.weight:
            distance = _distance(old.array(), new.array())
            if distance is not None:
                yield Change(name, _stored(old), f"other values, {distance}")


def _stored(constant: Constant) -> str:
    return f"{constant.dtype} {list(constant.shape)}, {constant.nbytes} bytes"


def _distance(old: np.ndarray[Any, Any], new: np.ndarray[Any, Any]) -> str | None:
    """Return how far two arrays of one type and shape are apart; None where they are equal bit for bit."""
    if object in {old.dtype, new.dtype}:
        return None if old.tolist() == new.tolist() else "strings differ"
    if old.tobytes() == new.tobytes():
        return None
    if old.dtype.kind in "bc":
        return f"{int(np.count_nonzero(old != new))} elements differ"
    gap = np.abs(old.astype(np.float64) - new.astype(np.float64))
    return f"largest difference {np.nanmax(gap) if not np.isnan(gap).all() else np.nan:.3g}"
