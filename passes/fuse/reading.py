"""How an attention reads queries, keys and values: with four axes or with three, from as far up as possible."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from graphopt.passes.fuse.heads import HEADS_FIRST, View, flat, split_heads
from graphopt.passes.fuse.matching import above

if TYPE_CHECKING:
    from collections.abc import Sequence

    from graphopt.analysis.types import Types
    from graphopt.graph import Node, Rewriter, Tensor


@dataclass(frozen=True, slots=True)
class Operand:
    """What Attention reads.

    Attributes:
        tensor: The tensor, before `turn` and `rotary`.
        nodes: Nodes that only prepare it; they go if nothing else reads them.
        heads: Its number of heads.
        turn: The permutation it needs, if any.
        rotary: A RotaryEmbedding of four axes that is applied to it, then with three.
    """

    tensor: Tensor
    nodes: tuple[Node, ...]
    heads: int
    turn: tuple[int, ...] = ()
    rotary: Node | None = None

    def made(self, rw: Rewriter, near: Node) -> Tensor:
        """Return the tensor as Attention reads it.

        Args:
            rw: The rewriter.
            near: The node in whose place Attention comes.
        """
        if self.turn:
            moved: Tensor = rw.op("Transpose", [self.tensor], attrs={"perm": list(self.turn)}, near=near)
            return moved
        if self.rotary is not None:
            inputs = [self.tensor, *self.rotary.inputs[1:]]
            attrs = {**self.rotary.attrs, "num_heads": self.heads}
            embedded: Tensor = rw.op("RotaryEmbedding", inputs, attrs=attrs, near=near, origin=[self.rotary])
            return embedded
        return self.tensor


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
        if view.is_turned:
            split = split_heads(view.tensor, types)
            if split is not None:
                return Operand(split[0], (*view.nodes, *split[1]), heads)
            continue
        rotary = above(view.tensor, "RotaryEmbedding")
        inner = None if rotary is None else flat(rotary.inputs[0], types)
        if rotary is not None and inner is not None:
            return Operand(inner[0], (*view.nodes, rotary, *inner[1]), heads, rotary=rotary)
    return None
