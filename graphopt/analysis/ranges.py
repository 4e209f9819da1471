"""The range of values that each activation takes on real data, streamed: memory does not grow with the data.

Every float32 activation of the main graph becomes an extra output of a copy of the model; samples run one small batch
at a time, and of each tensor only its smallest and largest value and one histogram stay. The histogram has a fixed
number of bins; where a value falls outside, neighbouring bins are merged and the range doubles, so one pass over the
data is enough and no sample is kept.
"""

from __future__ import annotations

import hashlib
import math
from collections import OrderedDict
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Self

import numpy as np

from graphopt.analysis.base import Analysis
from graphopt.analysis.types import Types
from graphopt.errors import DataError, ModelTooLargeError
from graphopt.graph import Variable
from graphopt.runtime import run, session

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import onnxruntime as ort
    from numpy.typing import NDArray

    from graphopt.analysis.manager import Facts
    from graphopt.graph import Model
    from graphopt.runtime import Feeds

BINS = 4096
"""Bins of a histogram. After a doubling half of them hold all values, so at least 2048 always do."""

SAMPLED_VALUES = 1 << 16
"""Values of one tensor and one batch that enter the histogram, evenly spaced; smallest and largest are exact."""

SAMPLES = 512
"""Samples that ranges are taken from; more data does not move them."""

BATCH = 8
"""Samples per run where the batch axis is free."""

FETCHED_BYTES = 256 << 20
"""Activations fetched in one run; a model with more is run several times per batch, each for a part of its tensors."""

SHRINK_STEPS = 80
"""Candidate ranges per side that ``mse`` tries, from the whole range down to a fifth of it."""

CUT_OFF_WEIGHT = 4.0
"""How much the error of a value that a range cuts off counts beside that of a rounded one: it falls on the few largest
activations, which later layers depend on most. Measured: 1 cuts off too much, 16 too little."""

PROBED_TENSORS = 64
"""Tensors fetched at once while their sizes are still unknown."""

FLOAT32 = 1


