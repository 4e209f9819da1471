"""How an attention reads queries, keys and values: with four axes or with three, from as far up as possible."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from graphopt.graph import producer
from graphopt.passes.fuse.heads import HEADS_FIRST, View, flat, split_heads
from graphopt.passes.fuse.matching import DEFAULT_DOMAINS, above, refers_to_function

if TYPE_CHECKING:
    from collections.abc import Sequence

    from graphopt.analysis.types import Types
    from graphopt.graph import Node, Rewriter, Tensor


@dataclass(frozen=True, slots=True)
class Part:
    """One output of a Split along the heads, which becomes a Split of the tensor of three axes.

    Attributes:
        split: The Split of four axes.
        index: Which of its outputs.
        sizes: The sizes of all outputs of the new Split.
    """

    split: Node
    index: int
    sizes: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Operand:
    """What Attention reads.

    Attributes:
        tensor: The tensor, before `part`, `turn` and `rotary`.
        nodes: Nodes that only prepare it; they go if nothing else reads them.
        heads: Its number of heads.
        turn: The permutation it needs, if any.
        part: Which part of the tensor it is, if not all of it.
        rotary: A RotaryEmbedding of four axes that is applied to it, then with three.
    """

    tensor: Tensor
    nodes: tuple[Node, ...]
    heads: int
    turn: tuple[int, ...] = ()
    part: Part | None = None
    rotary: Node | None = None

    def made(self, rw: Rewriter, near: Node, splits: dict[Node, tuple[Tensor, ...]]) -> Tensor:
        """Return the tensor as Attention reads it.

        Args:
            rw: The rewriter.
            near: The node in whose place Attention comes.
            splits: The Splits made so far, by those that they replace.
        """
        tensor = self.tensor
        if self.part is not None:
            tensor = self._split(rw, near, self.part, splits)[self.part.index]
        if self.turn:
            tensor = rw.op("Transpose", [tensor], attrs={"perm": list(self.turn)}, near=near)
        if self.rotary is not None:
            inputs = [tensor, *self.rotary.inputs[1:]]
            attrs = {**self.rotary.attrs, "num_heads": self.heads}
            tensor = rw.op("RotaryEmbedding", inputs, attrs=attrs, near=near, origin=[self.rotary])
        return tensor

    def _split(
        self, rw: Rewriter, near: Node, part: Part, splits: dict[Node, tuple[Tensor, ...]]
    ) -> tuple[Tensor, ...]:
        if part.split not in splits:
            sizes = rw.constant(np.asarray(part.sizes, np.int64), near=near)
            splits[part.split] = rw.op(
                "Split",
                [self.tensor, sizes],
                attrs={"axis": 2},
                outputs=len(part.sizes),
                near=near,
                origin=[part.split],
            )
        return splits[part.split]


def shared_heads(keys: Sequence[View], values: Sequence[View]) -> int:
    """Return the least number of heads that both keys and values can be read with.

    Args:
        keys: What the keys are made of.
        values: What the values are made of.
    """
    return min({view.heads for view in keys} & {view.heads for view in values})


def with_four_axes(options: Sequence[View], heads: int) -> Operand:
    """Return the operand (batch, heads, length, size), with a Transpose where there is none to read behind.

    Args:
        options: What it is made of, some of it with this number of heads.
        heads: Number of heads.
    """
    fitting = [view for view in options if view.heads == heads]
    for view in fitting:
        if not view.is_turned:
            return Operand(view.tensor, view.nodes, heads)
    return Operand(fitting[0].tensor, fitting[0].nodes, heads, tuple(HEADS_FIRST))


def with_three_axes(options: Sequence[View], heads: int, types: Types) -> Operand | None:
    """Return the operand (batch, length, heads * size), None where it is not made of such a tensor.

    Args:
        options: What it is made of.
        heads: Number of heads.
        types: Shapes.
    """
    for view in options:
        if view.heads != heads:
            continue
        found = _flattened(view, types)
        if found is not None:
            return found
        rotary = None if view.is_turned else above(view.tensor, "RotaryEmbedding")
        if rotary is not None:
            inner = _flattened(View(rotary.inputs[0], heads, False, (*view.nodes, rotary)), types)
            if inner is not None:
                return replace(inner, rotary=rotary)
    return None


def _flattened(view: View, types: Types) -> Operand | None:
    """Return a tensor of four axes as one of three: what a Reshape splits into heads, all of it or a part."""
    whole = _merged(view.tensor, view.is_turned, types)
    if whole is not None:
        return Operand(whole[0], (*view.nodes, *whole[1]), view.heads)
    split = producer(view.tensor)
    if split is None or split.op != "Split" or split.domain not in DEFAULT_DOMAINS or refers_to_function(split):
        return None
    axis = 2 if view.is_turned else 1
    shapes = [types.shape(tensor) for tensor in split.outputs]
    if int(split.attrs.get("axis", 0)) % 4 != axis or any(shape is None or len(shape) != 4 for shape in shapes):
        return None
    whole = _merged(split.inputs[0], view.is_turned, types)
    sizes = [shape[axis] * shape[3] for shape in shapes if shape is not None]
    numbers = tuple(size for size in sizes if isinstance(size, int))
    if whole is None or len(numbers) < len(split.outputs):
        return None
    index = next(place for place, tensor in enumerate(split.outputs) if tensor is view.tensor)
    return Operand(whole[0], (*view.nodes, split, *whole[1]), view.heads, part=Part(split, index, numbers))


def _merged(tensor: Tensor, is_turned: bool, types: Types) -> tuple[Tensor, list[Node]] | None:
    return split_heads(tensor, types) if is_turned else flat(tensor, types)
