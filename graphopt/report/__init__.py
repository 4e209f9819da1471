"""The report of a run: the data model, the terminal tables, the JSON file and the HTML page."""

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
]
