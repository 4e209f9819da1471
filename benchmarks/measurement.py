"""What every benchmark measures and records in the same way."""

from __future__ import annotations

import gc
import platform
import time
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable


def cpu_seconds(action: Callable[[], Any], runs: int = 3) -> float:
    """Return the CPU seconds of the fastest of several runs."""
    best = float("inf")
    for _ in range(runs):
        gc.collect()
        start = time.process_time()
        action()
        best = min(best, time.process_time() - start)
    return best


def environment() -> dict[str, str]:
    """Return versions and the processor."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    cpu = next((text.partition(":")[2].strip() for text in lines if text.startswith("model name")), "")
    packages = {name: version(name) for name in ("graphopt", "onnx", "onnxruntime", "numpy")}
    return packages | {"python": platform.python_version(), "cpu": cpu}
