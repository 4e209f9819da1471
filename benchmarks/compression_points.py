"""The points of the comparison: how far a model is compressed, and the loss that is aimed at."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Point:
    """One way and degree of compression; what is 0 is not asked for.

    Attributes:
        name: Name in tables and on the command line.
        sparsity: Share of weights that become zero.
        kept: With ``group``: so many weights of each group along the reduction axis may stay.
        group: Size of such a group.
        rows: Zeros come in blocks of so many outputs by one input.
        channels: Share of the inner channels that are removed.
        levels: Values that one weight may take: 16 for 4 bits, 3 for ternary.
        block: One scale for so many weights along the reduction axis; 0 is one scale per output channel or tensor.
        activations: Bits of the inputs of layers; 0 leaves them float.
    """

    name: str
    sparsity: float = 0.0
    kept: int = 0
    group: int = 0
    rows: int = 0
    channels: float = 0.0
    levels: int = 0
    block: int = 0
    activations: int = 0

    @property
    def bits(self) -> int:
        """Bits of a weight; 0 where weights stay float."""
        return (self.levels - 1).bit_length() if self.levels else 0

    def to_json(self) -> dict[str, Any]:
        """Return the fields."""
        return asdict(self)


POINTS = (
    Point("prune-20", sparsity=0.2),
    Point("prune-30", sparsity=0.3),
    Point("prune-50", sparsity=0.5),
    Point("prune-70", sparsity=0.7),
    Point("prune-80", sparsity=0.8),
    Point("prune-90", sparsity=0.9),
    Point("2:4", sparsity=0.5, kept=2, group=4),
    Point("4x1-70", sparsity=0.7, rows=4),
    Point("channels-25", channels=0.25),
    Point("channels-50", channels=0.5),
    Point("w8a8", levels=256, activations=8),
    Point("w4a8", levels=16, activations=8),
    Point("w4", levels=16),
    Point("w4-32", levels=16, block=32),
    Point("w3", levels=8),
    Point("w4a4", levels=16, activations=4),
    Point("ternary", levels=3),
    Point("binary", levels=2),
    Point("prune-70+w4", sparsity=0.7, levels=16),
)
_VISION = (
    *("prune-50", "prune-70", "prune-80", "prune-90", "2:4", "4x1-70", "channels-25", "channels-50"),
    *("w8a8", "w4a8", "w3", "w4a4", "ternary", "binary", "prune-70+w4"),
)
POINTS_OF = {
    "resnet20": _VISION,
    "squeezenet": _VISION,
    "kws": _VISION,
    "minilm": ("prune-50", "prune-70", "2:4", "4x1-70", "channels-25", "w8a8", "w4", "w4-32", "w3", "prune-70+w4"),
    "llama": ("prune-20", "prune-30", "prune-50", "2:4", "w8a8", "w4", "w4-32", "w3"),
}
"""Points by subject: 20 and 30 % and blocks of 32 are those of language models."""
GOALS = {
    "resnet20": dict(
        zip(_VISION, (0.3, 1.0, 2.5, 12.0, 0.5, 2.0, 3.0, 12.0, 0.2, 0.3, 0.5, 1.0, 3.0, 16.0, 1.0), strict=True)
    ),
    "minilm": {"prune-50": 1.0, "w4": 0.5, "w4-32": 0.5},
    "llama": {"prune-20": 3.0, "prune-30": 10.0, "w4-32": 4.0},
}
"""Largest loss aimed at, in points (percent of perplexity for the language model)."""
SECONDS = {"resnet20": 30.0, "minilm": 300.0}
"""Most seconds that one compression of ours may take, by subject."""


def point(name: str) -> Point:
    """Return a point by name."""
    return next(each for each in POINTS if each.name == name)
