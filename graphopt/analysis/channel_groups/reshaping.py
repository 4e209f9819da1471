"""Reshape, Flatten, Expand and the sizes they read: labels are mapped block of axes by block of axes.

Where one axis becomes several, one of these keeps the labels and ties those along the others: heads of attention stay
whole, and so do the positions of a channel shuffle. Which one, what happens behind decides.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from graphopt.analysis.channel_groups.flow import label
from graphopt.graph import uses

if TYPE_CHECKING:
    from graphopt.analysis.channel_groups.flow import Axes, Flow, Rule
    from graphopt.analysis.channel_groups.units import Labels
    from graphopt.analysis.dims import Dim
    from graphopt.graph import Node, Tensor

LOOK_AHEAD = 40
"""Operators that are looked through to see what becomes of an axis."""

_REACHES_PRODUCT, _IS_MERGED, _ENDS = 2, 1, 0


def rules() -> dict[str, Rule]:
    """Return the rules of this module by operator."""
    return {"Expand": expand, "Flatten": flatten, "Reshape": reshape, "Shape": shape_of}


def shape_of(flow: Flow, node: Node) -> None:
    """The size of an axis with channels counts them."""
    axes = flow.of(node.inputs[0])
    rank = flow.rank(node.inputs[0])
    if not axes or rank is None:
        flow.stop(node)
        return
    end = int(node.attrs.get("end", rank))
    span = range(rank)[slice(int(node.attrs.get("start", 0)), end)]
    if any(axis in axes for axis in span):
        flow.sizes[node.outputs[0]] = [axes.get(axis) for axis in span]


def expand(flow: Flow, node: Node) -> None:
    """Axes of size one are repeated; those with labels keep their size, which the target states."""
    source, result = node.inputs[0], node.outputs[0]
    axes = flow.of(source)
    rank, after = flow.rank(source), flow.rank(result)
    if rank is None or after is None:
        flow.stop(node)
        return
    length = flow.size(node.inputs[1], 0)
    kept = {}
    for axis, labels in axes.items():
        to = axis + after - rank
        position = to - after + (length if length is not None else after)
        if position < 0 or flow.settle_size(node, 1, position, labels, len(labels)):
            kept[to] = labels
    _other_sizes(flow, node, kept, after)
    flow.give(result, kept)


def flatten(flow: Flow, node: Node) -> None:
    """Two blocks of axes become one each."""
    source = node.inputs[0]
    axes = flow.of(source)
    before = flow.types.shape(source)
    if not axes:
        return
    if before is None:
        flow.stop(node)
        return
    axis = int(node.attrs.get("axis", 1))
    axis = axis + len(before) if axis < 0 else axis
    kept: Axes = {}
    for place, block in enumerate((list(range(axis)), list(range(axis, len(before))))):
        flat = _flat(flow, node, axes, before, block)
        if flat is not None:
            kept[place] = flat
    flow.give(node.outputs[0], kept)


def reshape(flow: Flow, node: Node) -> None:
    """Blocks of axes that hold equally many elements are mapped one to one."""
    source, result = node.inputs[0], node.outputs[0]
    axes = flow.of(source)
    before, after = flow.types.shape(source), flow.types.shape(result)
    if source in flow.sizes:
        if after is not None and len(after) <= 1:
            flow.sizes[result] = flow.sizes[source]
        else:
            flow.freeze(source, f"its size is computed with by {label(node)}")
        return
    if before is None or after is None:
        flow.stop(node)
        return
    kept: Axes = {}
    for block, into in _blocks(before, after):
        if any(axis in axes for axis in block):
            kept.update(_mapped(flow, node, axes, block, into))
    _settle(flow, node, axes, kept, len(after))
    flow.give(result, kept)


def _settle(flow: Flow, node: Node, axes: Axes, kept: Axes, rank: int) -> None:
    """Let the target of a Reshape follow: its numbers count channels, a zero copies a size, -1 is what is left."""
    if "shape" in node.attrs:
        numbers: list[int] | None = [int(number) for number in node.attrs["shape"]]
        for axis, labels in kept.items():
            if int(node.attrs["shape"][axis]) not in {0, -1}:
                flow.count(node, "shape", axis, labels)
    else:
        for axis, labels in list(kept.items()):
            if not flow.settle_size(node, 1, axis, labels, len(labels)):
                del kept[axis]
        _other_sizes(flow, node, kept, rank)
        numbers = flow.integers(node, 1)
    if numbers is None or int(node.attrs.get("allowzero", 0)):
        return
    for axis, number in enumerate(numbers):
        if number:
            continue
        copied = [labels for labels in (axes.get(axis), kept.get(axis)) if labels is not None]
        if copied and (len(copied) == 1 or not flow.same_count(*copied)):
            for labels in copied:
                flow.units.freeze(labels, f"{label(node)} copies the size of another axis")


def _other_sizes(flow: Flow, node: Node, kept: Axes, rank: int) -> None:
    """Freeze channels whose number is taken for the size of an axis that has none."""
    length = flow.size(node.inputs[1], 0)
    for axis in range(rank):
        position = axis - rank + (length if length is not None else rank)
        if axis not in kept and position >= 0:
            flow.settle_size(node, 1, position, None, None)


def _blocks(before: tuple[Dim, ...], after: tuple[Dim, ...]) -> list[tuple[list[int], list[int]]]:
    """Return blocks of axes (before, after) of the same number of elements, as small as can be proved.

    Equal sizes from the front and from the back are pairs; what lies between is divided where the products of numbers
    are equal, and is one block where a size in it is symbolic.
    """
    front = 0
    while front < min(len(before), len(after)) and before[front] == after[front]:
        front += 1
    back = 0
    while back < min(len(before), len(after)) - front and before[-1 - back] == after[-1 - back]:
        back += 1
    blocks = [([axis], [axis]) for axis in range(front)]
    middle = list(range(front, len(before) - back)), list(range(front, len(after) - back))
    sizes = [[shape[axis] for axis in axes] for shape, axes in zip((before, after), middle, strict=True)]
    if all(isinstance(size, int) and size > 0 for each in sizes for size in each):
        blocks.extend(_divided(middle, sizes))  # type: ignore[arg-type]
    elif middle[0] or middle[1]:
        blocks.append(middle)
    blocks.extend(([len(before) - back + i], [len(after) - back + i]) for i in range(back))
    return blocks


def _divided(axes: tuple[list[int], list[int]], sizes: list[list[int]]) -> list[tuple[list[int], list[int]]]:
    """Divide two lists of axes of the same number of elements wherever the products so far are equal."""
    blocks: list[tuple[list[int], list[int]]] = []
    block: tuple[list[int], list[int]] = ([], [])
    counts, places = [1, 1], [0, 0]
    while places[0] < len(axes[0]) or places[1] < len(axes[1]):
        side = 0 if counts[0] < counts[1] or not block[0] else 1
        if places[side] == len(axes[side]):
            side = 1 - side
        block[side].append(axes[side][places[side]])
        counts[side] *= sizes[side][places[side]]
        places[side] += 1
        if counts[0] == counts[1] and block[0] and block[1]:
            blocks.append(block)
            block, counts = ([], []), [1, 1]
    return [*blocks, block] if block[0] or block[1] else blocks


def _mapped(flow: Flow, node: Node, axes: Axes, block: list[int], into: list[int]) -> Axes:
    """Return the labels of the axes that a block becomes."""
    before, after = flow.types.shape(node.inputs[0]), flow.types.shape(node.outputs[0])
    assert before is not None
    assert after is not None
    if len(block) == len(into) == 1:
        return {into[0]: axes[block[0]]}
    flat = _flat(flow, node, axes, before, block)
    sizes = [after[axis] for axis in into]
    if flat is None:
        return {}
    numbers = [size for size in sizes if isinstance(size, int)]
    if len(numbers) != len(sizes) or int(np.prod(numbers)) != len(flat):
        flow.units.freeze(flat, f"{label(node)} makes axes of unknown size of it")
        return {}
    cube = flat.reshape(numbers)
    wide = [place for place, size in enumerate(numbers) if size > 1]
    if len(wide) == 1:
        return {into[wide[0]]: flat}
    chosen = _free(flow, cube, wide)
    if chosen is None:
        chosen = _chosen(flow, node, into, numbers, wide)
    if chosen is None:
        flow.units.freeze(flat, f"{label(node)} divides it, and no part can lose any")
        return {}
    table = np.moveaxis(cube, chosen, 0).reshape(numbers[chosen], -1)
    flow.units.tie(np.repeat(table[:, :1], table.shape[1], axis=1).ravel(), table.ravel())
    return {into[chosen]: np.ascontiguousarray(table[:, 0])}


def _flat(flow: Flow, node: Node, axes: Axes, before: tuple[Dim, ...], block: list[int]) -> Labels | None:
    """Return the labels of the elements of a block, row by row, where one of its axes has labels."""
    held = [axis for axis in block if axis in axes]
    if not held:
        return None
    if len(block) == 1:
        return axes[held[0]]
    sizes = [before[axis] for axis in block]
    numbers = [size for size in sizes if isinstance(size, int)]
    if len(held) > 1 or len(numbers) != len(sizes):
        why = "channels with channels" if len(held) > 1 else "channels with axes of unknown size"
        for axis in held:
            flow.units.freeze(axes[axis], f"{label(node)} joins {why}")
        return None
    place = block.index(held[0])
    shape = [-1 if each == place else 1 for each in range(len(block))]
    return np.broadcast_to(axes[held[0]].reshape(shape), numbers).ravel()


def _free(flow: Flow, cube: Labels, wide: list[int]) -> int | None:
    """Return an axis along which alone labels differ."""
    roots = flow.units.roots(cube)
    for place in wide:
        table = np.moveaxis(roots, place, 0).reshape(cube.shape[place], -1)
        if bool((table == table[:, :1]).all()):
            return place
    return None


def _chosen(flow: Flow, node: Node, into: list[int], numbers: list[int], wide: list[int]) -> int | None:
    """Return the axis that keeps labels: the first that is a batch axis of a product behind, else the largest."""
    found = [(place, _fate(flow, node.outputs[0], into[place])) for place in wide]
    for place, fate in found:
        if fate == _REACHES_PRODUCT:
            return place
    merged = [place for place, fate in found if fate == _IS_MERGED]
    return max(merged, key=lambda place: (numbers[place], -place)) if merged else None


_THROUGH = {"Add", "Sub", "Mul", "Div", "Relu", "Sigmoid", "Neg", "Cast", "Identity", "Where", "Tanh", "Gelu", "IsNaN"}
_LAST_AXES = {"Softmax", "LayerNormalization", "RMSNormalization", "LpNormalization", "ReduceMean", "ReduceSum"}


def _fate(flow: Flow, tensor: Tensor, axis: int) -> int:
    """Tell what becomes of an axis: a batch axis of a product, merged with others again, or nothing good."""
    best = _ENDS
    waiting = [(tensor, axis)]
    for _ in range(LOOK_AHEAD):
        if not waiting:
            break
        tensor, axis = waiting.pop()
        for use in uses(tensor):
            found = _step(flow, use.node, use.index, tensor, axis)
            if found == _ENDS:
                return _ENDS
            if isinstance(found, list):
                waiting.extend(found)
            else:
                best = max(best, found)
    return best


def _step(flow: Flow, node: Node, index: int, tensor: Tensor, axis: int) -> int | list[tuple[Tensor, int]]:
    """Return where an axis goes in one operator, or its fate."""
    rank = flow.rank(tensor)
    result = node.outputs[0]
    after = flow.rank(result)
    if rank is None or after is None or node.domain not in {None, "", "ai.onnx"}:
        return _ENDS
    if node.op == "Shape":
        return []
    if node.op == "MatMul":
        fixed = flow.is_constant(node.inputs[1 - index])
        return _REACHES_PRODUCT if axis < rank - 2 and not fixed else _ENDS
    if node.op in _THROUGH:
        return [(result, axis + after - rank)]
    if node.op == "Transpose":
        order = [int(each) for each in node.attrs.get("perm", range(rank)[::-1])]
        return [(result, order.index(axis))]
    if node.op in {"Reshape", "Flatten"} and index == 0:
        before, behind = flow.types.shape(tensor), flow.types.shape(result)
        if before is None or behind is None:
            return _ENDS
        into = next((into for block, into in _blocks(before, behind) if block == [axis]), None)
        return [(result, into[0])] if into is not None and len(into) == 1 else _IS_MERGED
    if node.op in {"Unsqueeze", "Squeeze"} and index == 0:
        changed = flow.integers(node, 1, "axes")
        if changed is None:
            return _ENDS
        full = {each % max(rank, after) for each in changed}
        places = [each for each in range(max(rank, after)) if each not in full]
        if node.op == "Unsqueeze":
            return [(result, places[axis])]
        return [(result, places.index(axis))] if axis in places else _ENDS
    if node.op == "Concat" or (node.op in {"Split", "Slice"} and index == 0):
        return [(each, axis) for each in node.outputs if each.name]
    if node.op in _LAST_AXES:
        return [(result, axis)] if axis < rank - 1 and rank == after else _ENDS
    if node.op == "Gather" and index == 0:
        picked, extra = int(node.attrs.get("axis", 0)) % rank, flow.rank(node.inputs[1])
        if extra is None or (picked == axis and (extra != 1 or flow.integers(node, 1) is None)):
            return _ENDS
        return [(result, axis if axis <= picked else axis + extra - 1)]
    if node.op == "Expand" and index == 0:
        return [(result, axis + after - rank)]
    return _ENDS
