"""One compression in a process of its own, in the environment of the tool: started by bench_compression.py.

    python compression_worker.py REQUEST.json

The request names the tool, the way (one of the tool's own), the point, the model, the folder of calibration feeds, the
output and the report. The report has wall and CPU seconds from reading the model to having written the result, without
imports, and the peak of resident memory.
"""

from __future__ import annotations

import importlib
import json
import resource
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np


def main() -> None:
    """Do what the request says."""
    request: dict[str, Any] = json.loads(Path(sys.argv[1]).read_text())
    seconds = int(request["cpu_limit"])
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds))
    tool = importlib.import_module(f"compression_{request['tool']}")
    tool.prepare()
    imported = peak()
    files = sorted(Path(request["feeds"]).glob("*.npz"))
    wall, cpu = time.perf_counter(), time.process_time()
    feeds = [dict(np.load(file)) for file in files]
    notes = tool.run(request, feeds)
    report = {
        "seconds": round(time.perf_counter() - wall, 2),
        "cpu_seconds": round(time.process_time() - cpu, 2),
        "peak_mb": round(peak(), 1),
        "imported_mb": round(imported, 1),
        "notes": notes or [],
    }
    Path(request["report"]).write_text(json.dumps(report))


def peak() -> float:
    """Return the highest resident memory of this process so far in MB; getrusage would count the parent's as well."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 1024


if __name__ == "__main__":
    main()
