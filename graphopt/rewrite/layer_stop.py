"""Where a walk over the layers of a model stops: each layer beside the one it was in the dense model."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from graphopt.analysis.layer_statistics import (
    Bias,
    Form,
    Layer,
    Reading,
    Refusal,
    find_bias,
    form_of,
    producers,
)
from graphopt.analysis.layer_statistics.form import use_of
from graphopt.analysis.layer_statistics.reading import computed_names, is_wide, layer_key, observable
from graphopt.graph import constant_value

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from numpy.typing import NDArray

    from graphopt.graph import Model, Node


@dataclass(frozen=True, slots=True, eq=False)
class Stop:
    """One layer of a model and its counterpart in the dense model.

    Attributes:
        layer: The layer as it is now.
        dense: The weight that its outputs are aimed at: that of the dense model, else its own.
        form: How it is read as matrices and rows.
        bias: Its bias, or None where it has no place for one of its own.
        dense_bias: The bias of the dense model, [rows].
        key: A name of its own among the layers of the model: that of its first output, where it has one weight.
        at: Name of the tensor at which the walk stops for it; empty where it cannot be observed.
        readings: What it reads there.
        ahead: What it reads further on, or shows only when it has run: further uses of the weight, states of a
            recurrent layer. They are observed before the walk begins.
        unobserved: Why it cannot be observed.
    """

    layer: Layer
    dense: NDArray[Any]
    form: Form
    bias: Bias | None
    dense_bias: NDArray[np.float64]
    key: str
    at: str = ""
    readings: tuple[Reading, ...] = ()
    ahead: tuple[Reading, ...] = ()
    unobserved: str = ""

    @property
    def reading(self) -> Reading | None:
        """The first thing it reads, or None where that cannot be observed."""
        return next(iter((*self.readings, *self.ahead)), None)

    @property
    def wide(self) -> bool:
        """Whether it has too many columns for matrices of them."""
        return is_wide(self.form.groups, self.form.columns(self.dense.shape))


@dataclass(slots=True)
class _Finder:
    """What is known about both models while stops are found."""

    model: Model
    observed: bool
    strict: bool
    origin: dict[str, Node]
    computed: set[str]
    keys: set[str] = field(default_factory=set)

    def stop(self, layer: Layer) -> Stop | Refusal:
        """Return the stop of a layer, or why it has none."""
        node, array = layer.node, layer.array()
        form = form_of(node, layer.index, array)
        if isinstance(form, str):
            return Refusal(node, form)
        found = observable(layer, form, self.model, self.computed) if self.observed else "there is no calibration data"
        before = [self._before(use, layer) for use in layer.nodes]
        dense = before[0] if isinstance(found, list) and None not in before else None
        if self.strict and (isinstance(found, str) or dense is None):
            return Refusal(node, found if isinstance(found, str) else "the model before pruning has no such layer")
        weight = array if dense is None else _weight(dense, layer)
        columns = form.columns(weight.shape)
        key = self._key(layer)
        bias, dense_bias = _biases(layer, node if dense is None else dense, weight.size // columns)
        stop = Stop(layer, weight, form, bias, dense_bias, key)
        if self.strict and stop.wide:
            return Refusal(node, f"it has {columns} columns; its statistics would not fit memory")
        if isinstance(found, str):
            return replace(stop, unobserved=found)
        at = node.inputs[1 - layer.index if node.op == "MatMul" else 0].name
        readings = [Reading(key, name, each, columns, paired=dense is not None, wide=stop.wide) for name, each in found]
        now = tuple(each for each in readings if each.tensor == at)
        return replace(stop, at=at, readings=now, ahead=tuple(each for each in readings if each.tensor != at))

    def _before(self, node: Node, layer: Layer) -> Node | None:
        """Return the node that a use of a weight was in the dense model, if it is the same there."""
        before = self.origin.get(next((tensor.name for tensor in node.outputs if tensor.name), ""))
        index = use_of(node, layer.weight)
        if before is None or before.op != node.op or len(before.inputs) <= index:
            return None
        weight = constant_value(before.inputs[index])
        return before if weight is not None and weight.shape == layer.array().shape else None

    def _key(self, layer: Layer) -> str:
        name = key = layer_key(layer)
        place = 2
        while key in self.keys:  # weights in bodies beside each other may have outputs of one name
            key = f"{name}/{place}"
            place += 1
        self.keys.add(key)
        return key


def find_stops(
    model: Model, dense: Model, layers: Iterable[Layer | Refusal], *, observed: bool, strict: bool
) -> Iterator[Stop | Refusal]:
    """Yield a stop per layer, in the order given, and a refusal for each that has none.

    Args:
        model: The model as it is now.
        dense: The model before compression.
        layers: The layers, front to back.
        observed: Whether there is data to observe them with.
        strict: Refuse layers that the dense model does not have, that cannot be observed or are too wide.
    """
    finder = _Finder(model, observed, strict, producers(dense), computed_names(model))
    for found in layers:
        yield found if isinstance(found, Refusal) else finder.stop(found)


def _weight(before: Node, layer: Layer) -> NDArray[Any]:
    weight = constant_value(before.inputs[layer.index])
    assert weight is not None
    return weight


def _biases(layer: Layer, before: Node, rows: int) -> tuple[Bias | None, NDArray[np.float64]]:
    """Return the bias of a layer and the values it has in the dense model."""
    bias = find_bias(layer.node, rows) if len(layer.nodes) == 1 else None
    known = find_bias(before, rows)
    if bias is None or known is None:
        return None, np.zeros(rows)
    return bias, known.values(rows)


def stages(stops: Sequence[Stop]) -> list[list[Stop]]:
    """Divide the stops into steps, front to back: layers that read the same tensor are solved together.

    Others are not: a layer fitted to inputs that change afterwards would repair the same loss twice. Stops that cannot
    be observed are left out.
    """
    together: list[list[Stop]] = []
    for stop in stops:
        if not stop.at:
            continue
        if together and together[-1][0].at == stop.at:
            together[-1].append(stop)
        else:
            together.append([stop])
    return together
