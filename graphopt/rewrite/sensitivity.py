"""What it costs to compress one layer alone: end to end, on the model's own outputs, everything else as it was.

A layer's error says little about the answer of the model: some errors are forgotten on the way to the outputs, others
grow. So a layer's candidates are put in an otherwise dense model one by one, and the outputs are compared. The model is
walked front to back; what lies before a layer is never computed again, and its weight is an input of the rest of the
model, so that one session serves all candidates.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from graphopt.analysis.layer_statistics import Batches, Segments, collect, stream
from graphopt.graph import Variable, constant_value, producer, uses
from graphopt.runtime import run, session
from graphopt.solve import least_squares
from graphopt.solve.threads import one_thread
from graphopt.verify.quality import CACHE_BYTES, Quality, quality_of
from graphopt.verify.tally import SQNR_CEILING_DB, Tally, kind_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from numpy.typing import NDArray

    from graphopt.analysis.layer_statistics import Bias, Reading, Sums
    from graphopt.graph import Graph, Model, Node, Tensor
    from graphopt.rewrite.layer_stop import Stop
    from graphopt.runtime import Feeds
    from graphopt.solve.least_squares import Matrix, Statistics

    Values = dict[str, Any]
    Runner = Callable[[Model, Sequence[str]], Iterator[Values]]

BATCH = 32
"""Samples per run where the batch axis is free."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """What may stand for the weight of a layer.

    Attributes:
        weight: In the layout and the type of the weight.
        bias: One number per output row, or None where the bias stays.
    """

    weight: NDArray[Any]
    bias: NDArray[np.float64] | None = None


def damage(quality: Quality) -> tuple[float, float]:
    """Return by how much a model's answers changed, and the standard error of that.

    Both candidates for it are zero for equal models and nearly add up over layers while they are small, which shares of
    agreeing rows and decibels do not: the divergence in nats where there are class scores, else noise over signal of
    the worst output.
    """
    if quality.kl is not None:
        return quality.kl, quality.kl_error or 0.0
    noise = 10.0 ** (-quality.worst_sqnr_db / 10.0) if quality.worst_sqnr_db < SQNR_CEILING_DB else 0.0
    return noise, noise * math.log(10.0) / 10.0 * (quality.sqnr_error_db or 0.0)


def unmeasurable(stop: Stop, model: Model) -> str:
    """Return why the damage of a layer cannot be measured; empty where it can."""
    if stop.layer.scope is not model.graph:
        return "it lies in a body, which cannot be run alone"
    tensor = stop.layer.node.inputs[0 if stop.layer.node.op != "MatMul" else 1 - stop.layer.index]
    if producer(tensor) is None and tensor.name not in {each.name for each in model.graph.inputs}:
        return "what it reads is constant"
    return ""


def layer_input(stop: Stop) -> str:
    """Return the name of the tensor that a layer multiplies its weight with."""
    node = stop.layer.node
    return str(node.inputs[0 if node.op != "MatMul" else 1 - stop.layer.index].name)


def group_stops(stops: Iterable[Stop]) -> list[list[Stop]]:
    """Divide layers, front to back, into groups of neighbours that read the same tensor: one session serves each."""
    groups: list[list[Stop]] = []
    for stop in stops:
        if groups and layer_input(groups[-1][0]) == layer_input(stop):
            groups[-1].append(stop)
        else:
            groups.append([stop])
    return groups


def measure_layers(
    model: Model,
    stops: Sequence[Stop],
    candidates: Callable[[Stop, list[Statistics] | None], Sequence[Candidate]],
    *,
    judging: Feeds,
    calibration: Feeds | None,
    rows: int = 16384,
    seed: int = 0,
    threads: int = 1,
) -> Iterator[tuple[Stop, list[Quality]]]:
    """Yield each layer, front to back, with what each of its candidates does to the outputs of the model alone.

    Args:
        model: The model; it is never changed.
        stops: Layers of its main graph, front to back.
        candidates: Makes the candidates of a layer from statistics of its inputs per group, centred where it has a
            bias; None where there are none: without data, and for layers that cannot be observed.
        judging: What the outputs are compared on; no sample of it belongs to the calibration.
        calibration: What statistics are collected on.
        rows: Rows of input per layer, at most.
        seed: Decides which rows.
        threads: Intra-op threads of the sessions.

    Cost: for each candidate a run of what lies behind the layer, and two runs of the model on the calibration data.
    """
    trials = Trials(model, judging, threads=threads)
    batches = () if calibration is None else Batches.of(calibration, len(calibration))
    segments = Segments(batches)

    def collected(run: Runner, readings: Sequence[Reading]) -> dict[str, Sums]:
        if not readings or not batches:
            return {}
        names = list(dict.fromkeys(each.tensor for each in readings))
        with one_thread():
            values = ((found, found) for found in run(model, names))
            return collect(values, readings, rows=-(-rows // len(batches)), seed=seed)

    def streamed(model: Model, names: Sequence[str]) -> Iterator[Values]:
        return stream(model, names, batches)

    ahead = collected(streamed, [each for stop in stops for each in stop.ahead])
    for group in group_stops(stops):
        sums = collected(segments.advance, [each for stop in group for each in stop.readings])

        def made(stop: Stop, sums: dict[str, Sums] = sums) -> Sequence[Candidate]:
            parts = [each[stop.key] for each in (sums, ahead) if stop.key in each]
            with one_thread():
                return candidates(stop, _statistics(stop, parts))

        yield from trials.measure(group, made)


def _statistics(stop: Stop, parts: Sequence[Sums]) -> list[Statistics] | None:
    if not parts:
        return None
    sums = parts[0] if len(parts) == 1 else parts[0].merge(parts[1])
    if not sums.fit or not all(moments.finite() for moments in sums.fit):
        return None
    return [moments.mean(centred=stop.bias is not None) for moments in sums.fit]


def finish(
    stop: Stop, matrices: Sequence[Matrix], given: Sequence[Statistics] | None, *, scales_rows: bool
) -> Candidate:
    """Return matrices as a candidate: the mean output kept through the bias and, where allowed, its variance.

    Args:
        stop: The layer.
        matrices: V of each group, [R, C].
        given: Statistics of each group's inputs, as `measure_layers` hands them out.
        scales_rows: Whether rows may be multiplied by a number.
    """
    dense = stop.form.matrices(stop.layer.array())
    if given is None or stop.bias is None:
        return Candidate(stop.form.weight(matrices, stop.layer.array()))
    if scales_rows:
        groups = zip(dense, matrices, given, strict=True)
        matrices = [new * least_squares.variance_gain(old, new, each)[:, None] for old, new, each in groups]
    groups = zip(dense, matrices, given, strict=True)
    shift = np.concatenate([least_squares.bias_shift(old, new, each) for old, new, each in groups])
    bias = stop.dense_bias + shift * stop.bias.factor
    return Candidate(stop.form.weight(matrices, stop.layer.array()), bias)


class Trials:
    """Measures candidates for single layers of one model, front to back.

    Args:
        model: The model; it is never changed.
        feeds: What the outputs are compared on: samples that decide nothing else.
        threads: Intra-op threads of the sessions.

    Memory holds the feeds, the model's outputs on them (up to a size; larger ones are computed again) and the
    activations that what is still to run reads.
    """

    def __init__(self, model: Model, feeds: Feeds, *, threads: int = 1) -> None:
        self._model = model
        self._threads = threads
        self._batches = list(feeds.batches(BATCH))
        self._samples = [_count_samples(batch) if feeds.batchable else 1 for batch in self._batches]
        self._segments = Segments(self._batches)
        self._reference = session(model, threads=threads)
        self._known: list[Values] | None = []
        self._kind = kind_of(np.asarray(next(iter(want.values()))) for want in self._wanted())

    @property
    def kind(self) -> str:
        """How the model is judged; see `graphopt.verify.tally.kind_of`."""
        return self._kind

    def measure(
        self, group: Sequence[Stop], candidates: Callable[[Stop], Sequence[Candidate]]
    ) -> Iterator[tuple[Stop, list[Quality]]]:
        """Yield the layers of a group with what each of their candidates does alone.

        Args:
            group: Layers that read the same tensor (see `group_stops`), none before those of earlier calls.
            candidates: Called for one layer after the other.
        """
        for _ in self._segments.advance(self._model, [layer_input(group[0])]):
            pass
        rest, held = self._segments.remainder(self._model)
        slots = {stop.key: _Slot.open(rest.graph, stop) for stop in group}
        rest.graph.cleanup()
        runner = session(rest, threads=self._threads)
        dense = {name: value for slot in slots.values() for name, value in slot.dense().items()}
        for stop in group:
            found = []
            for candidate in candidates(stop):
                replaced = {**dense, **slots[stop.key].feed(candidate)}
                tally = Tally(self._kind)
                for want, values, samples in zip(self._wanted(), held, self._samples, strict=True):
                    tally.add(want, {**want, **run(runner, {**values, **replaced})}, samples=samples)
                found.append(quality_of(tally))
            yield stop, found

    def _wanted(self) -> Iterator[Values]:
        """Yield the outputs of the model as it is, batch by batch."""
        if self._known:
            yield from self._known
            return
        kept: list[Values] | None = None if self._known is None else []
        size = 0
        for batch in self._batches:
            want = run(self._reference, batch)
            if kept is not None:
                size += sum(np.asarray(value).nbytes for value in want.values())
                kept.append(want)
                kept = kept if size <= CACHE_BYTES else None
            yield want
        self._known = kept


@dataclass(frozen=True, slots=True)
class _Slot:
    """The inputs of the rest of a model that stand for the weight and the bias of one layer.

    Attributes:
        weight: Name of the input for the weight.
        value: The weight as it is.
        bias: Name of the input for the bias; empty where the layer has no place for one.
        old_bias: The bias as it is, in the shape of the input.
    """

    weight: str
    value: NDArray[Any]
    bias: str
    old_bias: NDArray[Any]

    @classmethod
    def open(cls, graph: Graph, stop: Stop) -> _Slot:
        """Make a layer's weight and bias inputs of a graph, which is a copy of the one that the stop is of."""
        nodes = {tensor.name: node for node in graph.nodes for tensor in node.outputs if tensor.name}
        node = nodes[next(tensor.name for tensor in stop.layer.node.outputs if tensor.name)]
        value = stop.layer.array()
        weight = _input(graph, f"{stop.key}_weight", value)
        old = node.inputs[stop.layer.index]
        for use in list(uses(old)):
            use.node.inputs[use.index] = weight
        if stop.bias is None:
            return cls(weight.name, value, "", np.zeros(0))
        old_bias = _bias_of(stop.bias, stop.layer.rows, value)
        bias = _input(graph, f"{stop.key}_bias", old_bias)
        _put(nodes[stop.bias.node.outputs[0].name], stop.bias.index, bias)
        return cls(weight.name, value, bias.name, old_bias)

    def dense(self) -> Values:
        """Return what is fed where nothing is replaced."""
        return {self.weight: self.value, **({self.bias: self.old_bias} if self.bias else {})}

    def feed(self, candidate: Candidate) -> Values:
        """Return what is fed for a candidate."""
        fed: Values = {self.weight: candidate.weight.astype(self.value.dtype)}
        if self.bias and candidate.bias is not None:
            fed[self.bias] = candidate.bias.reshape(self.old_bias.shape).astype(self.old_bias.dtype)
        return fed


def _input(graph: Graph, name: str, value: NDArray[Any]) -> Variable:
    """Add an input of the type and shape of a value to a graph, under a name that nothing else has."""
    taken = {tensor.name for node in graph.nodes for tensor in (*node.inputs, *node.outputs)}
    taken |= {tensor.name for tensor in graph.inputs}
    while name in taken:
        name += "_"
    added = Variable(name, value.dtype, value.shape)
    graph.inputs.append(added)
    return added


def _bias_of(bias: Bias, rows: int, weight: NDArray[Any]) -> NDArray[Any]:
    value = None if bias.tensor is None else constant_value(bias.tensor)
    return np.zeros(rows, weight.dtype) if value is None else value


def _put(node: Node, index: int, tensor: Tensor) -> None:
    """Give a node an input; a Conv or Gemm without a bias has one input fewer."""
    if index < len(node.inputs):
        node.inputs[index] = tensor
    else:
        node.inputs.append(tensor)


def _count_samples(batch: Mapping[str, Any]) -> int:
    return int(next(iter(batch.values())).shape[0])
