"""How well a compressed model still answers, measured against the original on held-back data, without labels.

The first output decides what is counted:

* class scores (rows of logits or of probabilities) and token logits: top-1 agreement, the share of rows whose largest
  entry is the same in both models;
* embeddings (rows of length one): Spearman's rank correlation, over all pairs of rows, of their similarity in one model
  and in the other, since pairs are what embeddings are compared by;
* anything else: the signal-to-quantization-noise ratio (SQNR) of the worst output, in dB.

Where two classes are nearly equal, the other model's choice is right about as often. The expected loss weighs each
changed choice by what the reference itself thinks of it: mean(p[its choice] - p[the other choice]) over its
probabilities p. It estimates the accuracy lost, without labels, from far fewer samples than a count of changed choices.

SQNR is recorded for every output in every case. The standard error of an agreement p over n rows is
sqrt(p (1 - p) / n) with half an observation added on either side, that of a correlation r about
(1 - r^2) / sqrt(n - 1).
"""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np

from graphopt.errors import DataError
from graphopt.runtime import run, session

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

    import onnxruntime as ort
    from numpy.typing import NDArray

    from graphopt.graph import Model
    from graphopt.runtime import Feeds

    Outputs = Mapping[str, NDArray[np.generic]]
    Source = Model | Path | str

SQNR_CEILING_DB = 200.0
"""Reported for outputs that are equal bit for bit, whose ratio has no finite value."""

SQNR_TARGET_DB = 40.0
"""Drops of models that are judged by SQNR are counted from here (a drop of 10 means 30 dB)."""

TOKEN_CLASSES = 32
"""Fewest entries in the last axis of a rank-3 output for it to be taken as token logits."""

FEWEST_EMBEDDINGS = 4
"""Fewer rows have no correlation worth the name and are judged by SQNR."""

CACHE_BYTES = 256 << 20
"""Reference outputs up to this size are kept between measurements; larger ones are computed again."""


class Metric(Protocol):
    """A user's metric, larger is better: it runs the model on data of its own, or on the held-back feeds."""

    def __call__(self, run: Callable[[Outputs], Outputs], feeds: Iterable[Outputs], /) -> float:
        """Return the metric; ``run`` gives the outputs of one feed."""
        ...


@dataclass(frozen=True, slots=True)
class Quality:
    """One measurement of a candidate against its reference.

    Attributes:
        kind: ``top-1``, ``similarity`` or ``sqnr``: what ``drop`` counts; ``metric`` where the user gave one.
        samples: Complete feeds compared.
        rows: Rows judged (samples, tokens or embeddings); 0 for ``sqnr``.
        agreement: Share of rows that agree, or correlation of similarities, 0 to 1; None for ``sqnr``.
        standard_error: Of the agreement, as a share, or None.
        sqnr_db: SQNR of each floating-point output in dB; equal outputs have ``SQNR_CEILING_DB``.
        expected_loss: Accuracy that the reference's own probabilities say was lost, in points; None unless ``top-1``.
        expected_loss_error: Its standard error, in points.
        metric: The user's metric of the candidate, or None.
        metric_reference: The same of the reference, or None.
    """

    kind: str
    samples: int
    rows: int
    agreement: float | None
    standard_error: float | None
    sqnr_db: dict[str, float]
    expected_loss: float | None = None
    expected_loss_error: float | None = None
    metric: float | None = None
    metric_reference: float | None = None

    @property
    def worst_sqnr_db(self) -> float:
        """SQNR of the worst output in dB."""
        return min(self.sqnr_db.values(), default=SQNR_CEILING_DB)

    @property
    def drop(self) -> float:
        """What was lost: metric units, percentage points of agreement, or dB below 40; never negative."""
        if self.metric is not None and self.metric_reference is not None:
            return max(0.0, self.metric_reference - self.metric)
        if self.agreement is not None:
            return 100.0 * (1.0 - self.agreement)
        return max(0.0, SQNR_TARGET_DB - self.worst_sqnr_db)

    @property
    def drop_error(self) -> float:
        """Standard error of ``drop`` in its units; 0 where none is known."""
        if self.kind == "similarity" and self.standard_error is not None:
            return 100.0 * self.standard_error
        if self.kind != "top-1" or self.agreement is None or not self.rows:
            return 0.0
        return 100.0 * share_error(self.agreement * self.rows, self.rows)

    @property
    def unit(self) -> str:
        """Unit of ``drop``."""
        return {"metric": "metric units", "sqnr": "dB of SQNR below 40"}.get(self.kind, "points of agreement")


