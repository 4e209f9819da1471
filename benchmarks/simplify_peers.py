"""The optimizers that graphopt is compared with: their environments, and running one or a chain of them on a file."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import venv
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

WORKER = Path(__file__).with_name("simplify_worker.py")
_ONNX = ("onnx==1.23.2", "numpy==2.4.6")
_ORT = "onnxruntime==1.31.1"
ENVIRONMENTS: dict[str, tuple[str, ...]] = {
    "onnxsim": ("onnxsim==0.8.1", _ORT, *_ONNX),
    "onnxslim": ("onnxslim==0.1.98", _ORT, *_ONNX),
    "onnxoptimizer": ("onnxoptimizer==0.4.2", *_ONNX),
    "onnxscript": ("onnxscript==0.7.2", *_ONNX),
    "onnxruntime": (_ORT, *_ONNX),
    "polygraphy": ("polygraphy==0.53.6", "onnx-graphsurgeon==0.6.1", _ORT, *_ONNX),
}
"""Packages of each environment; one environment for each, so that no tool holds another back."""
TOOL_ENVIRONMENT = {
    "onnxsim": "onnxsim",
    "onnxslim": "onnxslim",
    "onnxoptimizer": "onnxoptimizer",
    "onnxscript": "onnxscript",
    "onnxscript+rules": "onnxscript",
    "ort-basic": "onnxruntime",
    "ort-extended": "onnxruntime",
    "polygraphy": "polygraphy",
    "graphsurgeon": "polygraphy",
}
OURS = "graphopt"
NOT_PORTABLE = ("ort-extended",)
"""Tools whose result needs one runtime by design: shown, never the best."""
CHAINS = (
    "ort-basic>onnxslim",
    "onnxsim>ort-basic>onnxslim",
    "ort-basic>onnxsim>onnxslim",
    "ort-basic>onnxsim>onnxscript+rules",
    "onnxslim>onnxscript+rules>ort-basic>onnxslim",
    "onnxslim>onnxscript+rules>ort-basic>onnxslim>onnxsim",
)
_POLL_SECONDS = 0.01
_WALL_BY_CPU = 5


@dataclass
class Run:
    """What running a tool or a chain came to; ``error`` is None where it wrote a file.

    ``peak_mb`` is the process's own peak; ``resident_mb`` and ``anonymous_mb`` are seen from outside if watched.
    """

    output: Path
    cpu: float = 0.0
    wall: float = 0.0
    peak_mb: float = 0.0
    imported_mb: float = 0.0
    resident_mb: float = 0.0
    anonymous_mb: float = 0.0
    error: str | None = None
    steps: list[float] = field(default_factory=list)


def set_up(folder: Path, environments: Mapping[str, tuple[str, ...]] = ENVIRONMENTS) -> dict[str, str]:
    """Make the environments that are missing; return for each the reason why it cannot be made, or its packages."""
    folder.mkdir(parents=True, exist_ok=True)
    found = {}
    for name, packages in environments.items():
        if not python_of(folder, name).exists():
            venv.create(folder / name, with_pip=True)
        command = [str(python_of(folder, name)), "-m", "pip", "install", "--quiet", *packages]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        failure = (done.stderr.strip().splitlines() or ["pip failed"])[-1]
        found[name] = f"not installed: {failure}" if done.returncode else " ".join(packages)
    return found


def python_of(folder: Path, environment: str) -> Path:
    """Return the interpreter of an environment."""
    return folder / environment / "bin" / "python"


def installed(folder: Path | None, environments: Mapping[str, tuple[str, ...]] = ENVIRONMENTS) -> dict[str, str]:
    """Return the version of every peer's main package, by environment; those that are absent are left out."""
    if folder is None:
        return {}
    found = {}
    for name, packages in environments.items():
        if not python_of(folder, name).exists():
            continue
        package = packages[0].partition("==")[0]
        code = f"from importlib.metadata import version; print(version({package!r}))"
        command = [str(python_of(folder, name)), "-c", code]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode == 0:
            found[name] = done.stdout.strip()
    return found


