"""The data that layers are observed on: complete feeds, a few samples each, read anew each time they are wanted."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

    from graphopt.runtime import Feeds
    from graphopt.runtime.feeds import Feed

BATCH = 8
"""Samples per run where the batch axis is free."""

LEAST_BATCHES = 8
"""Whole batches are kept from the fit, so there must be some."""


@dataclass(frozen=True, slots=True)
class Batches:
    """Feeds joined to batches. Nothing is held: each iteration reads the data again.

    Attributes:
        feeds: The samples.
        size: Samples in a batch, at most.
    """

    feeds: Feeds
    size: int

    @classmethod
    def of(cls, feeds: Feeds, samples: int) -> Batches:
        """Return batches of at most so many samples, spread evenly over the data."""
        feeds = feeds.take(samples)
        return cls(feeds, max(1, min(BATCH, len(feeds) // LEAST_BATCHES)))

    @property
    def counter(self) -> str:
        """Name of an input whose first axis counts the samples of a batch; empty where each sample is a batch."""
        return next(spec.name for spec in self.feeds.inputs if spec.required) if self.feeds.batchable else ""

    def __iter__(self) -> Iterator[Feed]:
        """Yield the batches."""
        return self.feeds.batches(self.size)

    def __bool__(self) -> bool:
        """Return that there is data, without counting it."""
        return True

    def __len__(self) -> int:
        """Return the number of batches: counted by reading the data where samples may differ in shape."""
        if not self.feeds.batchable:
            return len(self.feeds)
        if all(isinstance(size, int) for spec in self.feeds.inputs for size in (spec.shape or (None, None))[1:]):
            return math.ceil(len(self.feeds) / self.size)
        return sum(1 for _ in self)
