"""The models of the comparison, their calibration draws, and how they are scored.

Scores are those of evaluate.py, the tool beside the assets, kept per sample so that two results can be compared on the
same samples: a difference has a standard error of its own, found by resampling the samples.
"""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path
    from types import ModuleType

    from numpy.typing import NDArray

    Evidence = list[NDArray[np.float64]]

RESAMPLES = 200
POOL_SHARE = 0.75
"""Where the pool has too few samples for disjoint draws, each draw takes this share of it at random."""


@dataclass(frozen=True, slots=True)
class Subject:
    """A model with its task.

    Attributes:
        name: Name in tables and on the command line.
        model: File in the folder models/, without ``.onnx``.
        task: Its task in evaluate.py.
        measure: ``accuracy`` and ``agreement`` with the float model in percent, ``spearman`` times 100, ``perplexity``.
        batch: Samples in one feed.
        keep: Names of nodes that no tool may compress.
    """

    name: str
    model: str
    task: str
    measure: str
    batch: int
    keep: tuple[str, ...] = ()


SUBJECTS = (
    Subject("resnet20", "cifar10_resnet20_legacy_op17", "cifar10", "accuracy", 16),
    Subject("squeezenet", "imagenet_squeezenet1_1_legacy_op17", "imagenet_torch", "agreement", 8),
    Subject("kws", "kws_dscnn_float_tf2onnx_op17", "kws", "accuracy", 15),
    Subject("minilm", "minilm_legacy_op17", "sts", "spearman", 16),
    Subject("llama", "stories260k_llama_legacy_op17", "stories", "perplexity", 8, ("/head/MatMul",)),
)


