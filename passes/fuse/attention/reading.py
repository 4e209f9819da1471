"""How an attention reads queries, keys and values: with four axes or with three, from as far up as possible."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from graphopt.graph import producer
from graphopt.passes.fuse.attention.heads import HEADS_FIRST, View, flat, split_heads
from graphopt.passes.fuse.matching import DEFAULT_DOMAINS, refers_to_function

if TYPE_CHECKING:
    from collections.abc import Sequence

    from graphopt.analysis.types import Types
    from graphopt.graph import Node, Rewriter, Tensor

_DEEPEST = 6


@dataclass(frozen=True, slots=True)
class Flat:
    """A tensor (batch, length, heads * size), and how it is made where it is not there yet.

    Attributes:
        nodes: Nodes with four axes that it makes needless; they go if nothing else reads them.
        tensor: The tensor, where it is there.
        source: What `step` is applied to, where it is not.
        step: A Split along the heads, or a RotaryEmbedding, of four axes.
        index: Which output of the Split it is.
        sizes: The sizes of all outputs of the Split, or the number of heads of the RotaryEmbedding.
    """

    nodes: tuple[Node, ...]
    tensor: Tensor | None = None
    source: Flat | None = None
    step: Node | None = None
    index: int = 0
    sizes: tuple[int, ...] = ()

    def made(self, rw: Rewriter, near: Node, steps: dict[Node, tuple[Tensor, ...]]) -> Tensor:
        """Return the tensor.

        Args:
            rw: The rewriter.
            near: The node in whose place Attention comes.
            steps: The outputs of steps made so far, by those of four axes.
        """
        if self.source is None or self.step is None:
            assert self.tensor is not None
            return self.tensor
        if self.step not in steps:
            tensor = self.source.made(rw, near, steps)
            if self.step.op == "Split":
                inputs, count = [tensor, rw.constant(np.asarray(self.sizes, np.int64), near=near)], len(self.sizes)
                outputs = rw.op("Split", inputs, attrs={"axis": 2}, outputs=count, near=near, origin=[self.step])
                steps[self.step] = outputs if count > 1 else (outputs,)
            else:
                attrs = {**self.step.attrs, "num_heads": self.sizes[0]}
                inputs = [tensor, *self.step.inputs[1:]]
                steps[self.step] = (rw.op("RotaryEmbedding", inputs, attrs=attrs, near=near, origin=[self.step]),)
        return steps[self.step][self.index]


@dataclass(frozen=True, slots=True)
class Operand:
    """What Attention reads.

    Attributes:
        heads: Its number of heads.
        nodes: Nodes that only prepare it; they go if nothing else reads them.
        tensor: The tensor of four axes, before `turn`.
        turn: The permutation it needs, if any.
        flat: The tensor of three axes, if it is that.
    """

    heads: int
    nodes: tuple[Node, ...] = ()
    tensor: Tensor | None = None
    turn: tuple[int, ...] = ()
    flat: Flat | None = None

    def made(self, rw: Rewriter, near: Node, steps: dict[Node, tuple[Tensor, ...]]) -> Tensor:
        """Return the tensor as Attention reads it.

        Args:
            rw: The rewriter.
            near: The node in whose place Attention comes.
            steps: The steps made so far for other operands.
        """
        if self.flat is not None:
            return self.flat.made(rw, near, steps)
        assert self.tensor is not None
        if self.turn:
            moved: Tensor = rw.op("Transpose", [self.tensor], attrs={"perm": list(self.turn)}, near=near)
            return moved
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
            return Operand(heads, view.nodes, view.tensor)
    return Operand(heads, fitting[0].nodes, fitting[0].tensor, tuple(HEADS_FIRST))


def with_three_axes(options: Sequence[View], heads: int, types: Types) -> Operand | None:
    """Return the operand (batch, length, heads * size), None where it is not made of such a tensor.

    Args:
        options: What it is made of.
        heads: Number of heads.
        types: Shapes.
    """
    for view in options:
        found = flattened(view.tensor, types, is_turned=view.is_turned) if view.heads == heads else None
        if found is not None:
            return Operand(heads, (*view.nodes, *found.nodes), flat=found)
    return None


def flattened(tensor: Tensor, types: Types, *, is_turned: bool, depth: int = _DEEPEST) -> Flat | None:
    """Return a tensor of four axes as one of three: what a Reshape splits into heads, through Split and rotation.

    Args:
        tensor: The tensor.
        types: Shapes.
        is_turned: Whether it is (batch, length, heads, size), not (batch, heads, length, size).
        depth: How many steps are looked through.
    """
    whole = split_heads(tensor, types) if is_turned else flat(tensor, types)
    if whole is not None:
        return Flat(tuple(whole[1]), whole[0])
    step = producer(tensor) if depth else None
    if step is None or step.domain not in DEFAULT_DOMAINS or refers_to_function(step):
        return None
    shapes = [types.shape(output) for output in step.outputs]
    axis = 2 if is_turned else 1
    if step.op == "Split" and int(step.attrs.get("axis", 0)) % 4 == axis:
        sizes = [shape[axis] * shape[3] if shape is not None and len(shape) == 4 else -1 for shape in shapes]
    elif step.op == "RotaryEmbedding" and not is_turned:
        sizes = [shape[1] if shape is not None and len(shape) == 4 else -1 for shape in shapes]
    else:
        return None
    numbers = tuple(size for size in sizes if isinstance(size, int) and size > 0)
    source = flattened(step.inputs[0], types, is_turned=is_turned, depth=depth - 1)
    if source is None or len(numbers) < len(sizes):
        return None
    index = next(place for place, output in enumerate(step.outputs) if output is tensor)
    return Flat((step, *source.nodes), None, source, step, index, numbers)
