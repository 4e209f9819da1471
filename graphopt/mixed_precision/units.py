"""Divides a model into units that choose a precision together, and the tensors that they hand to each other."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from graphopt.analysis.types import Types
from graphopt.graph import constant_value, is_graph_output, producer, uses
from graphopt.graph.labels import node_label
from graphopt.target import find_target
from graphopt.target.placement import place
from graphopt.target.rules import Role

if TYPE_CHECKING:
    from graphopt.analysis import Facts
    from graphopt.graph import Model, Node, Tensor

OUTSIDE = -1


@dataclass(frozen=True, slots=True)
class Unit:
    """Nodes that choose together.

    Attributes:
        nodes: The operator, then the activation functions that its rounding takes over.
        weighted: Whether it has a weight.
        placeable: Whether the target has an integer form of it.
        moves: Whether it only moves data, which does no damage.
    """

    nodes: tuple[Node, ...]
    weighted: bool
    placeable: bool
    moves: bool

    @property
    def name(self) -> str:
        """Name of the operator."""
        return node_label(self.nodes[0])

    @property
    def labels(self) -> tuple[str, ...]:
        """Names of all nodes."""
        return tuple(node_label(node) for node in self.nodes)

    @property
    def inputs(self) -> list[Tensor]:
        """What it reads of others at run time."""
        inner = {tensor for node in self.nodes for tensor in node.outputs}
        found: dict[Tensor, None] = {}
        for node in self.nodes:
            for tensor in node.inputs:
                if not tensor.is_empty() and tensor not in inner and constant_value(tensor) is None:
                    found[tensor] = None
        return list(found)

    @property
    def outputs(self) -> list[Tensor]:
        """What it makes for others."""
        return [tensor for tensor in self.nodes[-1].outputs if not tensor.is_empty()]


@dataclass(frozen=True, slots=True)
class Crossing:
    """A tensor between units.

    Attributes:
        tensor: The tensor.
        maker: Position of the unit that makes it, or `OUTSIDE`.
        readers: Positions of the units that read it; `OUTSIDE` for everything else.
    """

    tensor: Tensor
    maker: int
    readers: tuple[int, ...]


def find_units(model: Model, facts: Facts, weighted: set[str]) -> tuple[list[Unit], list[Crossing]]:
    """Return the units of the main graph and the tensors between them.

    Args:
        model: The float model, as it is quantized.
        facts: Its analyses.
        weighted: Names of the layers with weights that may be stored in few bits.
    """
    target = find_target(facts.target)
    placed = place(model, facts.get(Types), target, planned=set(model.graph.nodes))
    units: list[Unit] = []
    of_node: dict[Node, int] = {}
    for node in model.graph.nodes:
        rule = placed.nodes.get(node)
        if rule is None and node_label(node) not in weighted:
            continue
        role = None if rule is None else rule.role
        if role is Role.ABSORBED:
            source = producer(node.inputs[0])
            place_of = None if source is None else of_node.get(source)
            if place_of is not None and len(uses(node.inputs[0])) == 1 and not is_graph_output(node.inputs[0]):
                unit = units[place_of]
                units[place_of] = Unit((*unit.nodes, node), unit.weighted, unit.placeable, unit.moves)
                of_node[node] = place_of
            continue
        of_node[node] = len(units)
        is_weighted = role is Role.WEIGHTED or node_label(node) in weighted
        units.append(Unit((node,), is_weighted, rule is not None, role is Role.MOVE))
    return units, _crossings(units, of_node)


def _crossings(units: list[Unit], of_node: dict[Node, int]) -> list[Crossing]:
    tensors: dict[Tensor, None] = {}
    for unit in units:
        if unit.placeable:
            tensors |= dict.fromkeys([*_data(unit), *unit.outputs])
    found = []
    for tensor in tensors:
        source = producer(tensor)
        maker = OUTSIDE if source is None else of_node.get(source, OUTSIDE)
        readers = {of_node.get(use.node, OUTSIDE): None for use in uses(tensor)}
        if is_graph_output(tensor):
            readers[OUTSIDE] = None
        found.append(Crossing(tensor, maker, tuple(readers)))
    return found


def _data(unit: Unit) -> list[Tensor]:
    """Return the activations that a unit reads: shapes and positions are no grid's business."""
    return [tensor for tensor in unit.inputs if str(tensor.dtype) in {"float32", "None"}]
