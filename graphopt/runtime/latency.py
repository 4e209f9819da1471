"""Latency: median milliseconds of sessions that run in turn, so that a disturbance hits all of them alike."""

from __future__ import annotations

import contextlib
import os
import statistics
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from graphopt.errors import UsageError
from graphopt.runtime.session import Feed, bare_run, run

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

_MOST_RUNS = 200
_FEWEST_RUNS = 7
_LAST_CPU_FIELD = 36  # field 39 of /proc/PID/stat, counted after the name that ends with ')'


def latency(
    sessions: Sequence[Any],
    feed: Feed,
    *,
    runs: int | None = None,
    warmup: int = 5,
    budget_seconds: float = 4.0,
    pin: bool = True,
) -> list[float]:
    """Measure the latency of sessions on one feed, run in turn.

    Args:
        sessions: The sessions to compare.
        feed: The feed, for all of them.
        runs: Timed runs of each; None chooses 7 to 200 that fit the time budget.
        warmup: Untimed runs of each before.
        budget_seconds: Time for all timed runs together where ``runs`` is None.
        pin: Keep the calling thread on one CPU meanwhile (where the system can), which the threads of the sessions'
            own pools are not bound by.

    Returns:
        Median milliseconds of each session.

    Raises:
        DataError: The feed does not fit.
        UsageError: ``runs`` is below 1.
    """
    return [
        statistics.median(times)
        for times in timings(sessions, feed, runs=runs, warmup=warmup, budget_seconds=budget_seconds, pin=pin)
    ]


def timings(
    sessions: Sequence[Any],
    feed: Feed,
    *,
    runs: int | None = None,
    warmup: int = 5,
    budget_seconds: float = 4.0,
    pin: bool = True,
) -> list[list[float]]:
    """Measure as ``latency`` does and return all times in milliseconds, one list per session."""
    if runs is not None and runs < 1:
        raise UsageError(f"{runs} timed runs", must="At least one run is needed.")
    with _pinned() if pin else contextlib.nullcontext():
        slowest_round = 0.0
        for _ in range(max(warmup, 1)):
            start = time.perf_counter()
            for session in sessions:
                run(session, feed)  # checks the feed with a readable error
            slowest_round = time.perf_counter() - start
        if runs is None:
            runs = min(max(int(budget_seconds / max(slowest_round, 1e-6)), _FEWEST_RUNS), _MOST_RUNS)
        times: list[list[float]] = [[] for _ in sessions]
        calls = [bare_run(session, feed) for session in sessions]
        for number in range(runs):
            order = range(len(sessions)) if number % 2 == 0 else range(len(sessions) - 1, -1, -1)
            for index in order:
                start = time.perf_counter()
                calls[index]()
                times[index].append((time.perf_counter() - start) * 1e3)
    return times


@contextlib.contextmanager
def _pinned() -> Iterator[None]:
    """Keep the calling thread on the CPU it runs on; a system without affinity is left as it is."""
    if not hasattr(os, "sched_setaffinity"):
        yield
        return
    before = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, {_current_cpu(before)})
    except OSError:
        yield
        return
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def _current_cpu(allowed: set[int]) -> int:
    stat = Path("/proc/self/stat")
    if stat.is_file():
        current = int(stat.read_text().rpartition(")")[2].split()[_LAST_CPU_FIELD])
        if current in allowed:
            return current
    return max(allowed)
