"""How well a compressed model still answers, measured against the original on held-back data, without labels.

The first output decides what is counted:

* class scores (rows of logits or of probabilities, or of the bytes of a fully quantized model) and token logits: top-1
  agreement, the share of rows whose largest entry is the same in both models;
* embeddings (rows of length one): Spearman's rank correlation, over all pairs of rows, of their similarity in one model
  and in the other, since pairs are what embeddings are compared by;
* anything else: the signal-to-quantization-noise ratio (SQNR) of the worst output, in dB.

Where two classes are nearly equal, the other model's choice is right about as often. The expected loss weighs each
changed choice by what the reference itself thinks of it: mean(p[its choice] - p[the other choice]) over its
probabilities p. It estimates the accuracy lost, without labels, from far fewer samples than a count of changed choices.
The divergence KL(reference || candidate) of the two distributions, in nats, sees also what changes no choice.

SQNR is recorded for every output in every case. The standard error of an agreement p over n rows is
sqrt(p (1 - p) / n) with half an observation added on either side, that of a correlation r about
(1 - r^2) / sqrt(n - 1), that of a divergence the spread over the rows / sqrt(n), and that of an SQNR follows from the
spread of the noise over the samples.
"""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np

from graphopt.errors import DataError, GraphoptError
from graphopt.runtime import run, session
from graphopt.verify.tally import SQNR_CEILING_DB, Outputs, Tally, kind_of, share_error

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    import onnxruntime as ort

    from graphopt.graph import Model
    from graphopt.runtime import Feeds

    Source = Model | Path | str

SQNR_TARGET_DB = 40.0
"""Drops of models that are judged by SQNR are counted from here (a drop of 10 means 30 dB)."""

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
        kl: KL(reference || candidate) of the first output's distributions, mean over rows, in nats; None unless they
            are class scores.
        kl_error: Its standard error, in nats.
        sqnr_error_db: Standard error of the worst SQNR, in dB; None for equal outputs or a single sample.
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
    kl: float | None = None
    kl_error: float | None = None
    sqnr_error_db: float | None = None

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
        if self.kind == "sqnr":
            return self.sqnr_error_db or 0.0
        if self.kind != "top-1" or self.agreement is None or not self.rows:
            return 0.0
        return 100.0 * share_error(self.agreement * self.rows, self.rows)

    @property
    def unit(self) -> str:
        """Unit of ``drop``."""
        return {"metric": "metric units", "sqnr": "dB of SQNR below 40"}.get(self.kind, "points of agreement")


def open_session(source: Source, *, threads: int) -> ort.InferenceSession:
    """Return a session; a model in memory that uses the kernels' operators gets this installation's library."""
    if isinstance(source, str | Path):
        return session(source, threads=threads)
    return session(source, threads=threads, kernels="ai.graphopt" in source.opset_imports)


def quality_of(tally: Tally, *, metric: float | None = None, metric_reference: float | None = None) -> Quality:
    """Return what was counted as a measurement.

    Args:
        tally: Sums over at least one feed.
        metric: The user's metric of the candidate, or None.
        metric_reference: The same of the reference.
    """
    agreement, error, rows = tally.agreement()
    loss, loss_error = tally.loss.figures() or (None, None)
    kl, kl_error = tally.divergence.figures() or (None, None)
    kind = "metric" if metric is not None else "sqnr" if agreement is None else tally.kind
    return Quality(
        kind=kind,
        samples=tally.samples,
        rows=rows,
        agreement=agreement,
        standard_error=error,
        sqnr_db=tally.sqnr_db(),
        expected_loss=None if loss is None else 100.0 * loss,
        expected_loss_error=None if loss_error is None else 100.0 * loss_error,
        metric=metric,
        metric_reference=metric_reference,
        kl=kl,
        kl_error=kl_error,
        sqnr_error_db=tally.sqnr_error_db(),
    )


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
        tally = Tally(self._decide_kind())
        for feed, want in self._reference_outputs():
            tally.add(want, run(other, feed))
        if not tally.samples:
            raise DataError("no feed is left for judging", must="At least one held-back sample is needed")
        metric, metric_reference = self._measure_metric(other)
        return quality_of(tally, metric=metric, metric_reference=metric_reference)

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
        try:
            value = self._metric(lambda feed: run(subject, feed), self._feeds)
        except GraphoptError:
            raise
        except (Exception, SystemExit) as error:  # whatever the user's function raises
            raise DataError(
                f"the metric raised {type(error).__name__}: {error}",
                must="A metric is called with (run, feeds) and returns one number, larger is better",
                do="Correct it; --debug shows where it happened",
            ) from error
        try:
            number = float(value)
        except (TypeError, ValueError) as error:
            raise DataError(
                f"the metric returned {value!r}", must="A metric returns one number, larger is better"
            ) from error
        if not math.isfinite(number):
            raise DataError(f"the metric returned {number}", must="A metric returns a finite number, larger is better")
        return number


__all__ = ["SQNR_CEILING_DB", "Judge", "Metric", "Quality", "kind_of", "open_session", "quality_of"]
