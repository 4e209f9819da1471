"""Sums what two models answered to the same feeds: choices, distributions, similarities and noise, output by output."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from collections.abc import Iterable


Outputs = Mapping[str, NDArray[np.generic]]
"""What a model answered, by the names of its outputs."""

SQNR_CEILING_DB = 200.0
"""Reported for outputs that are equal bit for bit, whose ratio has no finite value."""

TOKEN_CLASSES = 32
"""Fewest entries in the last axis of a rank-3 output for it to be taken as token logits."""

FEWEST_EMBEDDINGS = 4
"""Fewer rows have no correlation worth the name and are judged by SQNR."""

LEAST_PROBABILITY = float(np.finfo(np.float32).tiny)
"""What a probability of 0 counts as in the divergence: a float32 softmax writes 0 where it underflows."""

_WORST_DIVERGENCE = -math.log(LEAST_PROBABILITY)


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
        if _are_byte_scores(output):
            within_unit = False
            unit_length = False
            continue
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


def _are_byte_scores(output: NDArray[np.generic]) -> bool:
    """Tell whether an output is class scores on a grid of 8 bits, [n, classes], as fully quantized models have them."""
    return output.dtype in {np.dtype(np.uint8), np.dtype(np.int8)} and output.ndim == 2 and output.shape[-1] > 1


@dataclass(slots=True)
class Mean:
    """A running mean with its standard error."""

    total: float = 0.0
    squares: float = 0.0
    count: int = 0

    def add(self, values: NDArray[np.float64]) -> None:
        """Take in independent values, [n]."""
        self.total += float(values.sum())
        self.squares += float(np.square(values).sum())
        self.count += values.size

    def figures(self) -> tuple[float, float] | None:
        """Return the mean and its standard error (0 for a single value); None where there is no value."""
        if not self.count:
            return None
        mean = self.total / self.count
        variance = max(0.0, self.squares / self.count - mean**2)
        return mean, math.sqrt(variance / max(1, self.count - 1))


@dataclass(slots=True)
class Tally:
    """Sums over feeds, so that memory does not grow with the data.

    Attributes:
        kind: What is counted of the first output; see `kind_of`.
        samples: Complete feeds seen.
        rows: Rows of the first output whose choices were compared.
        agreeing: Rows with the same choice.
        loss: Expected accuracy lost, per row.
        divergence: KL(reference || candidate) in nats, per row.
    """

    kind: str
    samples: int = 0
    rows: int = 0
    agreeing: int = 0
    loss: Mean = field(default_factory=Mean)
    divergence: Mean = field(default_factory=Mean)
    _signal: dict[str, float] = field(default_factory=dict)
    _noise: dict[str, Mean] = field(default_factory=dict)
    _embeddings: list[tuple[NDArray[np.float64], NDArray[np.float64]]] = field(default_factory=list)

    def add(self, reference: Outputs, candidate: Outputs, *, samples: int = 1) -> None:
        """Take in what both models answered to one feed.

        Args:
            reference: Outputs of the reference by name, the first of them the one that is judged.
            candidate: Outputs of the candidate.
            samples: Samples that the feed holds, along the first axis of each output where that has so many entries.
        """
        self.samples += samples
        for position, (name, want) in enumerate(reference.items()):
            got = candidate[name]
            if not isinstance(want, np.ndarray) or want.dtype.kind not in "fiub":
                continue
            judged = self.kind if position == 0 else ""
            if want.shape != got.shape:
                self._mismatch(name, want if judged == "top-1" else None)
                continue
            self._add_energy(name, want, got, samples)
            if judged == "top-1":
                self._add_choices(want.reshape(-1, want.shape[-1]), got.reshape(-1, got.shape[-1]))
            elif judged == "similarity":
                self._embeddings.append((want.astype(np.float64), got.astype(np.float64)))

    def _add_choices(self, want: NDArray[np.generic], got: NDArray[np.generic]) -> None:
        right, chosen = want.argmax(axis=1), got.argmax(axis=1)
        if want.dtype.kind != "f":  # many scores share a code, whose scale is not known: any of the best is right
            best = np.take_along_axis(want, chosen[:, None], axis=1)[:, 0] == want.max(axis=1)
            self.rows += len(right)
            self.agreeing += int(best.sum())
            return
        broken = np.isnan(got.astype(np.float64)).any(axis=1)  # argmax names the first NaN, which is no choice
        probability, divergence = divergences(want.astype(np.float64), got.astype(np.float64))
        rows = np.arange(len(right))
        self.rows += len(right)
        self.agreeing += int(((right == chosen) & ~broken).sum())
        self.loss.add(np.where(broken, 1.0, probability[rows, right] - probability[rows, chosen]))
        self.divergence.add(divergence)

    def _mismatch(self, name: str, choices: NDArray[np.generic] | None) -> None:
        # A data-dependent shape that changed: nothing of this output can be credited, and every choice is lost.
        self._noise.setdefault(name, Mean()).add(np.array([np.inf]))
        lost = 0 if choices is None else choices.size // choices.shape[-1]
        self.rows += lost
        if choices is not None and choices.dtype.kind != "f":
            return
        self.loss.add(np.ones(lost))
        self.divergence.add(np.full(lost, _WORST_DIVERGENCE))

    def _add_energy(self, name: str, want: NDArray[np.generic], got: NDArray[np.generic], samples: int) -> None:
        parts = samples if want.ndim and want.shape[0] == samples else 1
        a, b = (each.astype(np.float64).reshape(parts, -1) for each in (want, got))
        equal = (a == b) | (np.isnan(a) & np.isnan(b))
        self._signal[name] = self._signal.get(name, 0.0) + float(np.square(a[np.isfinite(a)]).sum())
        with np.errstate(invalid="ignore", over="ignore"):
            noise = np.square(np.where(equal, 0.0, a - b)).sum(axis=1)
        self._noise.setdefault(name, Mean()).add(np.where(np.isfinite(noise), noise, np.inf))

    def sqnr_db(self) -> dict[str, float]:
        """Return the ratio of signal to noise of each floating-point output, in dB."""
        return {name: _decibel(self._signal.get(name, 0.0), noise.total) for name, noise in self._noise.items()}

    def sqnr_error_db(self) -> float | None:
        """Return the standard error of the worst ratio, in dB; None where there is no noise or only one sample."""
        worst = min(self.sqnr_db().items(), key=lambda each: each[1], default=None)
        noise = self._noise[worst[0]] if worst is not None else Mean()
        figures = noise.figures() if math.isfinite(noise.total) else None
        if figures is None or noise.count < 2 or figures[0] <= 0:
            return None
        return 10.0 / math.log(10.0) * figures[1] / figures[0]

    def relative_noise(self) -> tuple[float, float]:
        """Return noise over signal of the worst output, and its standard error: what SQNR is the logarithm of."""
        found = [(0.0, 0.0)]
        for name, noise in self._noise.items():
            signal = self._signal.get(name, 0.0)
            figures = noise.figures() if math.isfinite(noise.total) else None
            if figures is None or (noise.total and not signal):
                found.append((math.inf, 0.0))
            elif signal:
                found.append((noise.total / signal, figures[1] * noise.count / signal))
        return max(found)

    def agreement(self) -> tuple[float | None, float | None, int]:
        """Return the agreement, its standard error, and the rows it was judged on."""
        if self.kind == "similarity" and self._embeddings:
            want = np.concatenate([a for a, _ in self._embeddings])
            got = np.concatenate([b for _, b in self._embeddings])
            if len(want) < FEWEST_EMBEDDINGS:
                return None, None, 0
            share = max(0.0, correlation(similarities(want), similarities(got)))
            return share, (1 - share**2) / math.sqrt(len(want) - 1), len(want)
        if not self.rows:
            return None, None, 0
        return self.agreeing / self.rows, share_error(self.agreeing, self.rows), self.rows


def divergences(want: NDArray[np.float64], got: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the probabilities of the reference, [n, classes], and KL(reference || candidate) in nats per row, [n].

    Args:
        want: Logits or probabilities of the reference, [n, classes].
        got: The same of the candidate; a row with NaN diverges as far as a row can.
    """
    if _are_probabilities(want):
        probability, log_want = want, np.log(np.maximum(want, LEAST_PROBABILITY))
        with np.errstate(invalid="ignore"):
            log_got = np.log(np.maximum(got, LEAST_PROBABILITY))
    else:
        log_want, log_got = _log_softmax(want), _log_softmax(got)
        probability = np.exp(log_want)
    with np.errstate(invalid="ignore"):
        terms = np.where(probability > 0, probability * (log_want - log_got), 0.0).sum(axis=1)
    bounded = np.minimum(np.maximum(terms, 0.0), _WORST_DIVERGENCE)  # both keep NaN
    return probability, np.where(np.isnan(bounded), _WORST_DIVERGENCE, bounded)


def _are_probabilities(rows: NDArray[np.float64]) -> bool:
    return bool((rows >= 0).all() and np.allclose(rows.sum(axis=1), 1.0, atol=1e-3))


def _log_softmax(rows: NDArray[np.float64]) -> NDArray[np.float64]:
    with np.errstate(invalid="ignore"):
        shifted = rows - rows.max(axis=1, keepdims=True)
        logarithms: NDArray[np.float64] = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    return logarithms


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
