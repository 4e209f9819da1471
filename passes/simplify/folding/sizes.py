"""How many bytes the outputs of a node take, said before anything is computed."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from graphopt.graph import dtypes

if TYPE_CHECKING:
    from graphopt.analysis.types import Types
    from graphopt.graph import Node, Tensor

_INT64_BYTES = 8


def output_sizes(node: Node, types: Types) -> list[int] | None:
    """Return the bytes of each output that has a name, or an upper bound; None where one is not known.

    Args:
        node: The node.
        types: Element types and shapes.
    """
    sizes = []
    for index, tensor in enumerate(node.outputs):
        if tensor.name:
            size = _exact(tensor, types)
            if size is None:
                size = _bound(node, index, types)
            if size is None:
                return None
            sizes.append(size)
    return sizes


def _exact(tensor: Tensor, types: Types) -> int | None:
    count, element = elements(tensor, types), types.dtype(tensor)
    return None if count is None or not element else dtypes.packed_size_bytes(element, (count,))


def elements(tensor: Tensor, types: Types) -> int | None:
    """Return the number of elements of a tensor, None where a dimension is not known."""
    shape = types.shape(tensor)
    if shape is None:
        return None
    sizes = [size for size in shape if isinstance(size, int)]
    return math.prod(sizes) if len(sizes) == len(shape) else None


def _bound(node: Node, index: int, types: Types) -> int | None:
    """Return an upper bound for operators whose result is as long as the values of their input say."""
    if node.op not in {"NonZero", "Compress", "Unique"} or not node.inputs:
        return None
    count = elements(node.inputs[0], types)
    if count is None:
        return None
    if node.op == "NonZero":
        rank = len(types.shape(node.inputs[0]) or ())
        return count * max(rank, 1) * _INT64_BYTES
    if index > 0:
        return count * _INT64_BYTES
    return _exact(node.inputs[0], types)
