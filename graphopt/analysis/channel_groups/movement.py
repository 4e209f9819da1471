"""Operators that move data: channels keep their labels at new places."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from graphopt.analysis.channel_groups.elementwise import tie
from graphopt.analysis.channel_groups.flow import given, label
from graphopt.analysis.channel_groups.sites import EvenSplit, Lookup, Role
from graphopt.analysis.channel_groups.units import RESIDUAL

if TYPE_CHECKING:
    from graphopt.analysis.channel_groups.flow import Flow, Rule
    from graphopt.analysis.channel_groups.units import Labels
    from graphopt.graph import Node


def rules() -> dict[str, Rule]:
    """Return the rules of this module by operator."""
    return {
        "Concat": concat,
        "DepthToSpace": depth_to_space,
        "Gather": gather,
        "Pad": pad,
        "Resize": resize,
        "Upsample": resize,
        "SpaceToDepth": space_to_depth,
        "Split": split,
        "Slice": slice_,
        "Squeeze": squeeze,
        "Unsqueeze": squeeze,
        "Tile": tile,
        "Transpose": transpose,
    }


def transpose(flow: Flow, node: Node) -> None:
    """Axes change places."""
    axes = flow.of(node.inputs[0])
    rank = flow.rank(node.inputs[0])
    if not axes:
        return
    if rank is None:
        flow.stop(node)
        return
    order = [int(axis) for axis in node.attrs.get("perm", range(rank)[::-1])]
    flow.give(node.outputs[0], {order.index(axis): labels for axis, labels in axes.items()})


def squeeze(flow: Flow, node: Node) -> None:
    """Axes of size one go or come."""
    source, result = node.inputs[0], node.outputs[0]
    if source in flow.sizes:
        flow.sizes[result] = flow.sizes[source]
        return
    axes = flow.of(source)
    if not axes:
        return
    rank, after = flow.rank(source), flow.rank(result)
    changed = flow.integers(node, 1, "axes")
    if rank is None or after is None:
        flow.stop(node)
        return
    if changed is None:
        flow.stop(node, f"{label(node)} would drop it where one is left")
        return
    if node.op == "Unsqueeze":
        added = {axis % after for axis in changed}
        places = [axis for axis in range(after) if axis not in added]
        flow.give(result, {places[axis]: labels for axis, labels in axes.items()})
        return
    removed = {axis % rank for axis in changed}
    flow.give(result, {axis - sum(each < axis for each in removed): labels for axis, labels in axes.items()})


def concat(flow: Flow, node: Node) -> None:
    """Labels stand one behind the other along the axis and are tied along others."""
    inputs = list(node.inputs)
    if any(tensor in flow.sizes for tensor in inputs):
        joined: list[Labels | None] = []
        for tensor in inputs:
            count = flow.size(tensor, 0) if flow.rank(tensor) == 1 else None
            if count is None:
                flow.stop(node)
                return
            joined.extend(flow.sizes.get(tensor, [None] * count))
        flow.sizes[node.outputs[0]] = joined
        return
    if not any(flow.of(tensor) for tensor in inputs):
        return
    rank = flow.rank(node.outputs[0])
    if rank is None:
        flow.stop(node)
        return
    along = int(node.attrs.get("axis", 1)) % rank
    axes = {}
    for axis in range(rank):
        if axis != along:
            joined_axis = tie(flow, node, [(index, axis) for index in range(len(inputs))])
            if joined_axis is not None:
                axes[axis] = joined_axis
    if any(along in flow.of(tensor) for tensor in inputs):
        parts = _parts(flow, node, along)
        if parts is not None:
            axes[along] = np.concatenate(parts)
    flow.give(node.outputs[0], axes)


def _parts(flow: Flow, node: Node, along: int) -> list[Labels] | None:
    """Return the labels of all inputs of a Concat along its axis: new ones, which stay, for those that have none."""
    counts = [flow.size(tensor, along) for tensor in node.inputs]
    if any(count is None for count in counts):
        for tensor in node.inputs:
            if along in flow.of(tensor):
                flow.units.freeze(flow.of(tensor)[along], f"{label(node)} joins it with something of unknown size")
        return None
    parts = []
    for tensor, count in zip(node.inputs, counts, strict=True):
        labels = flow.of(tensor).get(along)
        if labels is None:
            labels = flow.units.fresh(count or 0)
            flow.units.freeze(labels, f"'{tensor.name}' has channels that are not known")
        parts.append(labels)
    return parts


def split(flow: Flow, node: Node) -> None:
    """Labels are divided along the axis; other axes pass."""
    axes = flow.of(node.inputs[0])
    rank = flow.rank(node.inputs[0])
    if not axes:
        flow.stop(node)
        return
    outputs = list(node.outputs)
    axis = int(node.attrs.get("axis", 0))
    if rank is None:
        flow.stop(node)
        return
    axis %= rank
    labels = axes.get(axis)
    counts = [flow.size(tensor, axis) for tensor in outputs]
    parts: list[Labels] = []
    if labels is not None:
        if any(count is None for count in counts) or sum(count or 0 for count in counts) != len(labels):
            flow.stop(node)
            return
        parts = np.split(labels, np.cumsum([count or 0 for count in counts])[:-1])
        if "split" in node.attrs:
            for position, part in enumerate(parts):
                flow.count(node, "split", position, part)
        elif given(node, 1):
            for position, (part, count) in enumerate(zip(parts, counts, strict=True)):
                flow.settle_size(node, 1, position, part, count)
        else:
            flow.even_splits.append(EvenSplit(node, tuple(parts)))
    for position, tensor in enumerate(outputs):
        own = {each: found for each, found in axes.items() if each != axis}
        if parts:
            own[axis] = parts[position]
        flow.give(tensor, own)


def slice_(flow: Flow, node: Node) -> None:
    """A part of the labels along an axis whose bounds are constant; other axes pass."""
    source, result = node.inputs[0], node.outputs[0]
    axes = flow.of(source)
    if not axes and source not in flow.sizes:
        flow.stop(node)
        return
    bounds = _bounds(flow, node)
    if bounds is None:
        flow.stop(node)
        return
    if source in flow.sizes:
        start, end, step, _ = bounds.get(0, (0, 1 << 31, 1, 0))
        flow.sizes[result] = flow.sizes[source][slice(start, end if step > 0 or end >= 0 else None, step)]
        return
    kept = {}
    for axis, labels in axes.items():
        if axis not in bounds:
            kept[axis] = labels
            continue
        start, end, step, position = bounds[axis]
        count = len(labels)
        first, last = (max(0, bound + count) if bound < 0 else min(bound, count) for bound in (start, end))
        if step != 1 or first >= last:
            flow.units.freeze(labels, f"{label(node)} takes every {step}th of it" if step != 1 else "nothing is taken")
            continue
        for bound, cut, place in ((start, first, "starts"), (end, last, "ends")):
            where: int | str = place if place in node.attrs else 1 if place == "starts" else 2
            if 0 < bound <= count:
                flow.count(node, where, position, labels[:cut])
            elif -count <= bound < 0:
                flow.count(node, where, position, labels[cut:], per=-1)
        kept[axis] = labels[first:last]
    flow.give(result, kept)


def _bounds(flow: Flow, node: Node) -> dict[int, tuple[int, int, int, int]] | None:
    """Return (start, end, step, position in the lists) by axis, None where they are computed."""
    rank = flow.rank(node.inputs[0])
    starts = flow.integers(node, 1, "starts")
    ends = flow.integers(node, 2, "ends")
    steps = flow.integers(node, 4)
    listed = flow.integers(node, 3, "axes")
    if rank is None or (listed is None and given(node, 3)) or (steps is None and given(node, 4)):
        return None
    if starts is None or ends is None:
        # bounds that are computed matter only where channels lie
        count = flow.size(node.inputs[1], 0) if given(node, 1) else None
        touched = {axis % rank for axis in (listed if listed is not None else range(count or rank))}
        return None if touched & set(flow.of(node.inputs[0])) or node.inputs[0] in flow.sizes else {}
    listed = listed if listed is not None else list(range(len(starts)))
    steps = steps if steps is not None else [1] * len(starts)
    return {
        axis % rank: (start, end, step, position)
        for position, (axis, start, end, step) in enumerate(zip(listed, starts, ends, steps, strict=True))
    }


def gather(flow: Flow, node: Node) -> None:
    """Rows of a table, or chosen channels."""
    data, indices = node.inputs[0], node.inputs[1]
    rank, extra = flow.rank(data), flow.rank(indices)
    flow.freeze(indices, f"{label(node)} takes it for indices")
    if rank is None or extra is None:
        flow.stop(node)
        return
    axis = int(node.attrs.get("axis", 0)) % rank
    if data in flow.sizes:
        chosen = flow.integers(node, 1)
        if chosen is None:
            flow.stop(node)
        else:
            flow.sizes[node.outputs[0]] = [flow.sizes[data][place] for place in chosen]
        return
    if flow.is_constant(data):
        _table(flow, node, rank, extra, axis)
        return
    axes = flow.of(data)
    kept = {each if each < axis else each + extra - 1: labels for each, labels in axes.items() if each != axis}
    labels = axes.get(axis)
    if labels is not None:
        chosen = flow.integers(node, 1)
        if chosen is None or extra != 1 or any(not -len(labels) <= place < len(labels) for place in chosen):
            flow.units.freeze(labels, f"{label(node)} picks from it")
        else:
            picked = labels[chosen]
            flow.lookups.append(Lookup(node, labels, picked))
            kept[axis] = picked
    flow.give(node.outputs[0], kept)


def _table(flow: Flow, node: Node, rank: int, extra: int, axis: int) -> None:
    """A constant table makes the channels along the axes that are not looked up, where it is looked up along one."""
    made = {}
    if axis == 0 and rank == 2 and not flow.is_constant(node.inputs[1]):
        count = flow.size(node.inputs[0], 1)
        if count is not None and count > 1:
            labels = flow.rows(node.inputs[0], 1, count)
            flow.cut(node, 0, 1, labels, Role.PRODUCE)
            made[extra] = labels
    flow.give(node.outputs[0], made)


def pad(flow: Flow, node: Node) -> None:
    """Channels may be padded with constants; what is added counts with what it is joined to later."""
    source = node.inputs[0]
    axes = flow.of(source)
    if not axes:
        return
    rank = flow.rank(source)
    attribute = next((name for name in ("pads", "paddings") if name in node.attrs), "")
    amounts = flow.integers(node, 1, attribute)
    listed = flow.integers(node, 3)
    if rank is None or amounts is None or (listed is None and given(node, 3)):
        flow.stop(node)
        return
    listed = list(range(rank)) if listed is None else [axis % rank for axis in listed]
    mode = node.attrs.get("mode", "constant")
    plain = mode in {"constant", b"constant"}
    kept = {}
    for axis, labels in axes.items():
        position = listed.index(axis) if axis in listed else -1
        before, behind = (amounts[position], amounts[position + len(listed)]) if position >= 0 else (0, 0)
        if not before and not behind:
            kept[axis] = labels
            continue
        if not plain or before < 0 or behind < 0:
            flow.units.freeze(labels, f"{label(node)} changes it")
            continue
        place: int | str = attribute or 1
        ends = [flow.units.fresh(before), flow.units.fresh(behind)]
        for part, at in zip(ends, (position, position + len(listed)), strict=True):
            if len(part):
                flow.units.mark(part, RESIDUAL)
                flow.count(node, place, at, part)
        kept[axis] = np.concatenate([ends[0], labels, ends[1]])
    flow.give(node.outputs[0], kept)


def resize(flow: Flow, node: Node) -> None:
    """Axes that keep their size pass."""
    source = node.inputs[0]
    axes = flow.of(source)
    if not axes:
        return
    rank = flow.rank(source)
    if rank is None:
        flow.stop(node)
        return
    listed = [int(axis) % rank for axis in node.attrs.get("axes", range(rank))]
    sizes_at, scales_at = (3, 2 if flow.opset >= 11 else 1)
    kept = {}
    for axis, labels in axes.items():
        same = flow.size(node.outputs[0], axis) == len(labels)
        fine = same
        if axis in listed and same:
            position = listed.index(axis)
            scales = flow.integers(node, scales_at, "scales") if not given(node, sizes_at) else None
            if given(node, sizes_at):
                fine = flow.settle_size(node, sizes_at, position, labels, len(labels))
            else:
                fine = scales is not None and len(scales) > position and scales[position] == 1
        if fine:
            kept[axis] = labels
        else:
            flow.units.freeze(labels, f"{label(node)} resizes it")
    flow.give(node.outputs[0], kept)


def tile(flow: Flow, node: Node) -> None:
    """Channels that are repeated are the same channels again."""
    axes = flow.of(node.inputs[0])
    if not axes:
        return
    repeats = flow.integers(node, 1)
    if repeats is None:
        flow.stop(node)
        return
    flow.give(node.outputs[0], {axis: np.tile(labels, repeats[axis]) for axis, labels in axes.items()})


def depth_to_space(flow: Flow, node: Node) -> None:
    """The channels that become one pixel's neighbours go together."""
    axes = _square(flow, node)
    if axes is None:
        return
    labels, block = axes
    depth_first = node.attrs.get("mode", "DCR") in {"DCR", b"DCR"}
    cube = labels.reshape(block * block, -1) if depth_first else labels.reshape(-1, block * block).T
    flow.units.tie(np.broadcast_to(cube[:1], cube.shape).ravel(), cube.ravel())
    flow.give(node.outputs[0], {1: cube[0]})


def space_to_depth(flow: Flow, node: Node) -> None:
    """Each channel becomes several."""
    axes = _square(flow, node)
    if axes is not None:
        flow.give(node.outputs[0], {1: np.tile(axes[0], axes[1] * axes[1])})


def _square(flow: Flow, node: Node) -> tuple[Labels, int] | None:
    axes = flow.of(node.inputs[0])
    if set(axes) - {1}:
        flow.stop(node)
        return None
    return (axes[1], int(node.attrs["blocksize"])) if axes else None
