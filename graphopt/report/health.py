"""Looks at the installation: versions, processor, kernel library, environment variables, and what is wrong there."""

from __future__ import annotations

import os
import platform
import re
import shutil
import sys
import tempfile
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

import graphopt
from graphopt.errors import KernelError
from graphopt.report.text import size

State = Literal["ok", "note", "broken"]

REQUIRED = (
    ("onnxruntime", (1, 20)),
    ("onnx", (1, 20)),
    ("onnx-graphsurgeon", (0, 6, 1)),
    ("numpy", (2,)),
    ("networkx", (3, 2)),
    ("ml_dtypes", (0, 5)),
    ("protobuf", (4, 25)),
    ("pydantic", (2, 7)),
    ("PyYAML", (6,)),
    ("rich", (13, 7)),
    ("threadpoolctl", (3, 1)),
)
"""Packages that graphopt needs, with the oldest release that will do."""

VARIABLES = {
    "GRAPHOPT_ISA": "forces the instruction set of the kernels",
    "GRAPHOPT_TRACEBACK": "shows tracebacks of errors",
    "OMP_NUM_THREADS": "limits threads of NumPy, and of ONNX Runtime where it was built with OpenMP",
    "ORT_LOGGING_LEVEL": "changes what ONNX Runtime logs",
}
"""Environment variables that change what happens here."""

LITTLE_DISK = 1 << 30


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at.

    Attributes:
        subject: What.
        state: ``ok``, ``note`` (works, but worth knowing) or ``broken``.
        found: What was found.
        advice: What to do; empty where nothing is to be done.
    """

    subject: str
    state: State
    found: str
    advice: str = ""


@dataclass(frozen=True, slots=True)
class Health:
    """Everything that was looked at, in order."""

    findings: tuple[Finding, ...]

    @property
    def sound(self) -> bool:
        """True when nothing is broken."""
        return all(finding.state != "broken" for finding in self.findings)

    def to_dict(self) -> dict[str, Any]:
        """Return the findings as plain data for JSON."""
        return {"sound": self.sound, "findings": [asdict(finding) for finding in self.findings]}


def examine() -> Health:
    """Look at everything; never raises for what it finds."""
    return Health(
        (
            _program(),
            _python(),
            *(_package(name, oldest) for name, oldest in REQUIRED),
            _two_runtimes(),
            _processor(),
            *_kernels(),
            *_variables(),
            _disk(),
        )
    )


def _program() -> Finding:
    return Finding("graphopt", "ok", f"{graphopt.__version__} in {Path(graphopt.__file__).parent}")


def _python() -> Finding:
    return Finding("Python", "ok", f"{platform.python_version()} ({sys.executable})")


def _package(name: str, oldest: tuple[int, ...]) -> Finding:
    wanted = ".".join(map(str, oldest))
    try:
        version = metadata.version(name)
    except metadata.PackageNotFoundError:
        if name == "onnxruntime":
            return _other_runtime(wanted)
        return Finding(name, "broken", "not installed", f"pip install '{name}>={wanted}'")
    if _release(version) < oldest:
        return Finding(name, "broken", version, f"pip install -U '{name}>={wanted}'")
    return Finding(name, "ok", version)


def _other_runtime(wanted: str) -> Finding:
    """ONNX Runtime goes by other distribution names too (GPU, OpenVINO and DirectML builds)."""
    try:
        import onnxruntime
    except ImportError:
        return Finding("onnxruntime", "broken", "not installed", f"pip install 'onnxruntime>={wanted}'")
    return Finding("onnxruntime", "ok", f"{onnxruntime.__version__} (another build)")


def _two_runtimes() -> Finding:
    names = sorted(
        {
            str(each.metadata["Name"]).lower()
            for each in metadata.distributions()
            if str(each.metadata["Name"]).lower().startswith("onnxruntime")
            and not str(each.metadata["Name"]).lower().startswith(("onnxruntime-extensions", "onnxruntime-genai"))
        }
    )
    if len(names) > 1:
        advice = f"They overwrite each other's files: pip uninstall {' '.join(names)}, then install one"
        return Finding("ONNX Runtime builds", "broken", ", ".join(names), advice)
    return Finding("ONNX Runtime builds", "ok", ", ".join(names) or "from another source")


def _processor() -> Finding:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else (os.cpu_count() or 1)
    return Finding("processor", "ok", f"{_processor_name()}, {cores} core{'' if cores == 1 else 's'} for this process")


def _processor_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text("utf-8").splitlines()
    except OSError:
        lines = []
    found = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")
    return found or platform.processor() or platform.machine()


def _kernels() -> tuple[Finding, ...]:
    from graphopt.runtime.library import isa_report, kernel_library

    try:
        library = kernel_library()
    except KernelError as error:
        return (Finding("kernel library", "broken", error.what, error.do),)
    try:
        chosen = isa_report()
    except KernelError as error:
        return (Finding("kernel library", "broken", error.what, error.do),)
    how = "forced by GRAPHOPT_ISA" if chosen.forced else f"of {', '.join(chosen.supported)}"
    speed: State = "note" if chosen.chosen == "scalar" else "ok"
    advice = "The kernels run, but slowly: sparse layers will stay dense" if speed == "note" else ""
    return (
        Finding("kernel library", "ok", str(library)),
        Finding("instruction set", speed, f"{chosen.chosen} ({how})", advice),
        _loads(library),
    )


def _loads(library: Path) -> Finding:
    """Register the library with ONNX Runtime, as a session of a compiled model would."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    try:
        options.register_custom_ops_library(str(library))
    except Exception as error:
        return Finding(
            "kernels in ONNX Runtime",
            "broken",
            " ".join(str(error).split()),
            "Rebuild the kernels for this ONNX Runtime: `make kernels` in a checkout, or reinstall graphopt",
        )
    return Finding("kernels in ONNX Runtime", "ok", "registered")


def _variables() -> tuple[Finding, ...]:
    found = [
        Finding(name, "note", os.environ[name], f"It {effect}; unset it for the default")
        for name, effect in VARIABLES.items()
        if name in os.environ
    ]
    return tuple(found) or (Finding("environment", "ok", f"none of {', '.join(VARIABLES)} is set"),)


def _disk() -> Finding:
    folder = tempfile.gettempdir()
    try:
        free = shutil.disk_usage(folder).free
    except OSError as error:
        return Finding("temporary folder", "broken", f"{folder}: {error.strerror}", "Set TMPDIR to another folder")
    if free < LITTLE_DISK:
        return Finding("temporary folder", "note", f"{folder}, {size(free)} free", "Large models need more; set TMPDIR")
    return Finding("temporary folder", "ok", f"{folder}, {size(free)} free")


def _release(version: str) -> tuple[int, ...]:
    found = re.match(r"\d+(\.\d+)*", version)
    return tuple(int(part) for part in found[0].split(".")) if found else ()
