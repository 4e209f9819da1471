"""The feeds of one compilation: what passes may look at, and what the result is judged on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from graphopt.errors import RunError
from graphopt.runtime import Feeds, input_specs, random_feeds, run
from graphopt.verify.quality import open_session

if TYPE_CHECKING:
    from graphopt.graph import Model
    from graphopt.runtime.feeds import Source

RANDOM_SAMPLES = 16
"""Seeded random feeds that stand in where the user gave no data."""

HELD_BACK_SAMPLES = 64
"""Held back at least, where there are twice as many (else half): 16 that all agree leave 4 points open, 64 only 1."""

UNSEEN_SAMPLES = 256
"""Samples that a pass which looks at no data is judged on, at most: more of them make the guard surer."""


@dataclass(frozen=True, slots=True)
class Samples:
    """The feeds of one compilation.

    Attributes:
        calibration: What passes may look at; None without data.
        held_back: What the result is judged on; None where the model runs on none.
        unseen: What a pass that looks at no data may be judged on: all of the data, up to a number.
        notes: Sentences for the report.
    """

    calibration: Feeds | None
    held_back: Feeds | None
    unseen: Feeds | None
    notes: tuple[str, ...] = ()

    @classmethod
    def unused(cls, model: Model) -> Samples:
        """Return no feeds at all, and say that nothing will be measured."""
        size = sum(constant.nbytes for graph in model.graphs() for constant in graph.initializers)
        return cls(None, None, None, (f"The models were not run ({size >> 20} MiB of weights): nothing was measured.",))

    @classmethod
    def of(cls, model: Model, data: Source | Feeds | None, seed: int) -> Samples:
        """Divide the user's data; without any, random feeds are what is judged on."""
        inputs = input_specs(model)
        if data is not None:
            feeds = data if isinstance(data, Feeds) else Feeds.open(data, inputs)
            if len(feeds) < 2:
                return cls(feeds, feeds, feeds, ("There is one sample only: it both calibrates and judges.",))
            calibration, held_back = feeds.split(at_least=HELD_BACK_SAMPLES)
            return cls(calibration, held_back, feeds.take(max(UNSEEN_SAMPLES, len(held_back))))
        random = random_feeds(inputs, count=RANDOM_SAMPLES, seed=seed)
        try:
            tried = open_session(model, threads=1)
            for feed in random:  # which of them are legal, as indices are, may be seen on the last one only
                run(tried, feed)
        except RunError as error:
            note = f"No data was given and the model does not run on random inputs, so nothing was measured: {error}"
            return cls(None, None, None, (note,))
        note = f"No data was given: outputs were compared on {RANDOM_SAMPLES} seeded random inputs."
        return cls(None, random, random, (note,))
