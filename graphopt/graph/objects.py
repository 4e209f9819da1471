"""The objects of a graph, under one name: nodes, tensors, graphs and functions."""

from __future__ import annotations

from graphopt.graph.graphs import Function, Graph, node_subgraphs
from graphopt.graph.nodes import Node
from graphopt.graph.tensors import Constant, Tensor, Variable, as_weight

__all__ = ["Constant", "Function", "Graph", "Node", "Tensor", "Variable", "as_weight", "node_subgraphs"]
