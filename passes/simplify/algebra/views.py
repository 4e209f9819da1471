"""Views: nodes that give out the elements of their input in the same order under another shape.

Reshape, Flatten, Squeeze and Unsqueeze are views, and so are a Transpose that moves axes of size 1 only, a Gather of
the only element of an axis, and an Expand that adds axes of size 1 only. What matters of a chain of views is the shape
that goes in and the one that comes out; `restated` finds one node that does the same. It never guesses: sizes are
copied (0) where they are proved equal, and one size is inferred (-1) only where nothing it is divided by can be 0,
because a Reshape of an empty tensor cannot infer a size.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from graphopt.analysis.dims import lower, product
from graphopt.graph import producer
from graphopt.passes.simplify.purity import DEFAULT_DOMAINS, refers_to_function
from graphopt.passes.simplify.removal import restate

if TYPE_CHECKING:
    from collections.abc import Sequence

    from graphopt.analysis.dims import Dim
    from graphopt.graph import Node, Rewriter, Tensor
    from graphopt.passes.simplify.look import Look

VIEWS = ("Reshape", "Flatten", "Squeeze", "Unsqueeze")
"""Operators that are views whatever their operands."""

CANDIDATES = (*VIEWS, "Transpose", "Gather", "Expand")
"""Operators that may be views."""

LONGEST_CHAIN = 16
"""No chain of views is followed further up in one step."""


@dataclass(frozen=True, slots=True)
class View:
    """A view, as one node.

    Attributes:
        op: The operator.
        ints: What the second input holds; None where there is none.
        attrs: The attributes.
    """

    op: str
    ints: tuple[int, ...] | None = None
    attrs: dict[str, Any] = field(default_factory=dict)

    def apply(self, rewriter: Rewriter, node: Node, source: Tensor) -> None:
        """State a node as this view of a tensor."""
        inputs = [source]
        if self.ints is not None:
            inputs.append(rewriter.constant(np.array(self.ints, np.int64), near=node))
        restate(rewriter, node, self.op, inputs, self.attrs)


def is_view(look: Look) -> bool:
    """Whether a node is a view."""
    node = look.node
    if node.op not in CANDIDATES or node.domain not in DEFAULT_DOMAINS or refers_to_function(node):
        return False
    if node.op in VIEWS:
        return look.opset >= 5
    shape = look.shape(node.inputs[0])
    if shape is None:
        return False
    if node.op == "Transpose":
        return _moves_ones_only(look, shape)
    if node.op == "Gather":
        return _takes_the_only_element(look, shape)
    return look.shape(look.output) == (1,) * ((look.types.rank(look.output) or 0) - len(shape)) + shape


def _moves_ones_only(look: Look, shape: Sequence[Dim]) -> bool:
    """Whether the axes that a Transpose moves past each other have size 1."""
    perm = look.permutation()
    if perm is None or len(perm) != len(shape):
        return False
    wide = [axis for axis in perm if shape[axis] != 1]
    return wide == sorted(wide)


def _takes_the_only_element(look: Look, shape: Sequence[Dim]) -> bool:
    """Whether a Gather reads one element along an axis of size 1: the index can only be that of this element."""
    axis = look.axis("axis", 0, len(shape))
    indices = look.shape(look.node.inputs[1])
    return axis is not None and shape[axis] == 1 and indices is not None and all(size == 1 for size in indices)


def viewed(look: Look) -> Tensor | None:
    """Return the tensor at the top of the chain of views that ends with a node; None where the node is no view."""
    if not is_view(look):
        return None
    source: Tensor = look.node.inputs[0]
    for _ in range(LONGEST_CHAIN):
        before = producer(source)
        if before is None or not is_view(look.at(before)):
            break
        source = before.inputs[0]
    return source


def restated(shape: Sequence[Dim], made: Sequence[Dim], opset: int) -> View | None:
    """Return the view that makes one shape of another, None where no single node is proved to.

    Args:
        shape: The shape that goes in.
        made: The shape that comes out, of as many elements.
        opset: Version of the ONNX domain.
    """
    target = _target(shape, made)
    if target is not None:
        return View("Reshape", target)
    added = _inserted(shape, made)
    if added is not None:
        return _axes_view("Unsqueeze", added, opset)
    removed = _inserted(made, shape)
    if removed is not None:
        return _axes_view("Squeeze", removed, opset)
    if len(made) == 2:
        for axis in range(len(shape) + 1):
            if product(list(shape[:axis])) == made[0] and product(list(shape[axis:])) == made[1]:
                return View("Flatten", attrs={"axis": axis})
    return None


def _axes_view(op: str, axes: tuple[int, ...], opset: int) -> View:
    return View(op, axes) if opset >= 13 else View(op, attrs={"axes": list(axes)})


def _target(shape: Sequence[Dim], made: Sequence[Dim]) -> tuple[int, ...] | None:
    """Return the second input of a Reshape: sizes, 0 where the size is copied, at most one -1."""
    target: list[int] = []
    copied: list[Dim] = []
    for axis, size in enumerate(made):
        if isinstance(size, int) and size > 0:
            target.append(size)
        elif axis < len(shape) and shape[axis] == size:
            target.append(0)
            copied.append(size)
        elif isinstance(size, int):
            return None
        else:
            target.append(-1)
    inferred = target.count(-1)
    if inferred > 1 or (inferred and not all(_is_positive(size) for size in copied)):
        return None
    return tuple(target)


def _is_positive(size: Dim) -> bool:
    low = lower(size)
    return low is not None and low > 0


def _inserted(shape: Sequence[Dim], made: Sequence[Dim]) -> tuple[int, ...] | None:
    """Return the axes of ``made`` that have size 1 and without which it is ``shape``; None where there are none."""
    axes: list[int] = []
    at = 0
    for axis, size in enumerate(made):
        if at < len(shape) and shape[at] == size:
            at += 1
        elif size == 1:
            axes.append(axis)
        else:
            return None
    return tuple(axes) if at == len(shape) and axes else None
