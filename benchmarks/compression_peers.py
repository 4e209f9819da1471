"""The tools that graphopt's compression is compared with: their environments, and running one way of one of them."""

from __future__ import annotations

import hashlib
import importlib
import json
import os
import shutil
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.simplify_peers import python_of

if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import ModuleType

WORKER = Path(__file__).with_name("compression_worker.py")
OURS = "graphopt"
_ONNX = ("onnx==1.23.2", "onnxruntime==1.31.1")
ENVIRONMENTS: dict[str, tuple[str, ...]] = {
    "onnxsim": ("onnxsim==0.8.1", *_ONNX, "numpy==2.4.6"),
    "onnxruntime": ("onnxruntime==1.31.1", "onnx==1.23.2", "numpy==2.4.6", "onnx-ir", "torch"),
    "nncf": ("nncf==3.4.0", *_ONNX, "openvino==2026.4.1"),
    "aimet": ("aimet-onnx==2.42.0", *_ONNX),
    "onnxnc": ("onnx-neural-compressor==1.0", "onnx", "onnxruntime", "prettytable", "scipy"),
    "modelopt": (
        *("nvidia-modelopt==0.47.0", *_ONNX, "onnxscript==0.7.2", "onnxslim", "onnxconverter-common", "polygraphy"),
        *("cppimport", "lief", "onnx-graphsurgeon"),
    ),
    "quark": ("amd-quark==0.13", "onnx==1.22.0", "onnxruntime==1.31.1", "torch==2.13.0"),
}
"""Packages of each peer's environment, the peer itself first; some need packages that they do not declare."""
MODULES = {OURS: "ours"}
WALL_BY_CPU = 5
THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMEXPR_NUM_THREADS")


def module(tool: str) -> ModuleType:
    """Return the module that knows the ways of a tool; it imports the tool only where that runs."""
    return importlib.import_module(f"benchmarks.compression_{MODULES.get(tool, tool)}")


@dataclass(frozen=True, slots=True)
class Attempt:
    """One run of a tool: its report, or why there is none.

    Attributes:
        output: The compressed model.
        report: Seconds, memory and notes of the worker.
        error: The last line of what went wrong.
        reused: Whether an earlier run made it, of the same versions on the same model and data.
    """

    output: Path
    report: dict[str, Any]
    error: str | None = None
    reused: bool = False


class Runner:
    """Runs tools in processes of their own, and keeps what peers made for later runs."""

    def __init__(self, peers: Path | None, cache: Path, *, threads: int, limit: float, reuse: bool) -> None:
        self._peers = peers
        self._cache = cache
        self._threads = threads
        self._limit = limit
        self._reuse = reuse

    def run(self, tool: str, version: str, request: dict[str, Any], feeds: Sequence[Path]) -> Attempt:
        """Run one way of a tool.

        Args:
            tool: Name of the tool.
            version: Its version, which decides with the request and the data what may be used again.
            request: ``way``, ``point``, ``model``, ``keep`` and ``seed``.
            feeds: The files of the calibration draw.
        """
        key = _key(tool, version, request, [Path(request["model"]), *feeds], self._threads)
        folder = (
            self._cache / f"{Path(request['model']).stem}.{request['point']['name'].replace(':', '-')}.{tool}" / key
        )
        output, report, log = folder / "model.onnx", folder / "report.json", folder / "log.txt"
        failure = folder / "error.txt"
        if self._reuse and tool != OURS:
            if failure.exists():
                return Attempt(output, {}, failure.read_text(), reused=True)
            if report.exists() and output.exists():
                return Attempt(output, json.loads(report.read_text()), reused=True)
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        # a copy: there are tools that write what they inferred into the file that they read
        source = folder / "source" / Path(request["model"]).name
        source.parent.mkdir()
        shutil.copyfile(request["model"], source)
        asked = request | {"tool": MODULES.get(tool, tool), "feeds": str(feeds[0].parent), "model": str(source)}
        asked |= {"output": str(output), "report": str(report), "cpu_limit": self._limit}
        (folder / "request.json").write_text(json.dumps(asked))
        error = self._process(tool, folder / "request.json", log)
        shutil.rmtree(source.parent)
        if error is None and not (report.exists() and output.exists()):
            error = "it wrote nothing"
        if error is not None:
            failure.write_text(error)
            return Attempt(output, {}, error)
        return Attempt(output, json.loads(report.read_text()))

    def _process(self, tool: str, request: Path, log: Path) -> str | None:
        """Run the worker; return why it failed."""
        python = Path(sys.executable) if tool == OURS or self._peers is None else python_of(self._peers, tool)
        settings = os.environ | dict.fromkeys(THREADS, str(self._threads)) | {"TQDM_DISABLE": "1"}
        settings |= {"PYTHONWARNINGS": "ignore", "ORT_DISABLE_TELEMETRY": "1"}
        with log.open("w") as stream:
            command = [str(python), str(WORKER), str(request)]
            try:
                done = subprocess.run(
                    command,
                    stdout=stream,
                    stderr=stream,
                    env=settings,
                    timeout=WALL_BY_CPU * self._limit,
                    check=False,
                    cwd=log.parent,
                )
            except subprocess.TimeoutExpired:
                return f"more than {WALL_BY_CPU * self._limit:.0f} seconds"
        if done.returncode == 0:
            return None
        if done.returncode in {-signal.SIGXCPU, -signal.SIGKILL}:
            return f"more than {self._limit:.0f} CPU seconds"
        lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
        return f"exit {done.returncode}: {lines[-1][:240] if lines else ''}"


def _key(tool: str, version: str, request: dict[str, Any], files: Sequence[Path], threads: int) -> str:
    """Return a name for a run: the tool's version and what it is given, files by content."""
    digest = hashlib.sha256()
    told = {name: request[name] for name in ("way", "point", "keep", "seed")}
    for part in (tool, version, json.dumps(told, sort_keys=True), str(threads)):
        digest.update(part.encode() + b"\0")
    for file in files:
        digest.update(hashlib.sha256(file.read_bytes()).digest())
    return f"{request['way'].replace('>', '-')}-{digest.hexdigest()[:16]}"
