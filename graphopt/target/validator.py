"""Checks a quantized model, whoever made it, against the rules of a target, without running it."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

from graphopt.analysis.manager import Facts
from graphopt.analysis.types import Types
from graphopt.graph import constant_value
from graphopt.graph.labels import node_label
from graphopt.target.checks import View
from graphopt.target.reading import is_conversion, restored
from graphopt.target.rules import Role

if TYPE_CHECKING:
    from graphopt.graph import Model, Node
    from graphopt.target.rules import Target


@dataclass(frozen=True, slots=True)
class BrokenRule:
    """A node that breaks a rule of a target.

    Attributes:
        node: Its name.
        op: Its operator.
        rule: Name of the rule.
        reason: What it is that breaks it.
        remedy: What to do about it.
        serious: Whether results are wrong or the model is refused; else it costs time.
    """

    node: str
    op: str
    rule: str
    reason: str
    remedy: str
    serious: bool


def validate(model: Model, target: Target) -> tuple[BrokenRule, ...]:
    """Return every rule of a target that a model breaks, in graph order.

    Args:
        model: A model with QuantizeLinear and DequantizeLinear, from any tool; a float model breaks nothing that a
            quantized one could.
        target: The rules.
    """
    view = View(target, Facts(model).get(Types))
    found = []
    for _, node in model.walk(functions=False):
        for check in target.checks:
            for reason in check.find(node, view):
                label = node_label(node)
                found.append(BrokenRule(label, node.op, check.name, reason, check.remedy, check.serious))
    return tuple(found)


@dataclass(frozen=True, slots=True)
class Declared:
    """What a model declares quantized.

    Attributes:
        integer: Operators whose inputs are all restored, by operator.
        floating: Weighted operators with a float input, by operator.
        conversions: QuantizeLinear and DequantizeLinear of activations.
    """

    integer: dict[str, int]
    floating: dict[str, int]
    conversions: int


def declared(model: Model, target: Target) -> Declared:
    """Count the operators that a target would compute on integers by what the model declares."""
    integer: Counter[str] = Counter()
    floating: Counter[str] = Counter()
    conversions = 0
    for _, node in model.walk(functions=False):
        if is_conversion(node):
            found = restored(node.outputs[0]) if node.op == "DequantizeLinear" else None
            conversions += not found.is_constant if found else constant_value(node.inputs[0]) is None
        elif is_declared(node, target):
            integer[node.op] += 1
        elif (rule := target.rules.get(node.op)) is not None and rule.role is Role.WEIGHTED:
            floating[node.op] += 1
    return Declared(dict(sorted(integer.items())), dict(sorted(floating.items())), conversions)


def is_declared(node: Node, target: Target) -> bool:
    """Tell whether all activations that an operator computes on are restored ones."""
    rule = target.rule(node)
    if rule is None or rule.role not in {Role.WEIGHTED, Role.JOIN}:
        return False
    places = [place for place in rule.data_positions(node) if place < len(node.inputs)]
    moving = [node.inputs[place] for place in places if constant_value(node.inputs[place]) is None]
    done = [restored(tensor) is not None for tensor in moving if tensor.name]
    return bool(done) and (any(done) if rule.skip_only else all(done))
