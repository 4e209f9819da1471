"""graphopt: a compiler for ONNX models.

    import graphopt

    result = graphopt.compile("model.onnx", recipe="int8", data="feeds.npz", max_drop=1.0)
    result.save("bundle")
    session = graphopt.session("bundle")

The names are loaded on first use, so that ``import graphopt`` and the command line's help stay fast.
"""

from __future__ import annotations

import importlib
import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from graphopt import passes
    from graphopt.analysis.layer_statistics import LayerStatistics
    from graphopt.calibration import calibrate, collect_statistics
    from graphopt.graph import Model, from_gs, gs_pass
    from graphopt.graph import read_model as load
    from graphopt.pipeline import compile  # noqa: A004 - the public name of the main job
    from graphopt.result import Result
    from graphopt.rewrite import PassManager
    from graphopt.runtime import Feeds
    from graphopt.runtime.session import session
    from graphopt.simplification import Simplified, simplify
    from graphopt.verify.check import CheckResult, check

__version__ = "0.1.0"

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
# From 1.29 on ONNX Runtime reports models to its maker unless this is set before it is imported; 0 in it allows that.

__all__ = [
    "CheckResult",
    "Feeds",
    "LayerStatistics",
    "Model",
    "PassManager",
    "Result",
    "Simplified",
    "__version__",
    "calibrate",
    "check",
    "collect_statistics",
    "compile",
    "from_gs",
    "gs_pass",
    "load",
    "passes",
    "session",
    "simplify",
]

_HOME = {
    "CheckResult": "graphopt.verify.check",
    "Feeds": "graphopt.runtime",
    "LayerStatistics": "graphopt.analysis.layer_statistics",
    "Model": "graphopt.graph",
    "PassManager": "graphopt.rewrite",
    "Result": "graphopt.result",
    "Simplified": "graphopt.simplification",
    "calibrate": "graphopt.calibration",
    "check": "graphopt.verify.check",
    "collect_statistics": "graphopt.calibration",
    "compile": "graphopt.pipeline",
    "from_gs": "graphopt.graph",
    "gs_pass": "graphopt.graph",
    "load": "graphopt.graph:read_model",
    "session": "graphopt.runtime",
    "simplify": "graphopt.simplification",
}


def __getattr__(name: str) -> object:
    if name == "passes":
        return importlib.import_module("graphopt.passes")
    if name not in _HOME:
        message = f"module 'graphopt' has no attribute {name!r}"
        raise AttributeError(message)
    module, _, attribute = _HOME[name].partition(":")
    return getattr(importlib.import_module(module), attribute or name)