class Assets:
    """Models and data, and the tool that scores them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.data = folder / "data"
        self.tool = _load(folder.parent / "tools" / "evaluate.py")

    def model(self, subject: Subject) -> Path:
        """Return the file of a model."""
        return self.folder / "models" / f"{subject.model}.onnx"

    def draw(self, subject: Subject, samples: int, number: int, draws: int) -> list[dict[str, NDArray[Any]]]:
        """Return the feeds of one calibration draw: disjoint from other draws where there are samples enough.

        Args:
            subject: The model.
            samples: Samples in a draw, at most.
            number: Number of the draw, from 0.
            draws: How many there are.
        """
        pool = self._pool(subject)
        total = len(pool)
        if samples * draws <= total:
            order = np.random.default_rng(0).permutation(total)
            chosen = order[number * samples : (number + 1) * samples]
        else:
            size = min(samples, int(total * POOL_SHARE))
            chosen = np.random.default_rng(1 + number).permutation(total)[:size]
        return _batches([pool[k] for k in chosen], subject.batch, number)

    def _pool(self, subject: Subject) -> list[dict[str, NDArray[Any]]]:
        """Return every calibration sample as a feed of one, texts without padding; never one that is scored."""
        kind, _, calibration, _, _ = self.tool.TASKS[subject.task]
        if kind == "classify":
            name = self.tool.session(self.model(subject), None, 1).get_inputs()[0].name
            return [{name: row[None]} for row in np.ascontiguousarray(calibration(self.data)[0])]
        if kind == "sts":
            stored = np.load(self.data / "sts_minilm_tokens.npz")
            rows = [*stored["sts2014_images_a"], *stored["sts2014_images_b"]]
            texts = [row[row != 0].astype(np.int64)[None] for row in rows]
            return [{"input_ids": text, "attention_mask": np.ones_like(text)} for text in texts]
        tokens = np.load(self.data / "stories260k_calibration_192x128.npz")["tokens"].astype(np.int64)
        return [{"input_ids": row[None]} for row in tokens]

    def evidence(self, subject: Subject, model: Path, reference: Evidence | None = None) -> Evidence:
        """Run a model on the scored data; return what `score` needs, one entry per sample in each array.

        Args:
            subject: The model's subject.
            model: The file to run.
            reference: For agreement: the evidence of the float model; None makes it.
        """
        kind, scored, _, drop, _ = self.tool.TASKS[subject.task]
        session = self.tool.session(model, None, 1)
        if kind == "classify":
            images, labels = scored(self.data)
            found = self.tool.run_all(session, images, 50)[:, drop:].argmax(1).astype(np.float64)
            if subject.measure == "accuracy":
                return [(found == labels).astype(np.float64)]
            return [(found == (found if reference is None else reference[1])).astype(np.float64), found]
        if kind == "sts":
            stored = np.load(self.data / "sts_minilm_tokens.npz")
            made: Evidence = []
            for name in ("sts2015_headlines", "sts2015_images"):
                first, second = (self.tool.embed(session, stored[f"{name}_{side}"]) for side in "ab")
                made += [(first * second).sum(1).astype(np.float64), stored[f"{name}_score"].astype(np.float64)]
            return made
        tokens = np.load(self.data / "stories260k_tokens_16x128.npz")["tokens"].astype(np.int64)
        logits = session.run(None, {"input_ids": tokens})[0].astype(np.float64)[:, :-1]
        top = logits.max(-1, keepdims=True)
        likely = logits - top - np.log(np.exp(logits - top).sum(-1, keepdims=True))
        return [-np.take_along_axis(likely, tokens[:, 1:, None], 2).mean((1, 2))]


class Measure:
    """Scores, losses and their standard errors for one subject."""

    def __init__(self, subject: Subject, tool: ModuleType, dense: Evidence) -> None:
        self._score = _scorer(subject.measure, tool.spearman)
        self._percent = subject.measure == "perplexity"
        self._similarity = subject.measure == "spearman"
        self._spearman = tool.spearman
        self._dense = dense
        generator = np.random.default_rng(0)
        size = len(dense[0])
        self._samples = [generator.integers(0, size, size) for _ in range(RESAMPLES)]
        self._dense_scores = self._resampled(dense)

    def score(self, evidence: Evidence) -> float:
        """Return the score of a result."""
        return self._score(evidence)

    def fidelity(self, evidence: Evidence) -> float | None:
        """Return the rank correlation with the float model's own similarities, times 100; None for other measures.

        It needs no labels and moves with the size of an error, where a score may rise by one that happens to suit it.
        """
        if not self._similarity:
            return None
        pairs = ((0, self._dense[0]), (2, self._dense[2]))
        return 50 * sum(float(self._spearman(evidence[place], dense)) for place, dense in pairs)

    def drop(self, evidence: Evidence) -> float:
        """Return what a result loses: points, or percent of perplexity."""
        return float(self._loss(np.array(self._score(self._dense)), np.array(self._score(evidence))))

    def drops(self, draws: Sequence[Evidence]) -> NDArray[np.float64]:
        """Return the mean loss over the draws in each resampling: its deviation is the standard error."""
        losses = [self._loss(self._dense_scores, self._resampled(each)) for each in draws]
        return np.mean(losses, axis=0, dtype=np.float64)  # type: ignore[no-any-return]

    def _resampled(self, evidence: Evidence) -> NDArray[np.float64]:
        return np.array([self._score([array[rows] for array in evidence]) for rows in self._samples])

    def _loss(self, dense: NDArray[np.float64], found: NDArray[np.float64]) -> NDArray[np.float64]:
        return 100 * (found / dense - 1) if self._percent else dense - found


def _scorer(measure: str, spearman: Callable[..., float]) -> Callable[[Evidence], float]:
    if measure == "perplexity":
        return lambda evidence: float(np.exp(evidence[0].mean()))
    if measure == "spearman":
        return lambda evidence: 50 * (spearman(evidence[0], evidence[1]) + spearman(evidence[2], evidence[3]))
    return lambda evidence: 100 * float(evidence[0].mean())


def _batches(samples: Sequence[dict[str, NDArray[Any]]], size: int, seed: int) -> list[dict[str, NDArray[Any]]]:
    """Join samples of equal shapes to feeds of up to ``size``, in a random order."""
    groups: dict[tuple[Any, ...], list[dict[str, NDArray[Any]]]] = {}
    for sample in samples:
        groups.setdefault(tuple(array.shape for array in sample.values()), []).append(sample)
    feeds = []
    for group in groups.values():
        for start in range(0, len(group), size):
            part = group[start : start + size]
            feeds.append({name: np.concatenate([each[name] for each in part]) for name in part[0]})
    order = np.random.default_rng(seed).permutation(len(feeds))
    return [feeds[k] for k in order]


def _load(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location("evaluate", path)
    if spec is None or spec.loader is None or not path.exists():
        raise SystemExit(f"{path} is missing: the scoring tool lies beside the folder of assets")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
