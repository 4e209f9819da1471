"""Sessions timed in turn, so that a disturbance hits all of them alike."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import numpy as np
import onnxruntime as ort

from graphopt.runtime import session

if TYPE_CHECKING:
    from numpy.typing import NDArray

_FEWEST_RUNS = 7
_FINE_CLOCK = 1e-5  # seconds; some systems count the time of a thread in ticks of milliseconds

STOP_SPINNING = {"session.force_spinning_stop": "1"}
"""Threads of a session that has run would spin on through the runs of the others, each session having its own."""


class Candidate:
    """A session with its input and outputs bound, so that a run allocates and copies nothing.

    Args:
        model: Serialized model with one input ``x``.
        x: The input.
        threads: Threads inside one operator.
    """

    def __init__(self, model: bytes, x: NDArray[np.float32], *, threads: int = 1) -> None:
        self._session = session(model, threads=threads, kernels=True, config=STOP_SPINNING)
        self._binding = self._session.io_binding()
        self._input = ort.OrtValue.ortvalue_from_numpy(x)  # the binding does not keep the array alive, this does
        self._binding.bind_ortvalue_input("x", self._input)
        self._outputs: list[Any] = []
        for spec in self._session.get_outputs():
            self._outputs.append(ort.OrtValue.ortvalue_from_numpy(np.zeros(spec.shape, np.float32)))
            self._binding.bind_ortvalue_output(spec.name, self._outputs[-1])

    def run(self) -> None:
        """Run once."""
        self._session.run_with_iobinding(self._binding)

    def results(self) -> list[NDArray[np.float32]]:
        """Run once and return the outputs."""
        self.run()
        return [value.numpy().copy() for value in self._outputs]


def timings(candidates: list[Candidate], *, seconds: float, threads: int = 1, untimed: int = 0) -> list[list[float]]:
    """Return the times of each candidate in seconds; they take turns, there and back.

    With one thread the CPU time of the calling thread counts, which other jobs on the machine disturb little; with
    more, and where the system has no fine clock of that kind, the wall time.

    Args:
        candidates: What is timed.
        seconds: Wall time for all runs together; each candidate runs seven times at least.
        threads: Threads of each session.
        untimed: Runs at the beginning of each turn that do not count. With none of them a run finds in the caches what
            the others left, with one what a model that runs alone would find.
    """
    own = threads == 1 and time.get_clock_info("thread_time").resolution <= _FINE_CLOCK
    clock = time.thread_time if own else time.perf_counter
    for candidate in candidates:
        candidate.run()
    times: list[list[float]] = [[] for _ in candidates]
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(times[0]) < _FEWEST_RUNS:
        forth = len(times[0]) % 2 == 0
        order = range(len(candidates)) if forth else range(len(candidates) - 1, -1, -1)
        for index in order:
            for _ in range(untimed):
                candidates[index].run()
            start = clock()
            candidates[index].run()
            times[index].append(clock() - start)
    return times
