"""Relayouts of Reshape and its kin: a permutation passes where it keeps together what they group."""

from __future__ import annotations

from itertools import accumulate
from typing import TYPE_CHECKING, TypeAlias

import numpy as np

from graphopt.analysis.dims import mul
from graphopt.passes.simplify.layout.permutations import Perm, keeps_order, permuted
from graphopt.passes.simplify.layout.relayout import Draft, Relayout, Side

if TYPE_CHECKING:
    from collections.abc import Sequence

    from graphopt.analysis.dims import Dim
    from graphopt.passes.simplify.layout.relayout import Rule
    from graphopt.passes.simplify.look import Look

VIEWS = ("Reshape", "Squeeze", "Unsqueeze", "Flatten")

Block: TypeAlias = "tuple[tuple[int, ...], tuple[int, ...]]"
"""Axes of the input and the axes of the output that hold the same elements; one side is empty for size 1."""


def blocks_of(source: Sequence[Dim], target: Sequence[Dim]) -> list[Block]:
    """Return how a Reshape groups axes: the finest groups whose sizes have provably the same product.

    Args:
        source: Shape of the input.
        target: Shape of the output.
    """
    ins = [axis for axis, size in enumerate(source) if size != 1]
    outs = [axis for axis, size in enumerate(target) if size != 1]
    blocks: list[Block] = [((axis,), ()) for axis, size in enumerate(source) if size == 1]
    blocks += [((), (axis,)) for axis, size in enumerate(target) if size == 1]
    ends = {size: place for place, size in enumerate(accumulate((target[axis] for axis in outs), mul), 1)}
    start_in = start_out = 0
    for place, size in enumerate(accumulate((source[axis] for axis in ins), mul), 1):
        end = ends.get(size)
        if end is not None and end > start_out:
            blocks.append((tuple(ins[start_in:place]), tuple(outs[start_out:end])))
            start_in, start_out = place, end
    if start_in < len(ins) or start_out < len(outs):
        blocks.append((tuple(ins[start_in:]), tuple(outs[start_out:])))
    return blocks


def through(blocks: Sequence[Block], perm: Perm, rank: int, hint: Perm) -> Perm | None:
    """Return the permutation of the output that a permutation of the input becomes; None where it splits a group.

    Args:
        blocks: The groups.
        perm: The permutation of the input.
        rank: Rank of the output.
        hint: The permutation of the output to prefer where axes of size 1 may stand anywhere.
    """
    group = {axis: block for block in blocks for axis in block[0] if block[1]}
    order = [axis for axis in perm if axis in group]
    moved: list[int] = []
    place = 0
    while place < len(order):
        ins, outs = group[order[place]]
        if tuple(order[place : place + len(ins)]) != ins:
            return None
        moved.extend(outs)
        place += len(ins)
    kept = sorted(moved)
    if len(hint) == rank and [axis for axis in hint if axis in set(kept)] == moved:
        return hint
    following = iter(moved)
    staying = set(range(rank)).difference(kept)
    return tuple(axis if axis in staying else next(following) for axis in range(rank))


def view(look: Look, side: Side, perm: Perm, hint: Perm) -> Relayout | None:
    """Give out another layout by reading one."""
    node = look.node
    source, target = look.shape(node.inputs[0]), look.shape(node.outputs[0])
    if source is None or target is None or (not side.is_output and side.place):
        return None
    blocks = _named_blocks(look, len(source), len(target)) or blocks_of(source, target)
    flipped = [(outs, ins) for ins, outs in blocks]
    if side.is_output:
        before = through(flipped, perm, len(source), hint)
        after: Perm | None = perm
    else:
        before, after = perm, through(blocks, perm, len(target), hint)
    if before is None or after is None:
        return None
    draft = Draft(look)
    axes = _changing_axes(look, len(source), len(target))
    if axes is not None:
        moved = before if node.op == "Squeeze" else after
        draft.integers(1, "axes", sorted(moved.index(axis) for axis in axes))
        return draft.done({0: before}, after)
    sizes = constant_target(permuted(source, before), permuted(target, after))
    return None if sizes is None else _reshape(draft, sizes, {0: before}, after)


def free_output(look: Look, perm: Perm) -> Relayout | None:
    """Give out another layout that differs in axes of size 1 only, and read the same."""
    source, target = look.shape(look.node.inputs[0]), look.shape(look.output)
    if source is None or target is None or not keeps_order(target, perm):
        return None
    sizes = constant_target(source, permuted(target, perm))
    return None if sizes is None else _reshape(Draft(look), sizes, {}, perm)


def free_input(look: Look, perm: Perm) -> Relayout | None:
    """Read another layout that differs in axes of size 1 only, and give out the same."""
    source, target = look.shape(look.node.inputs[0]), look.shape(look.output)
    if source is None or target is None or not keeps_order(source, perm):
        return None
    sizes = constant_target(permuted(source, perm), target)
    if sizes is None:
        return None
    return _reshape(Draft(look), sizes, {0: perm}, tuple(range(len(target))))


def constant_target(source: Sequence[Dim], target: Sequence[Dim]) -> list[int] | None:
    """Return a constant target that makes one shape from another in every run; None where there is none.

    Args:
        source: Shape of the input.
        target: Shape wanted.
    """
    open_sizes = [place for place, size in enumerate(target) if not isinstance(size, int)]
    if any(isinstance(size, int) and size <= 0 for size in target):
        return None
    if len(open_sizes) <= 1:
        return [size if isinstance(size, int) else -1 for size in target]
    if all(place < len(source) and source[place] == target[place] for place in open_sizes):
        return [size if isinstance(size, int) else 0 for size in target]
    return None


def _reshape(draft: Draft, sizes: list[int], inputs: dict[int, Perm], perm: Perm) -> Relayout | None:
    look = draft.look
    draft.attrs.update(dict.fromkeys(look.node.attrs))
    if look.opset < 5:
        draft.attrs["shape"] = sizes
    else:
        draft.constants[1] = lambda: np.array(sizes, np.int64)
    return draft.done(inputs, perm, op="Reshape")


def _changing_axes(look: Look, rank_in: int, rank_out: int) -> list[int] | None:
    """Return the axes that Squeeze removes or Unsqueeze adds, counted from the front; None for others."""
    if look.node.op not in {"Squeeze", "Unsqueeze"}:
        return None
    axes = look.ints(1, "axes")
    rank = rank_in if look.node.op == "Squeeze" else rank_out
    return None if axes is None else sorted(axis % rank for axis in axes)


def _named_blocks(look: Look, rank_in: int, rank_out: int) -> list[Block] | None:
    """Return the groups of Squeeze and Unsqueeze, which need no shapes."""
    axes = _changing_axes(look, rank_in, rank_out)
    if axes is None:
        return None
    if look.node.op == "Squeeze":
        kept = [axis for axis in range(rank_in) if axis not in axes]
        return [*(((axis,), (place,)) for place, axis in enumerate(kept)), *(((axis,), ()) for axis in axes)]
    kept = [axis for axis in range(rank_out) if axis not in axes]
    return [*(((place,), (axis,)) for place, axis in enumerate(kept)), *(((), (axis,)) for axis in axes)]


EXACT: dict[str, Rule] = dict.fromkeys(VIEWS, view)
"""Operators that move no element."""
