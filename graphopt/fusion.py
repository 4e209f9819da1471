"""Looks at what the runtime made of what a pass quantized, and takes back what is not worth it.

Three questions, asked after layers were placed: does every operator that was given integers compute on integers, do the
runtime's optimizations compute what the model says, and is the result faster than what it came from? An operator that
stayed float between conversions is slower than before and loses accuracy for nothing: it is made float again, with the
rule that it broke as the reason. Time decides only where the user lets it, region by region, then as a whole.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from graphopt.analysis.tensor_grid import is_conversion
from graphopt.graph import constant_value, producer, uses
from graphopt.graph.labels import node_label
from graphopt.rewrite.guard import changed, revert_all
from graphopt.target import find_target
from graphopt.target.audit import audit
from graphopt.target.rules import Role

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from graphopt.graph import Model, Node, Tensor
    from graphopt.rewrite import Outcome, Pass
    from graphopt.rewrite.patch import LayerRecord

    Attempt = Callable[[Model, Sequence[Pass]], Outcome]
    Clock = Callable[[Sequence[Model]], Sequence[float]]

ROUNDS = 3
"""Times that operators are made float again and the rest is looked at anew: a neighbour may break a rule then."""

MOST_REGIONS = 12
"""Regions that are timed one by one; of more, the smallest stay as they are."""

FASTER = 0.97
"""Share of the time below which a choice counts as faster: less is noise."""


@dataclass(frozen=True, slots=True)
class Placed:
    """A group of passes that ran.

    Attributes:
        model: The result.
        outcome: The account.
        passes: The passes with their final options.
        notes: Sentences for the report.
    """

    model: Model
    outcome: Outcome
    passes: tuple[Pass, ...]
    notes: tuple[str, ...] = ()


def is_placing(group: Sequence[Pass], before: Model, after: Model) -> bool:
    """Tell whether a group turned operators into integer ones and can leave single nodes as they were."""
    return bool(group) and group[0].guard == "layers" and _conversions(after) > _conversions(before)


def _conversions(model: Model) -> int:
    return sum(
        node.op == "DynamicQuantizeLinear" or (is_conversion(node, "QuantizeLinear") and not _is_constant(node))
        for _, node in model.walk(functions=False)
    )


def _is_constant(node: Node) -> bool:
    return constant_value(node.inputs[0]) is not None


def settle(before: Model, placed: Placed, attempt: Attempt, target: str) -> Placed:
    """Make operators float again that were given integers but compute in float.

    Args:
        before: The model before the group; it is not edited.
        placed: What the group made of it.
        attempt: Runs passes on a model in place.
        target: Whose runtime executes the model; nothing is done where it is not installed.
    """
    if find_target(target).session is None or not placed.passes:
        return placed
    labels = {node_label(node) for _, node in before.walk(functions=False)}
    taken_back: dict[str, str] = {}
    for _ in range(ROUNDS):
        found = {
            name: why for name, why in stayed_float(placed.model, target).items() if name in labels - taken_back.keys()
        }
        if not found:
            break
        taken_back |= found
        placed = _without(before, placed, found, attempt)
    if not taken_back:
        return placed
    note = (
        f"{placed.passes[0].name} left {len(taken_back)} operators as they were, which the runtime would have computed "
        f"in float between conversions: {_listed(taken_back)}."
    )
    return replace(placed, notes=(*placed.notes, note))


def stayed_float(model: Model, target: str) -> dict[str, str]:
    """Return operators whose inputs and outputs are integers but which the runtime computes in float, with the rule."""
    named = model.copy()
    for _, node in named.walk(functions=False):
        node.name = node_label(node)
    rules = find_target(target).rules
    declared = {}
    for node in named.graph.nodes:
        rule = rules.get(node.op)
        if rule is None or rule.role not in {Role.WEIGHTED, Role.JOIN}:
            continue
        places = [*rule.data_positions(node), *(() if rule.weight is None else (rule.weight,))]
        data = [node.inputs[place] for place in places if place < len(node.inputs)]
        if all(_is_restored(tensor) for tensor in data) and (not rule.needs_output_grid or _is_rounded(node)):
            declared[node.name] = node
    if not declared:
        return {}
    return {
        each.name: f"{each.rule}: {each.reason}"
        for each in audit(named, target, compare=False).stayed_float
        if each.name in declared
    }


def _is_restored(tensor: Tensor) -> bool:
    source = producer(tensor)
    return source is not None and is_conversion(source, "DequantizeLinear")


def _is_rounded(node: Node) -> bool:
    tensor = node.outputs[0]
    readers = uses(tensor)
    if len(readers) == 1 and readers[0].node.op in {"Relu", "Clip"}:
        readers = uses(readers[0].node.outputs[0])
    return any(is_conversion(use.node, "QuantizeLinear") for use in readers)


def keep_faster(before: Model, placed: Placed, attempt: Attempt, clock: Clock, target: str) -> Placed:
    """Make regions float again that are faster so, then everything where the result is slower than what it came from.

    Args:
        before: The model before the group.
        placed: What the group made of it.
        attempt: Runs passes on a model in place.
        clock: Returns the times of models, run in turn.
        target: Whose rules say what hands integers on.
    """
    first = clock([before, placed.model])
    areas = regions(placed.model, {layer.name for layer in _layers(placed.outcome)}, target)
    if len(areas) > 1:
        for area in sorted(areas, key=len, reverse=True)[:MOST_REGIONS]:
            trial = _without(before, placed, dict.fromkeys(area, "this region is faster in float here"), attempt)
            if not trial.outcome.patches:
                continue
            now, then = clock([placed.model, trial.model])
            if then < FASTER * now:
                note = f"A region of {len(area)} layers is faster in float here: {_listed(dict.fromkeys(area, ''))}."
                placed = replace(trial, notes=(*placed.notes, note))
    floating, final = clock([before, placed.model]) if len(areas) > 1 else first
    if final < floating:
        return placed
    reason = f"in integers the model is slower here: {final:.3g} ms against {floating:.3g} ms"
    note = f"{placed.passes[0].name} was left out: {reason}."
    return Placed(before, revert_all(placed.outcome, reason), (), (*placed.notes, note))


def regions(model: Model, layers: set[str], target: str) -> list[list[str]]:
    """Return the layers of a quantized model in groups that hand integers to each other.

    Args:
        model: The quantized model.
        layers: Names of its quantized layers.
        target: Whose rules say what may compute on integers between them.
    """
    rules = find_target(target).rules
    leader: dict[str, str] = {}

    def find(name: str) -> str:
        while leader.setdefault(name, name) != name:
            leader[name] = leader[leader[name]]
            name = leader[name]
        return name

    for node in model.graph.nodes:
        if not (is_conversion(node, "DequantizeLinear") or is_conversion(node, "QuantizeLinear") or node.op in rules):
            continue
        for tensor in node.inputs:
            source = producer(tensor)
            if source is None or _is_constant_form(source):
                continue
            if (
                is_conversion(source, "QuantizeLinear")
                or source.op in rules
                or is_conversion(source, "DequantizeLinear")
            ):
                leader[find(node_label(node))] = find(node_label(source))
    found: dict[str, list[str]] = {}
    for name in [node_label(node) for node in model.graph.nodes if node_label(node) in layers]:
        found.setdefault(find(name), []).append(name)
    rest = layers - {name for group in found.values() for name in group}
    return [*found.values(), *([name] for name in sorted(rest))]


def _is_constant_form(node: Node) -> bool:
    """Tell whether a node restores a constant, which several layers may share without a word to each other."""
    return is_conversion(node, "DequantizeLinear") and _is_constant(node)


def _without(before: Model, placed: Placed, names: Mapping[str, str], attempt: Attempt) -> Placed:
    """Return the group run again with nodes left as they were; its rows say why."""
    steps = (placed.passes[0].keeping(list(names)), *placed.passes[1:])
    model = before.copy()
    outcome = attempt(model, steps)
    was = {layer.name: layer for layer in _layers(placed.outcome)}
    rows = [replace(was[name], kept=False, reverted=True, reason=why) for name, why in names.items() if name in was]
    gone = [layer for layer in placed.outcome.records[0].layers if layer.reverted]
    first = outcome.records[0]
    skips = [skip for skip in first.skips if skip[0] not in names]
    first = replace(first, layers=[*first.layers, *gone, *rows], skips=skips)
    return Placed(model, replace(outcome, records=[first, *outcome.records[1:]]), steps, placed.notes)


def _layers(outcome: Outcome) -> list[LayerRecord]:
    return [layer for record in outcome.records for layer in record.layers if changed(layer)]


def _listed(names: Mapping[str, str], most: int = 4) -> str:
    shown = [f"'{name}' ({why})" if why else f"'{name}'" for name, why in list(names.items())[:most]]
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(shown) + more