def share_error(agreeing: float, rows: int) -> float:
    """Return the standard error of a share, with half an observation added on either side.

    All of few rows agreeing is no proof that all of many would: 16 of 16 gives 0.041, not none.

    Args:
        agreeing: Rows that agree.
        rows: All rows, at least 1.
    """
    share = (agreeing + 0.5) / (rows + 1)
    return math.sqrt(share * (1 - share) / rows)


def kind_of(outputs: Iterable[NDArray[np.generic]]) -> str:
    """Decide how a model is judged from its first output on every feed: ``top-1``, ``similarity`` or ``sqnr``.

    All rows of all feeds have a say: one row of logits can have length one, or lie in [0, 1], by chance.
    """
    tokens = within_unit = adds_to_one = unit_length = True
    for output in outputs:
        if output.dtype.kind != "f" or output.ndim not in {2, 3} or output.size == 0 or output.shape[-1] < 2:
            return "sqnr"
        rows = output.reshape(-1, output.shape[-1]).astype(np.float64)
        if not np.isfinite(rows).all():
            return "sqnr"
        tokens &= output.ndim == 3
        if output.ndim == 3 and output.shape[-1] < TOKEN_CLASSES:
            return "sqnr"
        within_unit &= bool((rows >= 0).all() and (rows <= 1).all())
        adds_to_one &= bool(np.allclose(rows.sum(axis=1), 1.0, atol=1e-3))
        unit_length &= bool(np.allclose(np.linalg.norm(rows, axis=1), 1.0, atol=1e-3))
    if within_unit:
        return "top-1" if adds_to_one and not tokens else "sqnr"
    return "similarity" if unit_length and not tokens else "top-1"


def open_session(source: Source, *, threads: int) -> ort.InferenceSession:
    """Return a session; a model in memory that uses the kernels' operators gets this installation's library."""
    if isinstance(source, str | Path):
        return session(source, threads=threads)
    return session(source, threads=threads, kernels="ai.graphopt" in source.opset_imports)


