"""Runs calibration data through a model and observes its activations.

Every float32 activation of the main graph becomes an extra output of a copy of the model; samples run one small batch
at a time, and of each tensor only its ends, sums and one histogram stay. The range of a histogram doubles where a value
falls outside, so one pass over the data is enough and no sample is kept.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from typing import TYPE_CHECKING

import numpy as np

from graphopt.analysis.activation_ranges.tensor import TensorRange
from graphopt.errors import ModelTooLargeError
from graphopt.graph import Variable, uses
from graphopt.runtime import run, session

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import onnxruntime as ort
    from numpy.typing import NDArray

    from graphopt.graph import Model
    from graphopt.runtime import Feeds

    Observed = tuple[dict[str, TensorRange], int]

CALIBRATION_SAMPLES = 512
"""Samples that ranges are taken from; more data does not move them."""

BATCH = 8
"""Samples per run at most, where the batch axis is free."""

BATCH_BYTES = 8 << 20
"""Activations of a batch of more than one sample, about: larger batches are no faster, and memory is what they cost."""

FETCHED_BYTES = 128 << 20
"""Activations fetched in one run; a model with more is run several times per batch, each for a part of its tensors."""

PROBED_TENSORS = 64
"""Tensors fetched at once while their sizes are still unknown."""

REMEMBERED_RESULTS = 2

_REMEMBERED: OrderedDict[tuple[str, int, bool, tuple[str, ...]], tuple[Observed, Feeds]] = OrderedDict()
"""The last results by content of the model and identity of the data: trials of a guard start from equal copies."""


def activations(model: Model) -> list[Variable]:
    """Return the inputs of the main graph and everything its nodes produce, in order, each tensor once."""
    found = [tensor for tensor in model.graph.inputs if isinstance(tensor, Variable)]
    found += [tensor for node in model.graph.nodes for tensor in node.outputs if isinstance(tensor, Variable)]
    return [tensor for tensor in found if tensor.name]


def collect_ranges(
    model: Model, names: Sequence[str], feeds: Feeds, *, histograms: bool = True, samples: int = CALIBRATION_SAMPLES
) -> Observed:
    """Run samples through a model and return what was seen of the named tensors, with the number of samples.

    Tensors that no run produced, or that were NaN or infinite, are missing.

    Args:
        model: The model; it is not edited.
        names: Float32 tensors of the main graph.
        feeds: Calibration samples.
        histograms: Count values too; without them only the ends are known.
        samples: Samples that are run at most, spread evenly.
    """
    inputs = {tensor.name for tensor in model.graph.inputs}
    produced = [name for name in names if name not in inputs]
    runner = session(_with_outputs(model, produced), plan_memory=False)
    axes = {tensor.name: _channel_axis(tensor) for tensor in activations(model)}
    ranges = {name: TensorRange(axis=axes[name]) for name in names}
    for seen in ranges.values() if not histograms else ():
        seen.histogram = None
    chosen = feeds.take(samples)
    sizes = _sizes(runner, chosen.first(), produced)
    batch = max(1, min(BATCH, BATCH_BYTES // max(sum(sizes.values()), 1)))
    groups = _grouped({name: size * batch for name, size in sizes.items()})
    for feed in chosen.batches(batch):
        _observe(ranges, {name: np.asarray(feed[name]) for name in inputs & ranges.keys() & feed.keys()})
        for group in groups:
            _observe(ranges, run(runner, feed, group))
    known = {name: seen for name, seen in ranges.items() if seen.batches and not seen.unbounded}
    return known, len(chosen)


def remembered_ranges(
    model: Model, names: Sequence[str], feeds: Feeds, *, histograms: bool = True, samples: int = CALIBRATION_SAMPLES
) -> Observed:
    """Return what `collect_ranges` does, without running an equal model on the same feeds again."""
    try:
        digest = hashlib.sha256(model.to_bytes()).hexdigest()
    except ModelTooLargeError:
        return collect_ranges(model, names, feeds, histograms=histograms, samples=samples)
    key = (digest, id(feeds), histograms, tuple(names))
    found = _REMEMBERED.get(key)
    if found is None:
        found = _REMEMBERED[key] = (collect_ranges(model, names, feeds, histograms=histograms, samples=samples), feeds)
        while len(_REMEMBERED) > REMEMBERED_RESULTS:
            _REMEMBERED.popitem(last=False)
    return found[0]


def _channel_axis(tensor: Variable) -> int:
    """Return the axis along which the operators that read a tensor sum up: the last for MatMul, else the second."""
    return -1 if any(use.node.op == "MatMul" for use in uses(tensor)) else 1


def _with_outputs(model: Model, names: Sequence[str]) -> Model:
    """Return a copy of the model, sharing its weights, in which the named tensors are outputs too."""
    observed = model.copy()
    present = {tensor.name for tensor in observed.graph.outputs}
    by_name = {tensor.name: tensor for tensor in activations(observed)}
    for name in names:
        if name not in present:
            tensor = by_name[name]
            tensor.dtype = np.dtype(np.float32)
            observed.graph.outputs.append(tensor)
    return observed


def _sizes(
    runner: ort.InferenceSession, feed: Mapping[str, NDArray[np.generic]], names: Sequence[str]
) -> dict[str, int]:
    """Return the bytes that tensors take for one feed."""
    found: dict[str, int] = {}
    for place in range(0, len(names), PROBED_TENSORS):
        values = run(runner, feed, list(names[place : place + PROBED_TENSORS]))
        found |= {name: int(np.asarray(value).nbytes) for name, value in values.items()}
    return found


def _grouped(sizes: Mapping[str, int]) -> list[list[str]]:
    """Divide tensors into groups that together take at most ``FETCHED_BYTES``, where one of them alone does not."""
    groups: list[list[str]] = [[]]
    filled = 0
    for name, size in sizes.items():
        if groups[-1] and filled + size > FETCHED_BYTES:
            groups.append([])
            filled = 0
        groups[-1].append(name)
        filled += size
    return [group for group in groups if group]


def _observe(ranges: Mapping[str, TensorRange], values: Mapping[str, NDArray[np.generic]]) -> None:
    for name, value in values.items():
        ranges[name].add(np.asarray(value, np.float32))