@dataclass(frozen=True, slots=True)
class Limits:
    """What one process may take; ``resident_mb`` makes the parent watch its memory, and end it above that."""

    cpu_seconds: int = 120
    resident_mb: float | None = None


class Runner:
    """Runs tools and chains on files; the steps that chains share are run once."""

    def __init__(self, peers: Path | None, folder: Path, limits: Limits) -> None:
        self.peers = peers
        self.folder = folder
        self.limits = limits
        self._done: dict[tuple[Path, str], Run] = {}

    def run(self, name: str, source: Path) -> Run:
        """Run a tool, or a chain of tools joined by ``>``, on a model file."""
        if (source, name) not in self._done:
            self._done[source, name] = self.run_again(name, source)
        return self._done[source, name]

    def run_again(self, name: str, source: Path) -> Run:
        """Run a tool or the last step of a chain, even where its result is at hand."""
        earlier, _, tool = name.rpartition(">")
        folder = self.folder / f"{source.stem}.{name.replace('>', '-')}"
        folder.mkdir(parents=True, exist_ok=True)
        output = folder / f"{source.stem}.onnx"
        if not earlier:
            last = one_step(self._python(tool), tool, source, output, self.limits)
            last.steps = [last.cpu]
            return last
        before = self.run(earlier, source)
        if before.error is not None:
            return Run(output, error=f"after {earlier}: {before.error}")
        last = one_step(self._python(tool), tool, before.output, output, self.limits)
        last.steps = [*before.steps, last.cpu]
        last.cpu, last.wall = last.cpu + before.cpu, last.wall + before.wall
        last.peak_mb = max(last.peak_mb, before.peak_mb)
        return last

    def _python(self, tool: str) -> Path:
        if tool == OURS or self.peers is None:
            return Path(sys.executable)
        return python_of(self.peers, TOOL_ENVIRONMENT[tool])


def one_step(python: Path, tool: str, source: Path, output: Path, limits: Limits) -> Run:
    """Run one tool in a fresh process of its environment."""
    run = Run(output)
    report, log = output.parent / "report.json", output.parent / "log.txt"
    report.unlink(missing_ok=True)
    output.unlink(missing_ok=True)
    command = [str(python), str(WORKER), tool, str(source), str(output), str(report), str(limits.cpu_seconds)]
    settings = os.environ | {"TQDM_DISABLE": "1", "PYTHONWARNINGS": "ignore"}
    with log.open("w") as stream, subprocess.Popen(command, stdout=stream, stderr=stream, env=settings) as process:
        reason = watched(process, run, limits.resident_mb) if limits.resident_mb is not None else None
        try:
            code = process.wait(limits.cpu_seconds * _WALL_BY_CPU)
        except subprocess.TimeoutExpired:
            process.kill()
            code, reason = process.wait(), "wall-clock limit"
    if code or not report.exists() or not output.exists():
        lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
        if code == -signal.SIGXCPU:
            reason = f"more than {limits.cpu_seconds} CPU seconds"
        run.error = reason or f"exit {code}: {lines[-1][:300] if lines else ''}"
        return run
    found = json.loads(report.read_text())
    run.cpu, run.wall = found["cpu"], found["wall"]
    run.peak_mb, run.imported_mb = found["peak_mb"], found["imported_mb"]
    return run


def watched(process: subprocess.Popen[bytes], run: Run, limit_mb: float) -> str | None:
    """Note the highest resident memory of a process until it ends; end it above a limit and return the reason."""
    while process.poll() is None:
        resident, anonymous = resident_megabytes(process.pid)
        run.resident_mb, run.anonymous_mb = max(run.resident_mb, resident), max(run.anonymous_mb, anonymous)
        if resident > limit_mb:
            process.kill()
            return f"more than {limit_mb:.0f} MB resident"
        time.sleep(_POLL_SECONDS)
    return None


def resident_megabytes(pid: int) -> tuple[float, float]:
    """Return the resident memory of a process, and the part of it that no file backs; zeros where it is gone."""
    try:
        fields = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    except OSError:
        return 0.0, 0.0
    total, anonymous = (float(fields[key].split()[0]) / 1024 if key in fields else 0.0 for key in ("VmRSS", "RssAnon"))
    return total, anonymous