class TensorRange:
    """Smallest and largest value of one tensor and a histogram of what lies between.

    Attributes:
        low: Smallest value seen.
        high: Largest value seen.
        counts: Values per bin, ``BINS`` entries of equal width from ``start`` on.
        start: Left edge of the first bin.
        width: Width of a bin, above zero.
        values: Values seen in all, those outside the histogram included.
        channel_sums: Sum of the values per index of axis 1, or None for tensors of one axis or of changing width.
        unbounded: Whether NaN or infinity was seen (attention masks hold -inf): no grid fits.
    """

    __slots__ = ("channel_sums", "counts", "high", "low", "start", "unbounded", "values", "width")

    def __init__(self) -> None:
        self.low = np.inf
        self.high = -np.inf
        self.counts: NDArray[np.int64] = np.zeros(BINS, np.int64)
        self.start = 0.0
        self.width = 0.0
        self.values = 0
        self.channel_sums: NDArray[np.float64] | None = None
        self.unbounded = False

    def add(self, values: NDArray[np.float32]) -> None:
        """Take in the values of one run, of any shape; NaN or infinity among them makes the range unbounded."""
        if not values.size or self.unbounded:
            return
        flat = values.reshape(-1)
        low, high = float(flat.min()), float(flat.max())
        if not (np.isfinite(low) and np.isfinite(high)):
            self.unbounded = True
            return
        self.low, self.high = min(self.low, low), max(self.high, high)
        self._add_channels(values)
        self.values += flat.size
        if self.width == 0.0:
            self.start = low
            self.width = max((high - low) / (BINS - 1), abs(low) * 1e-6, 1e-30)
        while low < self.start or high >= self.start + self.width * BINS:
            self._double(downward=low < self.start)
        step = max(1, flat.size // SAMPLED_VALUES)
        while math.gcd(step, flat.size) > 1:  # a divisor of the row length would see the same channels in every row
            step += 1
        places = ((flat[::step].astype(np.float64) - self.start) / self.width).astype(np.int64)
        self.counts += np.bincount(np.clip(places, 0, BINS - 1), minlength=BINS)

    def _add_channels(self, values: NDArray[np.float32]) -> None:
        if values.ndim < 2 or (self.values and self.channel_sums is None):
            return
        sums = values.sum(axis=tuple(axis for axis in range(values.ndim) if axis != 1), dtype=np.float64)
        if self.channel_sums is not None and self.channel_sums.shape != sums.shape:
            self.channel_sums = None
            return
        self.channel_sums = sums if self.channel_sums is None else self.channel_sums + sums

    def channel_means(self) -> NDArray[np.float64] | None:
        """Return the mean of the values per index of axis 1, or None where there is none."""
        if self.channel_sums is None or not self.values:
            return None
        return self.channel_sums * (self.channel_sums.size / self.values)

    def _double(self, *, downward: bool) -> None:
        merged = self.counts.reshape(-1, 2).sum(axis=1)
        self.counts = np.zeros(BINS, np.int64)
        if downward:
            self.start -= self.width * BINS
            self.counts[BINS // 2 :] = merged
        else:
            self.counts[: BINS // 2] = merged
        self.width *= 2

    def percentile(self, share: float) -> tuple[float, float]:
        """Return the range that holds a share of all values, the rest cut off evenly at both ends.

        Zeros that an activation function made are one end of the range, not a tail: a tensor without negative values
        keeps its lower end.

        Args:
            share: In percent, above 50, at most 100: 99.99 cuts off one value in ten thousand.
        """
        total = int(self.counts.sum())
        if total == 0 or share >= 100:
            return self.low, self.high
        tail = (100 - share) / 100
        one_sided = self.low >= 0 or self.high <= 0
        part = tail if one_sided else tail / 2
        below = np.cumsum(self.counts)
        first = int(np.searchsorted(below, part * total, side="right"))
        last = int(np.searchsorted(below, (1 - part) * total, side="left"))
        low = self.low if self.low >= 0 else max(self.low, self.start + first * self.width)
        high = self.high if self.high <= 0 else min(self.high, self.start + (last + 1) * self.width)
        return (low, high) if low < high else (self.low, self.high)

    def least_error(self, levels: int = 256) -> tuple[float, float]:
        """Return the range, inside the one seen, whose grid of ``levels`` steps loses the least squared error."""
        if not self.low < self.high:
            return self.low, self.high
        best = (self.low, self.high)
        high = self._shrink_end(best, levels, upper=True)
        low = self._shrink_end((self.low, high), levels, upper=False)
        return low, high

    def noise(self, low: float, high: float, levels: int = 256) -> float:
        """Return the mean squared error of rounding to a grid, with ``CUT_OFF_WEIGHT`` for values that it cuts off."""
        low, high = min(low, 0.0), max(high, 0.0)
        centres = self.start + (np.arange(BINS) + 0.5) * self.width
        beyond = np.maximum(centres - high, 0.0) + np.maximum(low - centres, 0.0)
        step = (high - low) / (levels - 1)
        inside = (beyond == 0.0) & (centres != 0.0)
        total = max(int(self.counts.sum()), 1)
        cut_off = CUT_OFF_WEIGHT * float((self.counts * beyond**2).sum()) / total
        return cut_off + float((self.counts * inside).sum()) / total * step**2 / 12

    def power(self) -> float:
        """Return the mean square of the values."""
        centres = self.start + (np.arange(BINS) + 0.5) * self.width
        return float((self.counts * centres**2).sum() / max(int(self.counts.sum()), 1))

    def _shrink_end(self, span: tuple[float, float], levels: int, *, upper: bool) -> float:
        low, high = span
        end = high if upper else low
        if (upper and high <= 0) or (not upper and low >= 0):
            return end
        best, least = end, np.inf
        for factor in np.linspace(1.0, 0.2, SHRINK_STEPS):
            candidate = float(end * factor)
            noise = self.noise(low, candidate, levels) if upper else self.noise(candidate, high, levels)
            if noise < least:
                best, least = candidate, noise
        return best

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, TensorRange)
            and (self.low, self.high, self.start, self.width) == (other.low, other.high, other.start, other.width)
            and bool(np.array_equal(self.counts, other.counts))
        )

    __hash__ = None  # type: ignore[assignment]


CALIBRATORS = ("auto", "minmax", "percentile", "mse")
"""How the range of a grid is taken from what was seen; ``auto`` is what was best on the models measured."""


@dataclass(slots=True, eq=False)
class Ranges(Analysis):
    """Ranges of the float32 activations of the main graph, by tensor name.

    Attributes:
        tensors: Name to what was seen. Tensors that no run produced, or that were NaN or infinite, are missing.
        samples: Samples that ran.
    """

    depends: ClassVar[frozenset[str]] = frozenset({"structure", "weights"})

    tensors: dict[str, TensorRange]
    samples: int

    @classmethod
    def compute(cls, model: Model, facts: Facts) -> Self:
        """Run the calibration data of ``facts`` through the model.

        Raises:
            DataError: There is no data, or it does not fit.
        """
        if facts.feeds is None:
            raise DataError(
                "there is no calibration data",
                where="activation ranges",
                must="Static quantization of activations needs samples of real inputs",
                do="Give --data, or quantize with --activations dynamic",
            )
        types = facts.get(Types)
        names = [tensor.name for tensor in activations(model) if types.dtype(tensor) == FLOAT32]
        tensors, samples = _remembered(model, names, facts.feeds)
        return cls(tensors, samples)

    def same_as(self, other: Self) -> bool:
        """Return whether the same data gave the same ranges."""
        return (self.samples, self.tensors) == (other.samples, other.tensors)

    def sizes(self) -> dict[str, float]:
        """Return the values that each tensor has in one sample, on average."""
        return {name: seen.values / max(self.samples, 1) for name, seen in self.tensors.items()}

    def get(self, name: str) -> TensorRange | None:
        """Return what was seen of a tensor, or None where it has no range."""
        return self.tensors.get(name)


def activations(model: Model) -> list[Variable]:
    """Return the inputs of the main graph and everything its nodes produce, in order, each tensor once."""
    found = [tensor for tensor in model.graph.inputs if isinstance(tensor, Variable)]
    found += [tensor for node in model.graph.nodes for tensor in node.outputs if isinstance(tensor, Variable)]
    return [tensor for tensor in found if tensor.name]


def collect_ranges(model: Model, names: Sequence[str], feeds: Feeds) -> tuple[dict[str, TensorRange], int]:
    """Run samples through a model and return the ranges of the named tensors, with the number of samples.

    Args:
        model: The model; it is not edited.
        names: Float32 tensors of the main graph.
        feeds: Calibration samples; the first ``SAMPLES`` are used.
    """
    inputs = {tensor.name for tensor in model.graph.inputs}
    produced = [name for name in names if name not in inputs]
    runner = session(_with_outputs(model, produced))
    ranges = {name: TensorRange() for name in names}
    groups: list[list[str]] = []
    chosen = feeds.take(SAMPLES)
    for feed in chosen.batches(BATCH):
        groups = groups or _group_by_size(runner, feed, produced)
        _observe(ranges, {name: np.asarray(feed[name]) for name in inputs & ranges.keys() & feed.keys()})
        for group in groups:
            _observe(ranges, run(runner, feed, group))
    known = {name: seen for name, seen in ranges.items() if np.isfinite(seen.low) and not seen.unbounded}
    return known, len(chosen)


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


def _group_by_size(
    runner: ort.InferenceSession, feed: Mapping[str, NDArray[np.generic]], names: Sequence[str]
) -> list[list[str]]:
    """Divide tensors into groups that together take at most ``FETCHED_BYTES``, by the sizes one feed gives them."""
    groups: list[list[str]] = [[]]
    filled = 0
    for place in range(0, len(names), PROBED_TENSORS):
        for name, value in run(runner, dict(feed), list(names[place : place + PROBED_TENSORS])).items():
            size = int(np.asarray(value).nbytes)
            if groups[-1] and filled + size > FETCHED_BYTES:
                groups.append([])
                filled = 0
            groups[-1].append(name)
            filled += size
    return [group for group in groups if group]


def _observe(ranges: Mapping[str, TensorRange], values: Mapping[str, NDArray[np.generic]]) -> None:
    for name, value in values.items():
        ranges[name].add(np.asarray(value, np.float32))


_REMEMBERED: OrderedDict[tuple[str, int], tuple[dict[str, TensorRange], int, Feeds]] = OrderedDict()
"""The last results by content of the model and identity of the data: trials of a guard start from equal copies."""

REMEMBERED_RESULTS = 2


def _remembered(model: Model, names: Sequence[str], feeds: Feeds) -> tuple[dict[str, TensorRange], int]:
    try:
        digest = hashlib.sha256(model.to_bytes()).hexdigest()
    except ModelTooLargeError:
        return collect_ranges(model, names, feeds)
    key = (digest, id(feeds))
    found = _REMEMBERED.get(key)
    if found is None:
        ranges, samples = collect_ranges(model, names, feeds)
        found = _REMEMBERED[key] = (ranges, samples, feeds)
        while len(_REMEMBERED) > REMEMBERED_RESULTS:
            _REMEMBERED.popitem(last=False)
    return found[0], found[1]
