"""What is done to a random network: a compressing pass with random options, passes before and behind it."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from graphopt.rewrite import Pass, create, load_recipe

if TYPE_CHECKING:
    from collections.abc import Callable

PRUNING = ("prune-magnitude", "prune-second-order", "prune-wanda")
PATTERNS = ("unstructured", "unstructured", "2:4", "1:4", "4:8", "4x1", "8x1", "16x1", "1x4", "4x4")


@dataclass(frozen=True)
class Plan:
    """What is done to a network.

    Attributes:
        before: Passes that prepare it.
        compress: The pass under test with its options.
        after: Passes behind it, through which zeros must live.
        data: Whether there is calibration data.
        verify: Level of verification.
        seed: Of the manager.
    """

    before: tuple[str, ...]
    compress: tuple[str, dict[str, Any]]
    after: tuple[str, ...]
    data: bool
    verify: str
    seed: int

    def __str__(self) -> str:
        name, options = self.compress
        words = ", ".join(f"{key}={value!r}" for key, value in options.items())
        return f"{'+'.join(self.before)} > {name}({words}) > {'+'.join(self.after)} data={self.data} {self.verify}"


def random_plan(seed: int, only: str | None = None) -> Plan:
    """Return a plan for a seed."""
    source = random.Random(f"plan {seed}")
    name = only or source.choice(list(OPTIONS))
    before = source.choice(((), (), ("fold-constants", "fuse-batch-norm"), ("default",)))
    if source.random() < 0.1 and name not in PRUNING:
        before = (*before, "prune-magnitude")
    if name == "refit-weights":
        before = (*before, "prune-magnitude")
    after = source.choice(((), (), ("default",), ("raise-opset", "fuse-bias", "insert-qdq"), ("round-weights",)))
    return Plan(
        before,
        (name, OPTIONS[name](source)),
        after,
        source.random() < 0.8,
        source.choice(("fast", "fast", "fast", "full")),
        source.choice((0, 7)),
    )


def _shared(source: random.Random) -> dict[str, Any]:
    options: dict[str, Any] = {}
    if source.random() < 0.3:
        options["samples"] = source.choice((1, 3, 512))
    if source.random() < 0.3:
        options["rows"] = source.choice((1, 40, 16384))
    if source.random() < 0.2:
        options["damping"] = source.choice((1e-9, 0.1, 1e5))
    if source.random() < 0.3:
        options["variance"] = False
    return options


def _masking(source: random.Random) -> dict[str, Any]:
    return {
        "sparsity": source.choice((0.0, 0.01, 0.3, 0.5, 0.8, 0.95, 1.0)),
        "pattern": source.choice(PATTERNS),
        "allocation": source.choice(("uniform", "size", "erk", "loss", "kl")),
        "protect_ends": source.random() < 0.3,
        "steps": source.choice((1, 1, 1, 3)),
        **_shared(source),
    }


def _magnitude(source: random.Random) -> dict[str, Any]:
    return {
        "sparsity": source.choice((0.0, 0.01, 0.3, 0.5, 0.8, 0.95, 1.0)),
        "scope": source.choice(("local", "global", "lamp", "erk", "threshold")),
        "threshold": source.choice((0.0, 0.1, 1e9)),
        "pattern": source.choice(PATTERNS),
        "protect_ends": source.random() < 0.3,
        "depthwise": source.random() < 0.5,
        "steps": source.choice((1, 1, 0, 2)),
    }


def _channels(source: random.Random) -> dict[str, Any]:
    return {
        "ratio": source.choice((0.0, 0.1, 0.25, 0.5, 0.9, 1.0)),
        "select": source.choice(("block-obs", "block-obs", "correlation", "lasso", "l1", "l2", "entropy", "random")),
        "scope": source.choice(("group", "group", "global")),
        "tied": source.random() < 0.5,
        "multiple": source.choice((1, 1, 2, 8)),
        "behind": source.random() < 0.5,
        **_shared(source),
    }


def _rounding(source: random.Random) -> dict[str, Any]:
    scheme = source.choice(("integer", "integer", "integer", "ternary", "binary", "codebook"))
    return {
        "scheme": scheme,
        "bits": source.choice((2, 3, 4, 5, 6, 8)),
        "granularity": source.choice(("tensor", "channel", "channel", "block")),
        "block": source.choice((16, 32, 128)),
        "symmetric": source.choice((None, None, True, False)),
        "method": source.choice(("auto", "auto", "gptq", "nearest", *(("adaround",) if source.random() < 0.2 else ()))),
        "allocation": "kl" if source.random() < 0.15 else "uniform",
        "ends_bits": source.choice((8, 8, 4, 2)),
        **_shared(source),
    }


def _qdq(source: random.Random) -> dict[str, Any]:
    return {
        "activations": source.choice(("auto", "uint8", "int4", "dynamic", "none")),
        "per_channel": source.random() < 0.7,
        "calibrator": source.choice(("auto", "minmax", "percentile", "mse")),
        "correct_bias": source.random() < 0.7,
    }


OPTIONS: dict[str, Callable[[random.Random], dict[str, Any]]] = {
    "prune-magnitude": _magnitude,
    "prune-second-order": lambda source: {**_masking(source), "method": source.choice(("auto", "obs", "sparsegpt"))},
    "prune-wanda": lambda source: {**_masking(source), "refit": source.random() < 0.7},
    "prune-channels": _channels,
    "round-weights": _rounding,
    "refit-weights": _shared,
    "equalize-layers": lambda source: {"absorb": source.random() < 0.5},
    "smooth-activations": lambda source: {"alpha": source.choice((0.0, 0.5, 1.0))},
    "scale-channels": lambda source: {
        "granularity": source.choice(("block", "channel")),
        "bits": source.choice((2, 4)),
    },
    "insert-qdq": _qdq,
}


def passes_of(names: tuple[str, ...]) -> list[Pass]:
    """Return passes by name; ``default`` stands for all of that preset."""
    found: list[Pass] = []
    for name in names:
        found += load_recipe("default").create() if name == "default" else [create(name)]
    return found
