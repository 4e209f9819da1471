"""Where the heads of an attention come from: views that split the last axis, repetition of shared heads, scales."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from graphopt.graph import Constant, constant_value
from graphopt.passes.fuse.matching import above, scalar

if TYPE_CHECKING:
    from graphopt.analysis.dims import Dim
    from graphopt.analysis.types import Types
    from graphopt.graph import Node, Tensor

HEADS_FIRST = [0, 2, 1, 3]
LAST_TWO = [0, 1, 3, 2]
HEADS_LAST_TURNED = [0, 2, 3, 1]

_LARGEST_INDEX = 4096
_MOST_VIEWS = 5


@dataclass(frozen=True, slots=True)
class Scaled:
    """A tensor times a constant.

    Attributes:
        tensor: The tensor.
        factor: The constant.
        nodes: The nodes that multiply.
    """

    tensor: Tensor
    factor: float = 1.0
    nodes: tuple[Node, ...] = ()


def scaled(tensor: Tensor) -> Scaled:
    """Return what a tensor is a constant multiple of; itself, times 1, where it is none.

    Args:
        tensor: The tensor.
    """
    node = above(tensor, "Mul", "Div")
    if node is not None:
        for index in (1, 0) if node.op == "Mul" else (1,):
            value = scalar(node.inputs[index])
            if value:
                return Scaled(node.inputs[1 - index], value if node.op == "Mul" else 1 / value, (node,))
    return Scaled(tensor)


def turned(tensor: Tensor, perm: list[int]) -> Node | None:
    """Return the Transpose that made a tensor with this permutation.

    Args:
        tensor: The tensor.
        perm: The permutation.
    """
    node = above(tensor, "Transpose")
    return node if node is not None and list(node.attrs.get("perm", ())) == perm else None


def split_heads(tensor: Tensor, types: Types) -> tuple[Tensor, list[Node]] | None:
    """Return the tensor of three axes whose last one a Reshape splits into heads: (batch, length, heads, size).

    Args:
        tensor: What the Reshape gives.
        types: Shapes.

    Returns:
        The tensor of shape (batch, length, heads * size), and the Reshape.
    """
    node = above(tensor, "Reshape")
    if node is None:
        return None
    wide, narrow = types.shape(tensor), types.shape(node.inputs[0])
    if wide is None or narrow is None or len(wide) != 4 or len(narrow) != 3:
        return None
    if wide[:2] != narrow[:2] or not isinstance(wide[2], int) or not isinstance(wide[3], int):
        return None
    return (node.inputs[0], [node]) if narrow[2] == wide[2] * wide[3] else None


def flat(tensor: Tensor, types: Types) -> tuple[Tensor, list[Node]] | None:
    """Return the tensor (batch, length, heads * size) behind one of shape (batch, heads, length, size).

    Args:
        tensor: The tensor of four axes.
        types: Shapes.

    Returns:
        The tensor of three axes, and the nodes between.
    """
    moved = turned(tensor, HEADS_FIRST)
    found = None if moved is None else split_heads(moved.inputs[0], types)
    return None if moved is None or found is None else (found[0], [moved, *found[1]])


@dataclass(frozen=True, slots=True)
class View:
    """A tensor that another is a view of, or repeats along the heads.

    Attributes:
        tensor: The tensor.
        heads: Its number of heads.
        is_turned: Whether it is (batch, length, heads, size), not (batch, heads, length, size).
        nodes: The nodes between.
    """

    tensor: Tensor
    heads: int
    is_turned: bool
    nodes: tuple[Node, ...] = ()


def views(tensor: Tensor, heads: int, types: Types, *, is_turned: bool = False) -> list[View]:
    """Return the tensors that one is made of by turning it and by repeating heads, itself first.

    Args:
        tensor: A tensor of four axes.
        heads: Its number of heads.
        types: Shapes.
        is_turned: Whether it is (batch, length, heads, size).
    """
    found = [View(tensor, heads, is_turned)]
    for _ in range(_MOST_VIEWS):
        last = found[-1]
        moved = turned(last.tensor, HEADS_FIRST)
        if moved is not None:
            found.append(View(moved.inputs[0], last.heads, not last.is_turned, (*last.nodes, moved)))
            continue
        axis = 2 if last.is_turned else 1
        source, nodes = _unrepeated(last.tensor, axis, types)
        shape = None if source is None else types.shape(source)
        fewer = None if shape is None else shape[axis]
        if source is None or not isinstance(fewer, int):
            break
        found.append(View(source, fewer, last.is_turned, (*last.nodes, *nodes)))
    return found


def _unrepeated(tensor: Tensor, axis: int, types: Types) -> tuple[Tensor | None, tuple[Node, ...]]:
    """Return what a tensor repeats along the heads, each as often as the others, one by one, and the nodes that do it.

    The repetition is a Gather of the heads 0, 0, 1, 1, ..., or Unsqueeze, Expand and Reshape.
    """
    node = above(tensor, "Gather", "Reshape")
    source = None
    nodes: tuple[Node, ...] = ()
    if node is not None and node.op == "Gather":
        source, nodes = _gathered(node, axis), (node,)
    elif node is not None:
        expand = above(node.inputs[0], "Expand")
        view = None if expand is None else above(expand.inputs[0], "Unsqueeze", "Reshape")
        if expand is not None and view is not None:
            shapes = [types.shape(each) for each in (view.inputs[0], view.outputs[0], expand.outputs[0], tensor)]
            source, nodes = (view.inputs[0] if _repeats(axis, *shapes) else None), (node, expand, view)
    before, after = (None if each is None else types.shape(each) for each in (source, tensor))
    if before is None or after is None or len(before) != 4 or len(after) != 4:
        return None, ()
    others = [place for place in range(4) if place != axis]
    if any(before[place] != after[place] for place in others) or not _divides(before[axis], after[axis]):
        return None, ()
    return source, nodes


def _gathered(node: Node, axis: int) -> Tensor | None:
    if int(node.attrs.get("axis", 0)) != axis:
        return None
    indices = node.inputs[1]
    if isinstance(indices, Constant) and int(np.prod(indices.shape)) > _LARGEST_INDEX:
        return None
    value = constant_value(indices)
    if value is None or value.ndim != 1 or value.size == 0 or value.min() < 0:
        return None
    count = int(value.max()) + 1
    if value.size % count or not np.array_equal(value, np.repeat(np.arange(count), value.size // count)):
        return None
    return node.inputs[0]  # type: ignore[no-any-return]


def _repeats(axis: int, *shapes: tuple[Dim, ...] | None) -> bool:
    """Whether heads h become h, 1, then h, n, then h * n, while the other axes stay."""
    source, viewed, repeated, merged = shapes
    if source is None or viewed is None or repeated is None or merged is None:
        return False
    if len(source) != 4 or len(repeated) != 5:
        return False
    front, heads, rest, times = source[:axis], source[axis], source[axis + 1 :], repeated[axis + 1]
    if not isinstance(heads, int) or not isinstance(times, int):
        return False
    return (
        viewed == (*front, heads, 1, *rest)
        and repeated == (*front, heads, times, *rest)
        and merged == (*front, heads * times, *rest)
    )


def _divides(part: Dim, whole: Dim) -> bool:
    return isinstance(part, int) and isinstance(whole, int) and part > 0 and whole % part == 0


def is_last_axis(node: Node, types: Types) -> bool:
    """Whether a Softmax runs over the last axis.

    Args:
        node: The Softmax, of opset 13 or newer.
        types: Shapes.
    """
    axis = int(node.attrs.get("axis", -1))
    rank = types.rank(node.inputs[0])
    return axis == -1 or (rank is not None and axis == rank - 1)
