"""The report of a run: the data model, the terminal tables, the JSON file and the HTML page.

The names are loaded on first use: the command line imports this package for its help pages too, which must not wait for
the schema library.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from graphopt.report.describe import environment, model_info, weight_entries
    from graphopt.report.html import render
    from graphopt.report.report import (
        EQUAL_DB,
        SCHEMA_VERSION,
        Environment,
        Latency,
        LayerEntry,
        ModelInfo,
        ModelPair,
        PassEntry,
        Quality,
        Report,
        SkipEntry,
        Tool,
        WeightEntry,
    )

_MODULES = {"environment": "describe", "model_info": "describe", "weight_entries": "describe", "render": "html"}

__all__ = [
    "EQUAL_DB",
    "SCHEMA_VERSION",
    "Environment",
    "Latency",
    "LayerEntry",
    "ModelInfo",
    "ModelPair",
    "PassEntry",
    "Quality",
    "Report",
    "SkipEntry",
    "Tool",
    "WeightEntry",
    "environment",
    "model_info",
    "render",
    "weight_entries",
]


def __getattr__(name: str) -> object:
    if name not in __all__:
        message = f"module 'graphopt.report' has no attribute {name!r}"
        raise AttributeError(message)
    module = importlib.import_module(f"graphopt.report.{_MODULES.get(name, 'report')}")
    return getattr(module, name)
