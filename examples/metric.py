"""A metric of your own, for `--metric metric:accuracy` (run where Python finds this file) or `metric=accuracy`.

A metric gets a function that runs the model on one feed, and the held-back feeds; it returns a number, larger is
better. It may bring its own labelled data, as here. `--max-drop` is in its units: percentage points of accuracy.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

import numpy as np

from graphopt import demo

Feed = Mapping[str, np.ndarray]


def accuracy(run: Callable[[Feed], Feed], feeds: Iterable[Feed]) -> float:
    """Return the percentage of the labelled test images that the model classifies right."""
    with np.load(demo.TEST) as test:
        logits = run({"image": test["image"]})["logits"]
        return 100.0 * float((logits.argmax(axis=1) == test["label"]).mean())
