"""Analyses: what is known about a model, computed on demand and cached under its version counters."""

from graphopt.analysis.base import Analysis
from graphopt.analysis.captures import Captures, Uses
from graphopt.analysis.cost import Cost, NodeCost, Total
from graphopt.analysis.dims import Dim, Expr
from graphopt.analysis.liveness import Liveness
from graphopt.analysis.manager import Facts
from graphopt.analysis.network import NetworkView
from graphopt.analysis.row_scale import RowScale
from graphopt.analysis.shape_values import ShapeValues
from graphopt.analysis.types import Types

__all__ = [
    "Analysis",
    "Captures",
    "Cost",
    "Dim",
    "Expr",
    "Facts",
    "Liveness",
    "NetworkView",
    "NodeCost",
    "RowScale",
    "ShapeValues",
    "Total",
    "Types",
    "Uses",
]
