"""Which operators insert-qdq takes up, and which it leaves for reasons that no rule table knows."""

from __future__ import annotations

from typing import TYPE_CHECKING

from graphopt.graph import producer, uses
from graphopt.rewrite.patch import Skip
from graphopt.target.operators import is_overridable
from graphopt.target.rules import Role
from graphopt.target.stored import weight_shape

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator

    from graphopt.analysis.activation_ranges import Ranges
    from graphopt.analysis.types import Types
    from graphopt.graph import Model, Node
    from graphopt.target.placement import Placement
    from graphopt.target.rules import Target

FLOAT32 = 1
RECURRENT = frozenset(("LSTM", "GRU", "RNN"))

STOPS_LOGARITHM = frozenset(("Softmax", "Sigmoid", "Exp")) | RECURRENT
GRID_LEVELS = 256


def has_weights(model: Model, target: Target, types: Types, without: Collection[Node]) -> bool:
    """Tell whether the main graph has a weighted operator, other than the given ones, worth calibrating for."""
    for node in model.graph.nodes:
        rule = target.rule(node)
        if node in without or rule is None or rule.role is not Role.WEIGHTED:
            continue
        is_float = types.dtype(node.inputs[0]) == FLOAT32
        if is_float and rule.refuse(node) is None and not is_overridable(model, node):
            return True
    return False


def is_sequence_product(node: Node, types: Types) -> bool:
    """Tell whether a MatMul reads the rows of sequences: three axes or more."""
    return node.op == "MatMul" and (types.rank(node.inputs[0]) or 0) >= 3


def products_per_rounding(node: Node) -> float:
    """Return how many products a matrix product computes per value that is rounded or restored."""
    shape = weight_shape(node.inputs[1])
    assert shape is not None, "its rule refuses it otherwise"
    rows, columns = shape
    return rows * columns / (rows + columns)


def logarithm_readers(model: Model, target: Target, ranges: Ranges, levels: int = GRID_LEVELS) -> dict[Node, str]:
    """Return the weighted operators whose results reach a Log of values that span more than a grid holds.

    Rounding errors are equally large for all values of a tensor; behind a Log those of small values grow without
    bound, as in every model that takes the logarithm of a spectrum. Behind Softmax and Sigmoid there are none.
    """
    found: dict[Node, str] = {}
    seen: set[Node] = set()
    for log in (node for node in model.graph.nodes if node.op == "Log"):
        span = ranges.get(log.inputs[0].name)
        if span is not None and span.low * levels >= span.high:
            continue
        stack = [source for tensor in log.inputs if (source := producer(tensor)) is not None]
        while stack:
            node = stack.pop()
            if node in seen or node.op in STOPS_LOGARITHM:
                continue
            seen.add(node)
            rule = target.rule(node)
            if rule is not None and rule.role is Role.WEIGHTED:
                found[node] = log.name or log.outputs[0].name
                continue
            stack += [source for tensor in node.inputs if (source := producer(tensor)) is not None]
    return found


def float_neighbours(model: Model, target: Target, placement: Placement) -> Iterator[tuple[Node, str]]:
    """Yield the operators without an integer kernel that stand between integer ones, with the reason."""
    for node in model.graph.nodes:
        why = target.float_reason.get(node.op)
        if why is None or node in placement.nodes:
            continue
        before = any(tensor in placement.groups for tensor in node.inputs)
        after = any(use.node in placement.nodes for tensor in node.outputs for use in uses(tensor))
        if before and after:
            yield node, why


def inner_refusals(model: Model, target: Target) -> Iterator[Skip]:
    """Yield why weighted operators inside the bodies of If, Loop and Scan stay float."""
    for graph, node in model.walk(functions=False):
        if graph is model.graph:
            continue
        rule = target.rule(node)
        if (rule is not None and rule.role is Role.WEIGHTED) or node.op in RECURRENT:
            yield Skip(node, "it lies inside the body of a control-flow operator, where no range can be observed")
