"""Where a walk over the layers of a model stops: each layer beside the one it was in the dense model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from graphopt.analysis.layer_statistics import Bias, Form, Layer, Reading, Refusal, find_bias, form_of, producers
from graphopt.graph import Constant, constant_value

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from numpy.typing import NDArray

    from graphopt.graph import Model, Node

LARGEST_COLUMNS = 8192
"""Statistics of wider layers do not fit memory: two matrices of columns squared for the fit and two to judge it."""


@dataclass(frozen=True, slots=True, eq=False)
class Stop:
    """One layer of a model and its counterpart in the dense model.

    Attributes:
        layer: The layer as it is now.
        dense: The weight that its outputs are aimed at: that of the dense model, else its own.
        form: How it is read as matrices and rows.
        bias: Its bias, or None where it has no place for one.
        dense_bias: The bias of the dense model, [rows].
        reading: What it reads, or None where that cannot be observed.
        unobserved: Why it cannot.
    """

    layer: Layer
    dense: NDArray[Any]
    form: Form
    bias: Bias | None
    dense_bias: NDArray[np.float64]
    reading: Reading | None
    unobserved: str = ""

    @property
    def key(self) -> str:
        """A name of its own among the layers of the model."""
        return str(self.layer.node.outputs[0].name)


def find_stops(
    model: Model, dense: Model, layers: Iterable[Layer | Refusal], *, observed: bool, strict: bool
) -> Iterator[Stop | Refusal]:
    """Yield a stop per layer, in the order given, and a refusal for each that has none.

    Args:
        model: The model as it is now.
        dense: The model before compression.
        layers: The layers, front to back.
        observed: Whether there is data to observe them with.
        strict: Refuse layers that the dense model does not have, and those of forms that no matrix describes.
    """
    origin = producers(dense)
    computed = {tensor.name for node in model.graph.nodes for tensor in node.outputs}
    computed |= {tensor.name for tensor in model.graph.inputs}
    for found in layers:
        yield found if isinstance(found, Refusal) else _stop(found, model, origin, computed, observed, strict)


def _stop(
    layer: Layer, model: Model, origin: dict[str, Node], computed: set[str], observed: bool, strict: bool
) -> Stop | Refusal:
    node, array = layer.node, layer.array()
    unobserved = "" if observed else "there is no calibration data"
    if layer.scope is not model.graph:
        unobserved = "it lies in a body, whose activations cannot be observed"
    elif len(layer.nodes) > 1:
        unobserved = f"its weight is shared by {len(layer.nodes)} nodes"
    before = origin.get(node.outputs[0].name) if not unobserved else None
    tensor = node.inputs[0 if node.op != "MatMul" else 1 - layer.index]
    if not unobserved and (tensor.name not in computed or isinstance(tensor, Constant)):
        unobserved = "what it reads cannot be observed"
    weight = None
    if before is not None and before.op == node.op and len(before.inputs) > layer.index:
        weight = constant_value(before.inputs[layer.index])
    known = not unobserved and weight is not None and weight.shape == array.shape
    if strict and not known:
        return Refusal(node, unobserved or "the model before pruning has no such layer")
    weight = weight if known and weight is not None else array
    form = form_of(node, layer.index, weight)
    if isinstance(form, str):
        return Refusal(node, form)
    matrices = form.matrices(weight)
    columns, rows = matrices[0].shape[1], sum(map(len, matrices))
    if columns > LARGEST_COLUMNS and not unobserved:
        unobserved = f"it has {columns} columns; its statistics would not fit memory"
    bias, dense_bias = _biases(node, before if known else node, rows)
    reading = None
    if not unobserved:
        reading = Reading(node.outputs[0].name, tensor.name, form, columns, paired=known)
    return Stop(layer, weight, form, bias, dense_bias, reading, unobserved)


def _biases(node: Node, before: Node | None, rows: int) -> tuple[Bias | None, NDArray[np.float64]]:
    """Return the bias of a layer and the values it has in the dense model."""
    bias = find_bias(node, rows)
    known = None if before is None else find_bias(before, rows)
    if known is None:
        return None, np.zeros(rows)
    return bias, known.values(rows)


def stages(stops: Sequence[Stop]) -> list[list[Stop]]:
    """Divide the stops into steps, front to back: layers that read the same tensor are solved together.

    Others are not: a layer fitted to inputs that change afterwards would repair the same loss twice.
    """
    together: list[list[Stop]] = []
    for stop in stops:
        if stop.reading is None:
            continue
        last = together[-1][0].reading if together else None
        if last is not None and last.tensor == stop.reading.tensor:
            together[-1].append(stop)
        else:
            together.append([stop])
    return together
