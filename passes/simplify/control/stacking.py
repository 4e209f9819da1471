"""New nodes that stack tensors and take slices out of a stack, in the form that the opset has."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    from graphopt.graph import Node, Rewriter, Tensor


def with_axis(rewriter: Rewriter, tensor: Tensor, axis: int, node: Node) -> Tensor:
    """Return a tensor with one more axis, of size 1.

    Args:
        rewriter: The rewriter of the patch.
        tensor: The tensor.
        axis: Where the axis is; negative counts from the end of the result.
        node: The node that the new one replaces.
    """
    return _view(rewriter, "Unsqueeze", tensor, axis, node)


def without_axis(rewriter: Rewriter, tensor: Tensor, axis: int, node: Node) -> Tensor:
    """Return a tensor without one of its axes, of size 1; the arguments are those of `with_axis`."""
    return _view(rewriter, "Squeeze", tensor, axis, node)


def stacked(rewriter: Rewriter, tensors: Sequence[Tensor], axis: int, node: Node) -> Tensor:
    """Return tensors of one shape stacked along a new axis; the arguments are those of `with_axis`."""
    parts = [with_axis(rewriter, tensor, axis, node) for tensor in tensors]
    if len(parts) == 1:
        return parts[0]
    made: Tensor = rewriter.op("Concat", parts, attrs={"axis": axis}, near=node, origin=[node])
    _state(rewriter, made, tensors[0])
    return made


def taken(rewriter: Rewriter, tensor: Tensor, index: int, axis: int, node: Node) -> Tensor:
    """Return the slice at an index of an axis, without that axis; the arguments are those of `with_axis`."""
    position = rewriter.constant(np.array(index, np.int64), near=node)
    made: Tensor = rewriter.op("Gather", [tensor, position], attrs={"axis": axis}, near=node, origin=[node])
    _state(rewriter, made, tensor)
    return made


def _view(rewriter: Rewriter, op: str, tensor: Tensor, axis: int, node: Node) -> Tensor:
    assert node.graph is not None
    attrs: dict[str, Any] = {}
    inputs = [tensor]
    if node.graph.opset < 13:
        attrs["axes"] = [axis]
    else:
        inputs.append(rewriter.constant(np.array([axis], np.int64), near=node))
    made: Tensor = rewriter.op(op, inputs, attrs=attrs, near=node, origin=[node])
    _state(rewriter, made, tensor)
    return made


def _state(rewriter: Rewriter, made: Any, like: Tensor) -> None:
    if like.onnx_dtype:
        rewriter.set_type(made, like.dtype, None)
