"""What a bundle of the demo models gives."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

import graphopt
from graphopt import demo

if TYPE_CHECKING:
    from pathlib import Path


def images() -> np.ndarray:
    """Eight test images."""
    with np.load(demo.TEST) as test:
        return np.asarray(test["image"][:8])


def expected(bundle: Path) -> np.ndarray:
    """The first output of the bundle's model on the eight images, in this process."""
    return np.asarray(graphopt.session(bundle).run(None, {"image": images()})[0])
