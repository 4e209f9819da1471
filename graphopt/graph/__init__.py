"""The graph layer: ONNX models as objects that can be edited and lose nothing.

The only place that reads and writes protobuf models.
"""

from __future__ import annotations

from graphopt.graph.attributes import RawAttribute, TypedList
from graphopt.graph.collection import collector_paused
from graphopt.graph.external import ExternalWeight
from graphopt.graph.graphs import Function, Graph
from graphopt.graph.interop import from_gs, gs_pass
from graphopt.graph.model import Model, Versions
from graphopt.graph.names import NameAllocator
from graphopt.graph.nodes import Node
from graphopt.graph.order import eliminate_unreachable, is_sorted, sort_graph
from graphopt.graph.read import read_model
from graphopt.graph.rewriter import Rewriter
from graphopt.graph.scopes import (
    Use,
    captures,
    constant_value,
    enclosing,
    graph_outputs,
    is_graph_input,
    is_graph_output,
    nested_graphs,
    owner,
    producer,
    subgraphs,
    uses,
    walk_graphs,
)
from graphopt.graph.tensors import Constant, Tensor, Variable
from graphopt.graph.text import dump_text
from graphopt.graph.weights import ArrayWeight, LazyWeight, PackedWeight, SparseWeight, Weight
from graphopt.graph.write import write_model

__all__ = [
    "ArrayWeight",
    "Constant",
    "ExternalWeight",
    "Function",
    "Graph",
    "LazyWeight",
    "Model",
    "NameAllocator",
    "Node",
    "PackedWeight",
    "RawAttribute",
    "Rewriter",
    "SparseWeight",
    "Tensor",
    "TypedList",
    "Use",
    "Variable",
    "Versions",
    "Weight",
    "captures",
    "collector_paused",
    "constant_value",
    "dump_text",
    "eliminate_unreachable",
    "enclosing",
    "from_gs",
    "graph_outputs",
    "gs_pass",
    "is_graph_input",
    "is_graph_output",
    "is_sorted",
    "nested_graphs",
    "owner",
    "producer",
    "read_model",
    "sort_graph",
    "subgraphs",
    "uses",
    "walk_graphs",
    "write_model",
]
