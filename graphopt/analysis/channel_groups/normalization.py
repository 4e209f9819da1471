"""Operators that compute over some axes: channels along others pass, those along these must stay."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from graphopt.analysis.channel_groups.flow import given, label

if TYPE_CHECKING:
    from collections.abc import Collection

    from graphopt.analysis.channel_groups.flow import Flow, Rule
    from graphopt.graph import Node

_REDUCTIONS = "L1 L2 LogSum LogSumExp Max Mean Min Prod Sum SumSquare"
_POOLS = "AveragePool LpPool MaxPool GlobalAveragePool GlobalLpPool GlobalMaxPool"


def rules() -> dict[str, Rule]:
    """Return the rules of this module by operator."""
    return {
        "BatchNormalization": per_channel,
        "InstanceNormalization": per_channel,
        "GroupNormalization": group_normalization,
        "LayerNormalization": from_axis,
        "RMSNormalization": from_axis,
        "LpNormalization": over_axis,
        "MeanVarianceNormalization": mean_variance,
        "LRN": across_channels,
        **dict.fromkeys(("Softmax", "LogSoftmax", "Hardmax"), softmax),
        **dict.fromkeys(_POOLS.split(), pool),
        **{f"Reduce{name}": reduction for name in _REDUCTIONS.split()},
        **dict.fromkeys(("ArgMax", "ArgMin", "CumSum", "TopK", "Trilu"), other_axes),
    }


def _pass(flow: Flow, node: Node, stopped: Collection[int], *, outputs: int = 1) -> None:
    """Pass the labels of all axes but some, which are frozen."""
    axes = flow.of(node.inputs[0])
    for axis in stopped:
        if axis in axes:
            flow.units.freeze(axes[axis], f"{label(node)} computes over it")
    kept = {axis: labels for axis, labels in axes.items() if axis not in stopped}
    for tensor in node.outputs[:outputs]:
        if tensor.name:
            flow.give(tensor, dict(kept))


def per_channel(flow: Flow, node: Node) -> None:
    """Statistics and factors of each channel on its own."""
    axes = flow.of(node.inputs[0])
    rank = flow.rank(node.inputs[0])
    if rank is None or node.attrs.get("training_mode", 0) or len([each for each in node.outputs if each.name]) > 1:
        flow.stop(node)
        return
    labels = axes.get(1)
    if labels is not None:
        for index in range(1, len(node.inputs)):
            flow.carry(node, index, 0, labels)
    _pass(flow, node, () if node.op == "BatchNormalization" else range(2, rank))


def group_normalization(flow: Flow, node: Node) -> None:
    """Statistics of groups of channels: a group goes whole, so that those of the others stay what they were."""
    rank = flow.rank(node.inputs[0])
    groups = int(node.attrs.get("num_groups", 1))
    labels = flow.of(node.inputs[0]).get(1)
    if rank is None or (labels is not None and len(labels) % groups):
        flow.stop(node)
        return
    if labels is not None:
        together = labels.reshape(groups, -1)
        whole = np.repeat(together[:, :1], together.shape[1], axis=1).ravel()
        flow.units.tie(whole, labels)
        flow.count(node, "num_groups", None, labels, per=together.shape[1])
        for index in (1, 2):
            size = flow.size(node.inputs[index], 0)
            flow.carry(node, index, 0, together[:, 0] if size == groups else labels)
    _pass(flow, node, range(2, rank))


def from_axis(flow: Flow, node: Node) -> None:
    """Statistics over all axes from one on."""
    rank = flow.rank(node.inputs[0])
    if rank is None:
        flow.stop(node)
        return
    axis = int(node.attrs.get("axis", -1))
    _pass(flow, node, range(axis + rank if axis < 0 else axis, rank))


def over_axis(flow: Flow, node: Node) -> None:
    """One axis that is computed over."""
    rank = flow.rank(node.inputs[0])
    if rank is None:
        flow.stop(node)
        return
    _pass(flow, node, {int(node.attrs.get("axis", -1)) % rank})


def softmax(flow: Flow, node: Node) -> None:
    """One axis, or before opset 13 all from one on."""
    rank = flow.rank(node.inputs[0])
    if not rank:
        flow.stop(node)
        return
    axis = int(node.attrs.get("axis", -1 if flow.opset >= 13 else 1)) % rank
    _pass(flow, node, range(axis, rank) if flow.opset < 13 else {axis})


def mean_variance(flow: Flow, node: Node) -> None:
    """Statistics over given axes."""
    rank = flow.rank(node.inputs[0])
    if rank is None:
        flow.stop(node)
        return
    _pass(flow, node, {int(axis) % rank for axis in node.attrs.get("axes", (0, 2, 3))})


def across_channels(flow: Flow, node: Node) -> None:
    """Neighbouring channels together."""
    _pass(flow, node, {1})


def pool(flow: Flow, node: Node) -> None:
    """Windows over positions."""
    rank = flow.rank(node.inputs[0])
    if rank is None or (len(node.outputs) > 1 and node.outputs[1].name):
        flow.stop(node)
        return
    _pass(flow, node, range(2, rank))


def reduction(flow: Flow, node: Node) -> None:
    """Axes that go, or shrink to one."""
    axes = flow.of(node.inputs[0])
    if not axes:
        flow.stop(node)
        return
    rank = flow.rank(node.inputs[0])
    reduced = flow.integers(node, 1, "axes")
    if rank is None or (reduced is None and given(node, 1)):
        flow.stop(node)
        return
    if not reduced and node.attrs.get("noop_with_empty_axes", 0):
        flow.give(node.outputs[0], dict(axes))
        return
    gone = {axis % rank for axis in reduced} if reduced else set(range(rank))
    for axis in gone & set(axes):
        flow.units.freeze(axes[axis], f"{label(node)} computes over it")
    shrinks = not int(node.attrs.get("keepdims", 1))
    kept = {}
    for axis, labels in axes.items():
        if axis not in gone:
            kept[axis - sum(each < axis for each in gone) if shrinks else axis] = labels
    flow.give(node.outputs[0], kept)


def other_axes(flow: Flow, node: Node) -> None:
    """Operators whose result has the labels of the axes they leave alone, where it keeps its rank; others stop."""
    rank = flow.rank(node.inputs[0])
    if not flow.of(node.inputs[0]) or rank is None:
        flow.stop(node)
        return
    if node.op == "Trilu":
        _pass(flow, node, {rank - 2, rank - 1})
        return
    if node.op == "CumSum":
        axes = flow.integers(node, 1)
        if axes is None:
            flow.stop(node)
        else:
            _pass(flow, node, {axes[0] % rank})
        return
    if not int(node.attrs.get("keepdims", 1)):
        flow.stop(node)
        return
    default = -1 if node.op == "TopK" else 0
    _pass(flow, node, {int(node.attrs.get("axis", default)) % rank}, outputs=2)
