"""The report of a run: the data model, the terminal tables, the JSON file and the HTML page.

The names are loaded on first use: the command line imports this package for its help pages too, which must not wait for
the schema library.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from graphopt.report.html import render as render_html
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
    "render_html",
]


def __getattr__(name: str) -> object:
    if name not in __all__:
        message = f"module 'graphopt.report' has no attribute {name!r}"
        raise AttributeError(message)
    if name == "render_html":
        return importlib.import_module("graphopt.report.html").render
    return getattr(importlib.import_module("graphopt.report.report"), name)
