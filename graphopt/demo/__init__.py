"""Two small models trained on scikit-learn's digits, with data: what `graphopt demo` and the examples run on.

Both models take ``image``, float32 [batch, 1, 8, 8] with values 0..1, and give ``logits``, float32 [batch, 10].
`examples/train_digits.py` made all four files.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

_HERE: Final = Path(__file__).resolve().parent

CNN: Final = _HERE / "digits_cnn.onnx"
"""A residual CNN of 112 000 weights, its BatchNormalization nodes kept."""

TRANSFORMER: Final = _HERE / "digits_transformer.onnx"
"""A transformer of 280 000 weights over 64 tokens, trained with an L1 penalty so that it can be pruned."""

CALIBRATION: Final = _HERE / "digits_calibration.npz"
"""Training images without labels: one array ``image``."""

TEST: Final = _HERE / "digits_test.npz"
"""Images that no model was trained on, with their classes: arrays ``image`` and ``label``."""

Feed = Mapping[str, NDArray[np.generic]]


def accuracy(run: Callable[[Feed], Feed], feeds: Iterable[Feed]) -> float:
    """Return the percentage of test images that a model classifies right: a metric for ``--metric``.

    Args:
        run: Runs the model on one feed.
        feeds: The held-back feeds; this metric has labelled data of its own and does not use them.
    """
    with np.load(TEST) as test:
        images, labels = test["image"], test["label"]
    logits = np.asarray(run({"image": images})["logits"])
    return float(100.0 * (logits.argmax(axis=1) == labels).mean())
