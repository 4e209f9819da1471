"""Convolutions along one axis for an operator that has two: tensors [N, C, W] as [N, C, 1, W] and back."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from graphopt.graph import constant_value, producer

if TYPE_CHECKING:
    from collections.abc import Sequence

    from graphopt.graph import Node, Rewriter, Tensor

HEIGHT = 2
"""The axis of height 1."""
_AXES_ARE_AN_INPUT = 13
_STANDARD = (None, "", "ai.onnx")
_DOMAIN = "ai.graphopt"


def tall_shape(shape: Sequence[Any] | None) -> list[Any] | None:
    """Return a shape with the height put in; None where it is unknown."""
    return None if shape is None else [*shape[:HEIGHT], 1, *shape[HEIGHT:]]


def flattening(tensor: Tensor) -> Node | None:
    """Return the Squeeze that takes the height from a result of one of our operators to give a tensor, or None."""
    node = producer(tensor)
    if node is None or node.op != "Squeeze" or node.domain not in _STANDARD:
        return None
    axes = node.attrs.get("axes")
    if axes is None and len(node.inputs) > 1:
        axes = constant_value(node.inputs[1])
    made = producer(node.inputs[0])
    ours = made is not None and made.domain == _DOMAIN
    return node if ours and axes is not None and [int(axis) for axis in axes] == [HEIGHT] else None


def tall(rewriter: Rewriter, tensor: Tensor, near: Node) -> Tensor:
    """Return a tensor with a height: what was flattened to make it, else an Unsqueeze of it."""
    flat = flattening(tensor)
    if flat is not None:
        source: Tensor = flat.inputs[0]
        return source
    made: Tensor = _view(rewriter, "Unsqueeze", tensor, near)
    rewriter.set_type(made, tensor.dtype, tall_shape(tensor.shape))
    return made


def flat(rewriter: Rewriter, tensor: Tensor, like: Tensor, near: Node) -> Tensor:
    """Return a tensor without its height.

    Args:
        rewriter: The rewriter of the patch.
        tensor: The tensor.
        like: What has the type of the result.
        near: A node of its graph.
    """
    made: Tensor = _view(rewriter, "Squeeze", tensor, near, like=like)
    return made


def _view(rewriter: Rewriter, op: str, tensor: Tensor, near: Node, *, like: Tensor | None = None) -> Any:
    assert near.graph is not None
    if near.graph.opset < _AXES_ARE_AN_INPUT:
        return rewriter.op(op, [tensor], attrs={"axes": [HEIGHT]}, like=like, near=near)
    axes = rewriter.constant(np.array([HEIGHT]), near=near)
    return rewriter.op(op, [tensor, axes], like=like, near=near)