@dataclass(slots=True)
class _Tally:
    """Sums over feeds, so that memory does not grow with the data."""

    signal: dict[str, float] = field(default_factory=dict)
    noise: dict[str, float] = field(default_factory=dict)
    agreeing: int = 0
    loss: float = 0.0
    loss_squared: float = 0.0
    rows: int = 0
    samples: int = 0
    embeddings: list[tuple[NDArray[np.float64], NDArray[np.float64]]] = field(default_factory=list)

    def add(self, kind: str, reference: Outputs, candidate: Outputs) -> None:
        for position, (name, want) in enumerate(reference.items()):
            got = candidate[name]
            if not isinstance(want, np.ndarray) or want.dtype.kind not in "fiub":
                continue
            if want.shape != got.shape:
                self._mismatch(name, want if position == 0 and kind == "top-1" else None)
                continue
            self._add_energy(name, want, got)
            if position == 0 and kind == "top-1":
                self._add_choices(want.reshape(-1, want.shape[-1]), got.reshape(-1, got.shape[-1]))
            elif position == 0 and kind == "similarity":
                self.embeddings.append((want.astype(np.float64), got.astype(np.float64)))

    def _add_choices(self, want: NDArray[np.generic], got: NDArray[np.generic]) -> None:
        right, chosen = want.argmax(axis=1), got.argmax(axis=1)
        probability = _probabilities(want.astype(np.float64))
        rows = np.arange(len(right))
        broken = np.isnan(got.astype(np.float64)).any(axis=1)  # argmax names the first NaN, which is no choice
        loss = np.where(broken, 1.0, probability[rows, right] - probability[rows, chosen])
        self.agreeing += int(((right == chosen) & ~broken).sum())
        self.rows += len(right)
        self.loss += float(loss.sum())
        self.loss_squared += float(np.square(loss).sum())

    def expected_loss(self) -> tuple[float, float]:
        """Return the expected loss and its standard error, in points."""
        mean = self.loss / self.rows
        variance = max(0.0, self.loss_squared / self.rows - mean**2)
        return 100.0 * mean, 100.0 * math.sqrt(variance / self.rows)

    def _mismatch(self, name: str, choices: NDArray[np.generic] | None) -> None:
        # A data-dependent shape that changed: nothing of this output can be credited, and every choice is lost.
        self.noise[name] = math.inf
        lost = 0 if choices is None else choices.size // choices.shape[-1]
        self.rows += lost
        self.loss += lost
        self.loss_squared += lost

    def _add_energy(self, name: str, want: NDArray[np.generic], got: NDArray[np.generic]) -> None:
        a, b = want.astype(np.float64).ravel(), got.astype(np.float64).ravel()
        equal = (a == b) | (np.isnan(a) & np.isnan(b))
        finite = np.isfinite(a)
        self.signal[name] = self.signal.get(name, 0.0) + float(np.square(a[finite]).sum())
        wrong = ~equal
        with np.errstate(invalid="ignore", over="ignore"):
            noise = float(np.square(a[wrong] - b[wrong]).sum())
        self.noise[name] = self.noise.get(name, 0.0) + (noise if math.isfinite(noise) else math.inf)

    def sqnr_db(self) -> dict[str, float]:
        return {name: _decibel(self.signal.get(name, 0.0), noise) for name, noise in self.noise.items()}

    def agreement(self, kind: str) -> tuple[float | None, float | None, int]:
        """Return the agreement, its standard error, and the rows it was judged on."""
        if kind == "similarity" and self.embeddings:
            want = np.concatenate([a for a, _ in self.embeddings])
            got = np.concatenate([b for _, b in self.embeddings])
            if len(want) < FEWEST_EMBEDDINGS:
                return None, None, 0
            share = max(0.0, correlation(similarities(want), similarities(got)))
            return share, (1 - share**2) / math.sqrt(len(want) - 1), len(want)
        if not self.rows:
            return None, None, 0
        return self.agreeing / self.rows, share_error(self.agreeing, self.rows), self.rows


