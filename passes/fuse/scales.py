"""Scale and bias of a normalization: tensors of exactly the normalized shape."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from graphopt.passes.fuse.matching import Array, vector

if TYPE_CHECKING:
    from graphopt.analysis.types import Types
    from graphopt.graph import Tensor


def shaped(tensor: Tensor, sizes: tuple[int, ...], rank: int, types: Types) -> Tensor | Array | None:
    """Return a scale or bias of exactly the normalized shape, None where there is none.

    Args:
        tensor: The tensor that is multiplied or added.
        sizes: The normalized shape.
        rank: Number of axes of the normalized tensor.
        types: Shapes of tensors.
    """
    if types.static_shape(tensor) == sizes:
        return tensor
    value = vector(tensor)
    return None if value is None else spread(value, sizes, rank)


def spread(value: Array, sizes: tuple[int, ...], rank: int) -> Array | None:
    """Return a constant broadcast to the normalized shape; None where it differs along other axes or adds axes.

    Args:
        value: The constant.
        sizes: The normalized shape.
        rank: Number of axes of the normalized tensor.
    """
    extra = max(value.ndim - len(sizes), 0)
    if value.ndim > rank or any(size != 1 for size in value.shape[:extra]):
        return None
    inner = value.reshape(value.shape[extra:])
    if any(size not in (1, want) for size, want in zip(inner.shape[::-1], sizes[::-1], strict=False)):
        return None
    return np.ascontiguousarray(np.broadcast_to(inner, sizes))


def combined(function: np.ufunc, first: Tensor, second: Array | None) -> Array | None:
    """Return a sum or product of constants, computed in float64; None where one is unknown or the result no number.

    Args:
        function: The sum or product.
        first: A tensor, perhaps constant; its element type is that of the result.
        second: The other value.
    """
    value = vector(first)
    if value is None or second is None:
        return None
    with np.errstate(over="ignore", invalid="ignore"):
        result: Array = function(value.astype(np.float64), second.astype(np.float64)).astype(value.dtype)
    return result if bool(np.isfinite(result.astype(np.float64)).all()) else None
