"""Contestants that run one model on one feed, timed in turn."""

from __future__ import annotations

import json
import statistics
import subprocess
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from graphopt.runtime import session
from graphopt.tuning.timing import STOP_SPINNING

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from graphopt.graph import Model

    Feed = Mapping[str, NDArray[Any]]

WORKER = Path(__file__).with_name("deepsparse_worker.py")


class Contest(Protocol):
    """What takes part."""

    def outputs(self) -> list[NDArray[Any]]:
        """The results of a run."""

    def timed(self) -> tuple[float, float]:
        """Run once; seconds of wall time and of its own processor time."""

    def close(self) -> None:
        """Free what it holds."""


class Session:
    """A model in ONNX Runtime, with the kernels registered, its inputs bound."""

    def __init__(self, model: Model | bytes | str | Path, feed: Feed, threads: int) -> None:
        self._session = session(model, threads=threads, kernels=True, config=STOP_SPINNING)
        self._feed = dict(feed)
        self._binding = self._session.io_binding()
        for name, value in self._feed.items():
            self._binding.bind_cpu_input(name, value)
        for output in self._session.get_outputs():
            self._binding.bind_output(output.name, "cpu")

    def outputs(self) -> list[NDArray[Any]]:
        """Run once and return the results."""
        found: list[NDArray[Any]] = self._session.run(None, self._feed)
        return found

    def timed(self) -> tuple[float, float]:
        """Run once; seconds of wall time and of the calling thread."""
        wall, own = time.perf_counter(), time.thread_time()
        self._session.run_with_iobinding(self._binding)
        return time.perf_counter() - wall, time.thread_time() - own

    def close(self) -> None:
        """Free the session."""
        del self._binding, self._session


class DeepSparse:
    """A model in DeepSparse, in a process of its own that is asked for one run at a time."""

    def __init__(self, environment: Path, model: bytes, feed: Feed, threads: int) -> None:
        self._folder = tempfile.TemporaryDirectory()
        path, data = Path(self._folder.name) / "model.onnx", Path(self._folder.name) / "feed.npz"
        path.write_bytes(model)
        np.savez(data, allow_pickle=False, **feed)
        command = list(map(str, (environment / "bin" / "python", WORKER, path, threads, data)))
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )
        self.version = self._answer()["version"]
        with np.load(f"{data}.out.npz") as found:
            self._outputs = [found[name] for name in found.files]

    def outputs(self) -> list[NDArray[Any]]:
        """The results of the first run."""
        return self._outputs

    def timed(self) -> tuple[float, float]:
        """Run once; seconds of wall time and of the whole process."""
        assert self._process.stdin is not None
        self._process.stdin.write("run\n")
        self._process.stdin.flush()
        wall, cpu = self._answer()
        return float(wall), float(cpu)

    def close(self) -> None:
        """End the process."""
        if self._process.stdin is not None:
            self._process.stdin.close()
        self._process.wait(timeout=30)
        self._folder.cleanup()

    def _answer(self) -> Any:
        assert self._process.stdout is not None
        while True:
            line = self._process.stdout.readline()
            if not line:
                raise SystemExit("DeepSparse ended: run its worker by hand to see why")
            if line.lstrip().startswith(("{", "[")):
                return json.loads(line)


def compete(contestants: Mapping[str, Contest], *, seconds: float, threads: int) -> dict[str, dict[str, float]]:
    """Time the contestants in turn, there and back.

    Returns:
        For each name ``ms``, the median of what counts (own time with one thread, else wall time), ``wall_ms``,
        ``mad_ms`` and ``runs``.
    """
    names = list(contestants)
    walls: dict[str, list[float]] = {name: [] for name in names}
    counted: dict[str, list[float]] = {name: [] for name in names}
    for name in names:
        contestants[name].timed()
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(walls[names[0]]) < 9:
        for name in names if len(walls[names[0]]) % 2 == 0 else reversed(names):
            wall, own = contestants[name].timed()
            walls[name].append(wall)
            counted[name].append(own if threads == 1 else wall)
    found = {}
    for name in names:
        middle = statistics.median(counted[name])
        found[name] = {
            "ms": middle * 1e3,
            "wall_ms": statistics.median(walls[name]) * 1e3,
            "mad_ms": statistics.median(abs(value - middle) for value in counted[name]) * 1e3,
            "runs": len(walls[name]),
        }
    return found


def sqnr_db(found: list[NDArray[Any]], exact: list[NDArray[Any]]) -> float:
    """Lowest ratio of signal to error of the outputs in dB."""
    ratios = []
    for y, wanted in zip(found, exact, strict=True):
        noise = float(np.sum((y.astype(np.float64) - wanted) ** 2))
        ratios.append(10 * np.log10(float(np.sum(wanted.astype(np.float64) ** 2)) / noise) if noise else float("inf"))
    return float(min(ratios))
