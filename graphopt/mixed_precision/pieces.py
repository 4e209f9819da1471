"""Takes single units out of a model, as models of their own that can be quantized and timed."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from graphopt.analysis.tensor_grid import is_conversion
from graphopt.graph import Variable, producer, uses
from graphopt.runtime import run, session, timings

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from graphopt.graph import Model
    from graphopt.mixed_precision.units import Unit

PROBED_TENSORS = 16
"""Tensors fetched together while shapes are looked at."""

SECONDS_PER_PIECE = 0.08
"""Time for all timed runs of the forms of one unit."""

LEAST_RUNS, MOST_RUNS = 15, 200

ROUNDS = 3
"""Rounds over the forms of a unit; the median of the best one counts, since other programs disturb."""


@dataclass(slots=True)
class Pieces:
    """Units of one model, cut out.

    Args:
        model: The model; it is not edited.
        feed: One complete feed, a single sample.
        threads: Intra-op threads.
    """

    model: Model
    feed: Mapping[str, NDArray[Any]]
    threads: int = 1
    values: dict[str, NDArray[Any]] = field(default_factory=dict)
    _seconds: dict[tuple[Any, ...], list[float]] = field(default_factory=dict)
    _idle: float | None = None

    def observe(self, names: Sequence[str]) -> None:
        """Remember the values of tensors on the feed."""
        copy = self.model.copy()
        made = {tensor.name: tensor for node in copy.graph.nodes for tensor in node.outputs}
        wanted = [name for name in dict.fromkeys(names) if name in made]
        present = {tensor.name for tensor in copy.graph.outputs}
        for name in wanted:
            if name not in present:
                made[name].dtype = made[name].dtype or np.dtype(np.float32)
                copy.graph.outputs.append(made[name])
        runner = session(copy, threads=self.threads)
        for place in range(0, len(wanted), PROBED_TENSORS):
            self.values |= run(runner, dict(self.feed), wanted[place : place + PROBED_TENSORS])
        self.values |= {name: np.asarray(value) for name, value in self.feed.items()}

    def cut(self, unit: Unit) -> tuple[Model, dict[str, NDArray[Any]]]:
        """Return a unit as a model of its own, with the feed that it got in the whole model."""
        copy = self.model.copy()
        made = {tensor.name: tensor for node in copy.graph.nodes for tensor in node.outputs}
        made |= {tensor.name: tensor for tensor in copy.graph.inputs}
        inputs = [tensor.name for tensor in unit.inputs]
        copy.graph.inputs.clear()
        for name in inputs:
            value = self.values[name]
            stand_in = Variable(f"{name}_given", value.dtype, list(value.shape))
            for use in list(uses(made[name])):
                use.node.inputs[use.index] = stand_in
            copy.graph.inputs.append(stand_in)
        copy.graph.outputs[:] = [made[tensor.name] for tensor in unit.outputs]
        for tensor in copy.graph.outputs:
            tensor.dtype = tensor.dtype or np.dtype(np.float32)
        copy.graph.cleanup(remove_unused_graph_inputs=True)
        return copy, {f"{name}_given": self.values[name] for name in inputs}

    def seconds(self, forms: Sequence[Model], feed: Mapping[str, NDArray[Any]], key: tuple[Any, ...]) -> list[float]:
        """Return the time of each form of a unit, run in turn, less what a run costs that computes nothing.

        Args:
            forms: Models with the same inputs, those with integer inputs aside.
            feed: For the float one; integers are made of it.
            key: What is equal for units that take equally long.
        """
        if key in self._seconds:
            return self._seconds[key]
        runners = [session(form, threads=self.threads) for form in forms]
        feeds = [integer_feed(form, feed) for form in forms]
        found = [math.inf] * len(runners)
        for _ in range(ROUNDS):
            for place, (runner, fed) in enumerate(zip(runners, feeds, strict=True)):
                once = min(timings([runner], fed, runs=3, warmup=2)[0]) / 1e3
                share = SECONDS_PER_PIECE / len(forms) / ROUNDS
                runs = min(MOST_RUNS, max(LEAST_RUNS, int(share / max(once, 1e-6))))
                median = float(np.median(timings([runner], fed, runs=runs)[0])) / 1e3
                found[place] = min(found[place], median)
        self._seconds[key] = [max(each - self.idle, 0.0) for each in found]
        return self._seconds[key]

    @property
    def idle(self) -> float:
        """Seconds of a run that computes nothing."""
        if self._idle is None:
            from onnx import TensorProto, helper

            info = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in "xy"]
            graph = helper.make_graph([helper.make_node("Identity", ["x"], ["y"])], "idle", info[:1], info[1:])
            made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
            runner = session(made.SerializeToString(), threads=self.threads)
            self._idle = float(np.median(timings([runner], {"x": np.zeros(1, np.float32)}, runs=MOST_RUNS)[0])) / 1e3
        return self._idle


def without_border(model: Model) -> Model:
    """Return a quantized unit that takes and gives integers: what rounds its inputs and restores its outputs goes."""
    copy = model.copy()
    graph = copy.graph
    for place, tensor in enumerate(list(graph.inputs)):
        readers = uses(tensor)
        if len(readers) == 1 and is_conversion(readers[0].node, "QuantizeLinear"):
            codes = readers[0].node.outputs[0]
            codes.inputs.clear()
            codes.dtype, codes.shape = np.dtype(np.uint8), tensor.shape
            graph.inputs[place] = codes
    for place, tensor in enumerate(list(graph.outputs)):
        node = producer(tensor)
        if node is not None and is_conversion(node, "DequantizeLinear") and producer(node.inputs[0]) is not None:
            codes = node.inputs[0]
            codes.dtype, codes.shape = np.dtype(np.uint8), tensor.shape
            graph.outputs[place] = codes
    graph.cleanup(remove_unused_graph_inputs=True)
    return copy


def integer_feed(model: Model, feed: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    """Return a feed for a unit that may take integers: any will do, time does not depend on them."""
    given = list(feed.values())
    found: dict[str, NDArray[Any]] = {}
    for place, tensor in enumerate(model.graph.inputs):
        value = feed.get(tensor.name)
        if value is None:
            value = np.full(given[place].shape, 130, np.uint8)
            value.reshape(-1)[::3] = 90
        found[tensor.name] = value
    return found