def _probabilities(rows: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return rows of probabilities as they are, rows of logits through softmax."""
    if (rows >= 0).all() and np.allclose(rows.sum(axis=1), 1.0, atol=1e-3):
        return rows
    shifted: NDArray[np.float64] = np.exp(rows - rows.max(axis=1, keepdims=True))
    shifted /= shifted.sum(axis=1, keepdims=True)
    return shifted


def similarities(rows: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the inner product of every pair of different rows: [n, d] gives [n (n - 1) / 2]."""
    first, second = np.triu_indices(len(rows), k=1)
    products: NDArray[np.float64] = (rows @ rows.T)[first, second]
    return products


def correlation(a: NDArray[np.float64], b: NDArray[np.float64]) -> float:
    """Return Spearman's rank correlation of two vectors; ties share their mean rank, constant vectors give 0."""
    ranks = [_ranks(a), _ranks(b)]
    if any(float(np.ptp(each)) == 0.0 for each in ranks):
        return float(np.array_equal(a, b))
    return float(np.corrcoef(ranks[0], ranks[1])[0, 1])


def _ranks(values: NDArray[np.float64]) -> NDArray[np.float64]:
    _, place, counts = np.unique(values, return_inverse=True, return_counts=True)
    ranks: NDArray[np.float64] = (np.cumsum(counts) - (counts - 1) / 2)[place]
    return ranks


def _decibel(signal: float, noise: float) -> float:
    if noise == 0.0:
        return SQNR_CEILING_DB
    if signal == 0.0 or not math.isfinite(noise):
        return -SQNR_CEILING_DB
    return min(SQNR_CEILING_DB, 10.0 * math.log10(signal / noise))


class Judge:
    """Measures candidates against one reference on one set of held-back feeds.

    Attributes:
        session: The reference's session.

    Args:
        reference: The original model: a model in memory, a path or a bundle folder.
        feeds: Held-back data; never used for compression.
        metric: The user's metric, or None to judge by agreement or SQNR.
        threads: Intra-op threads of the sessions.
    """

    def __init__(self, reference: Source, feeds: Feeds, *, metric: Metric | None = None, threads: int = 1) -> None:
        self.session = open_session(reference, threads=threads)
        self._feeds = feeds
        self._threads = threads
        self._metric = metric
        self._cache: list[Outputs] | None = None
        self._metric_reference: float | None = None
        self._kind: str | None = None

    def on(self, feeds: Feeds) -> Judge:
        """Return a judge with the same reference and metric on other feeds."""
        other = copy.copy(self)
        other._feeds, other._cache, other._kind, other._metric_reference = feeds, None, None, None
        return other

    def measure(self, candidate: Source) -> Quality:
        """Run the candidate on every held-back feed.

        Raises:
            DataError: The held-back data is empty, or the metric did not return a number.
        """
        return self.measure_session(open_session(candidate, threads=self._threads))

    def measure_session(self, other: ort.InferenceSession) -> Quality:
        """Measure a candidate whose session is open already; see `measure`."""
        tally = _Tally()
        kind = self._decide_kind()
        for feed, want in self._reference_outputs():
            tally.add(kind, want, run(other, feed))
            tally.samples += 1
        if not tally.samples:
            raise DataError("no feed is left for judging", must="At least one held-back sample is needed")
        agreement, error, rows = tally.agreement(kind)
        loss, loss_error = tally.expected_loss() if kind == "top-1" and tally.rows else (None, None)
        metric, metric_reference = self._measure_metric(other)
        if metric is not None:
            kind = "metric"
        elif agreement is None:
            kind = "sqnr"
        return Quality(
            kind=kind,
            samples=tally.samples,
            rows=rows,
            agreement=agreement,
            standard_error=error,
            sqnr_db=tally.sqnr_db(),
            expected_loss=loss,
            expected_loss_error=loss_error,
            metric=metric,
            metric_reference=metric_reference,
        )

    def _decide_kind(self) -> str:
        if self._kind is None:
            self._kind = kind_of(np.asarray(next(iter(want.values()))) for _, want in self._reference_outputs())
        return self._kind

    def _reference_outputs(self) -> Iterator[tuple[Outputs, Outputs]]:
        if self._cache is not None:
            yield from zip(self._feeds, self._cache, strict=True)
            return
        kept: list[Outputs] | None = []
        size = 0
        for feed in self._feeds:
            want = run(self.session, feed)
            if kept is not None:
                size += sum(np.asarray(value).nbytes for value in want.values())
                kept.append(want)
                if size > CACHE_BYTES:
                    kept = None
            yield feed, want
        self._cache = kept

    def _measure_metric(self, candidate: ort.InferenceSession) -> tuple[float | None, float | None]:
        if self._metric is None:
            return None, None
        if self._metric_reference is None:
            self._metric_reference = self._call_metric(self.session)
        return self._call_metric(candidate), self._metric_reference

    def _call_metric(self, subject: ort.InferenceSession) -> float:
        assert self._metric is not None
        value = self._metric(lambda feed: run(subject, feed), self._feeds)
        try:
            number = float(value)
        except (TypeError, ValueError) as error:
            raise DataError(
                f"the metric returned {value!r}", must="A metric returns one number, larger is better"
            ) from error
        if not math.isfinite(number):
            raise DataError(f"the metric returned {number}", must="A metric returns a finite number, larger is better")
        return number
