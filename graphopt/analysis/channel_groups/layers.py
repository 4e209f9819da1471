"""Operators with weights: they make channels and sum over those that they read."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from graphopt.analysis.channel_groups.elementwise import tie
from graphopt.analysis.channel_groups.flow import given, label
from graphopt.analysis.channel_groups.sites import Role
from graphopt.analysis.channel_groups.units import HEADS

if TYPE_CHECKING:
    from graphopt.analysis.channel_groups.flow import Flow, Rule
    from graphopt.analysis.channel_groups.units import Labels
    from graphopt.graph import Node


def rules() -> dict[str, Rule]:
    """Return the rules of this module by operator."""
    return {"Conv": convolution, "ConvTranspose": convolution, "Gemm": gemm, "MatMul": matmul}


def convolution(flow: Flow, node: Node) -> None:
    """Columns consume what comes in, rows make what goes out; groups tie both as far as they must stay equal."""
    axes = flow.of(node.inputs[0])
    for axis, labels in axes.items():
        if axis != 1:
            flow.units.freeze(labels, f"{label(node)} moves over its axis {axis}")
    if not flow.is_constant(node.inputs[1]):
        flow.stop(node, f"the weight of {label(node)} is computed or fed from outside")
        return
    given_labels = axes.get(1)
    groups = int(node.attrs.get("group", 1))
    transposed = node.op == "ConvTranspose"
    weight = node.inputs[1]
    ahead, aside = flow.size(weight, 0), flow.size(weight, 1)
    if ahead is None or aside is None:
        flow.stop(node)
        return
    if groups == 1:
        consumed, made = (0, 1) if transposed else (1, 0)
        consume(flow, node, 1, consumed, given_labels)
        rows = produce(flow, node, 1, made, aside if transposed else ahead)
    elif transposed or ahead % groups:
        flow.stop(node, f"{label(node)} is a grouped transposed convolution" if transposed else "")
        return
    else:
        rows = _grouped(flow, node, groups, ahead, aside, given_labels)
    if given(node, 2):
        flow.carry(node, 2, 0, rows)
    flow.give(node.outputs[0], {1: rows})


def _grouped(flow: Flow, node: Node, groups: int, rows: int, columns: int, incoming: Labels | None) -> Labels:
    """Return the labels of a grouped convolution's output.

    Many small groups go whole: the channels of one are tied, those that come in and those that go out. Few large ones
    lose the same positions each.
    """
    weight = node.inputs[1]
    per = rows // groups
    if groups >= columns and incoming is not None:
        together = incoming.reshape(groups, columns)
        flow.units.tie(np.repeat(together[:, :1], columns, axis=1).ravel(), together.ravel())
        made = flow.bind(weight, 0, np.repeat(together[:, 0], per))
        flow.cut(node, 1, 0, made, Role.CARRY)
        flow.count(node, "group", None, made, per=per)
        flow.hold(weight, 1, f"{label(node)} has groups")
        return made
    if incoming is None:
        flow.hold(weight, 1, f"{label(node)} reads channels that are not known")
    else:
        together = incoming.reshape(groups, columns)
        flow.units.tie(np.tile(together[0], groups), incoming)
        consume(flow, node, 1, 1, together[0])
    made = flow.rows(weight, 0, rows)
    flow.units.tie(np.tile(made[:per], groups), made)
    flow.cut(node, 1, 0, made, Role.PRODUCE)
    return made


def consume(flow: Flow, node: Node, index: int, axis: int, labels: Labels | None) -> None:
    """Let an axis of a weight consume what its node reads."""
    if labels is None:
        flow.hold(node.inputs[index], axis, f"{label(node)} reads channels that are not known")
    else:
        flow.cut(node, index, axis, flow.bind(node.inputs[index], axis, labels), Role.CONSUME)


def produce(flow: Flow, node: Node, index: int, axis: int, count: int) -> Labels:
    """Return the labels that an axis of a weight makes."""
    rows = flow.rows(node.inputs[index], axis, count)
    if count > 1:
        flow.cut(node, index, axis, rows, Role.PRODUCE)
    return rows


def gemm(flow: Flow, node: Node) -> None:
    """A product of a matrix and a constant one, plus a bias."""
    axes = flow.of(node.inputs[0])
    weight = node.inputs[1]
    if not flow.is_constant(weight) or node.attrs.get("transA", 0):
        flow.stop(node)
        return
    made, consumed = (0, 1) if node.attrs.get("transB", 0) else (1, 0)
    count = flow.size(weight, made)
    if count is None:
        flow.stop(node)
        return
    consume(flow, node, 1, consumed, axes.get(1))
    rows = produce(flow, node, 1, made, count)
    result = {1: rows}
    if 0 in axes:
        result[0] = axes[0]
    if given(node, 2):
        rank = flow.rank(node.inputs[2])
        for axis, labels in result.items():
            own = axis - 2 + (rank or 0)
            if rank is None:
                flow.units.freeze(labels, f"{label(node)} adds something of unknown shape")
            elif own >= 0 and flow.size(node.inputs[2], own) != 1:
                flow.carry(node, 2, own, labels)
    flow.give(node.outputs[0], result)


def matmul(flow: Flow, node: Node) -> None:
    """A product with a constant, or of two computed tensors, whose batch axes are tied."""
    left, right = node.inputs[0], node.inputs[1]
    ranks = flow.rank(left), flow.rank(right)
    fixed = flow.is_constant(left), flow.is_constant(right)
    if all(fixed) or ranks[0] is None or ranks[1] is None or min(ranks[0], ranks[1]) < 2:
        flow.stop(node)
        return
    a, b = flow.of(left), flow.of(right)
    result: dict[int, Labels] = {}
    rank = max(ranks[0], ranks[1])
    if fixed[1]:
        consume(flow, node, 1, ranks[1] - 2, a.get(ranks[0] - 1))
        rows = _rows(flow, node, 1, ranks[1] - 1)
    elif fixed[0]:
        consume(flow, node, 0, ranks[0] - 1, b.get(ranks[1] - 2))
        rows = _rows(flow, node, 0, ranks[0] - 2)
    else:
        rows = None
        for tensor, labels in ((left, a.get(ranks[0] - 1)), (right, b.get(ranks[1] - 2))):
            if labels is not None:
                flow.units.freeze(labels, f"{label(node)} sums over it, of '{tensor.name}' and another tensor")
    across, along = a.get(ranks[0] - 2), b.get(ranks[1] - 1)
    if fixed[0]:
        across = rows
    if fixed[1]:
        along = rows
    if across is not None:
        result[rank - 2] = across
    if along is not None:
        result[rank - 1] = along
    for axis in range(rank - 2):
        places = [(i, axis - rank + own) for i, own in enumerate(ranks) if own is not None and axis - rank + own >= 0]
        joined = tie(flow, node, places, mark=0)
        if joined is not None:
            result[axis] = joined
            if len(places) == 2 and not any(fixed):
                flow.units.mark(joined, HEADS)
    flow.give(node.outputs[0], result)


def _rows(flow: Flow, node: Node, index: int, axis: int) -> Labels | None:
    count = flow.size(node.inputs[index], axis)
    return None if count is None else produce(flow, node, index, axis, count)
