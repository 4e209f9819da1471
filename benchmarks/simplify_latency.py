"""Run time of results beside their originals: ONNX Runtime's default optimizations, one thread, sessions in turn.

With one thread a session runs in the calling thread, so its CPU time is its latency without what other jobs on the
machine take: that is what ratios are of. Milliseconds on the clock are reported beside.
"""

from __future__ import annotations

import os
import statistics
import time
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks.simplify_values import feeds_for
from graphopt.runtime import run, session

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    import onnxruntime as ort

    from benchmarks.simplify_values import Feed

Row = dict[str, Any]
_AGAIN = "original again"
_WARM_UP = 5
_FEWEST_RUNS, _MOST_RUNS = 15, 1000
_SIGMA_OF_MAD = 1.4826
_ERROR_OF_MEDIAN = 1.2533


def latency_row(
    model: Path, results: Mapping[str, Path], data: Path | None, *, repeats: int, seconds: float
) -> tuple[Row, list[str]]:
    """Measure the original, itself once more, and results in turn on one feed, and return numbers and a summary.

    Every repeat makes new sessions, since where a session's memory lies changes its speed for its whole life. The
    second session of the original shows how far two equal sessions differ: the noise that a ratio must be judged with.
    """
    feed = feeds_for(model, session(model, optimize=False), data, 0)[0]
    names = ["original", _AGAIN, *results]
    paths = [model, model, *results.values()]
    ratios: dict[str, list[float]] = {name: [] for name in names[1:]}
    errors: dict[str, list[float]] = {name: [] for name in names[1:]}
    medians: dict[str, list[float]] = {name: [] for name in names}
    for repeat in range(repeats):
        order = range(len(paths)) if repeat % 2 == 0 else range(len(paths) - 1, -1, -1)
        made = {i: session(paths[i]) for i in order}
        clock, cpu = timed([made[i] for i in range(len(paths))], feed, seconds)
        for name, own in zip(names, clock, strict=True):
            medians[name].append(float(np.median(own)))
        for name, own in zip(names[1:], cpu[1:], strict=True):
            pairs = own / cpu[0]
            ratios[name].append(float(np.median(pairs)))
            errors[name].append(standard_error(pairs))
    row: Row = {"runs": int(cpu.shape[1]), "repeats": repeats, "results": {}}
    noise = spread(ratios[_AGAIN], errors[_AGAIN])
    row["noise"] = round(noise, 4)
    row["original_ms"] = round(statistics.median(medians["original"]), 4)
    lines = [f"original {row['original_ms']:.3f} ms, two sessions of it differ by {100 * noise:.1f} %"]
    for name in results:
        ratio = statistics.median(ratios[name])
        beyond = max(noise, spread([value / ratio for value in ratios[name]], errors[name]))
        found = {
            "ms": round(statistics.median(medians[name]), 4),
            "ratio": round(ratio, 4),
            "ratios": [round(value, 4) for value in ratios[name]],
            "noise": round(beyond, 4),
            "slower": ratio > 1 + beyond,
        }
        row["results"][name] = found
        verdict = "SLOWER" if found["slower"] else "faster" if ratio < 1 - beyond else "same"
        lines.append(f"{name} {found['ms']:.3f} ms, ratio {ratio:.3f} +- {beyond:.3f} ({verdict})")
    return row, lines


def timed(sessions: Sequence[ort.InferenceSession], feed: Feed, seconds: float) -> tuple[np.ndarray, np.ndarray]:
    """Run sessions in turn on one core; return milliseconds on the clock and of CPU, a row for each session."""
    allowed = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {max(allowed)})
    try:
        for _ in range(_WARM_UP):
            start = time.perf_counter()
            for one in sessions:
                run(one, feed)
            runs = int(seconds / (time.perf_counter() - start))
        runs = min(max(runs, _FEWEST_RUNS), _MOST_RUNS)
        clock, cpu = np.zeros((len(sessions), runs)), np.zeros((len(sessions), runs))
        for number in range(runs):
            order = range(len(sessions)) if number % 2 == 0 else range(len(sessions) - 1, -1, -1)
            for index in order:
                started, begun = time.perf_counter_ns(), time.thread_time_ns()
                sessions[index].run(None, feed)
                cpu[index, number] = (time.thread_time_ns() - begun) / 1e6
                clock[index, number] = (time.perf_counter_ns() - started) / 1e6
    finally:
        os.sched_setaffinity(0, allowed)
    return clock, cpu


def standard_error(values: np.ndarray) -> float:
    """Return the standard error of the median, from the median absolute deviation, which outliers do not move."""
    deviation = _SIGMA_OF_MAD * float(np.median(np.abs(values - np.median(values))))
    return _ERROR_OF_MEDIAN * deviation / float(np.sqrt(len(values)))


def spread(ratios: Sequence[float], errors: Sequence[float]) -> float:
    """Return how far from 1 ratios come that should be 1: the largest distance seen, or twice the largest error."""
    return max(*(abs(ratio - 1) for ratio in ratios), 2 * max(errors))
