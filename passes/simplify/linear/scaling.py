"""Weights times factors: in float64, rounded once, in pieces, so that large weights are never held twice."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np

from graphopt.graph import Constant, LazyWeight, constant_value

if TYPE_CHECKING:
    from collections.abc import Iterator

    from graphopt.graph import Tensor, Weight

Array = np.ndarray[Any, Any]

_COMPARED = (np.dtype(np.float32), np.dtype(np.float64))
_PIECE_BYTES = 4 << 20
_STREAMED_BYTES = 16 << 20


def product_of(constant: Tensor, factor: Array) -> Array | Weight | str:
    """Return a constant times a factor, in its type, or the reason why that type cannot hold it.

    Args:
        constant: The constant. A large one is multiplied again when it is written.
        factor: Broadcast against it.
    """
    value = constant_value(constant)
    if value is None:
        return f"'{constant.name}' is not constant"
    made, largest, before = _multiplied(value, factor)
    if not np.isfinite(largest):
        return f"the folded weights of '{constant.name}' are not finite in {value.dtype}"
    if before and factor.any() and largest < _smallest_normal(value.dtype):
        return f"the folded weights of '{constant.name}' are too small for {value.dtype}"
    if made is None:
        assert isinstance(constant, Constant)
        source = constant.weight
        return LazyWeight(lambda: _filled(source.load(), factor), source.onnx_dtype, source.shape)
    return made


def fits(values: Array, dtype: np.dtype[Any]) -> bool:
    """Whether a type holds values: all are finite in it, and not all are subnormal.

    Args:
        values: The exact values, in float64.
        dtype: The type they are rounded to.
    """
    with np.errstate(over="ignore", invalid="ignore", under="ignore"):
        largest = float(np.abs(values.astype(dtype).astype(np.float64)).max(initial=0.0))
    return bool(np.isfinite(largest)) and (largest >= _smallest_normal(dtype) or not values.any())


@cache
def _smallest_normal(dtype: np.dtype[Any]) -> float:
    """Return the smallest normal number of a type."""
    return 2.0**-126 if dtype.name == "bfloat16" else float(np.finfo(dtype).tiny)


def _multiplied(weight: Array, factor: Array) -> tuple[Array | None, float, float]:
    """Return the product (None where it is better made when it is written), its largest magnitude, and that before."""
    made: Array | None = None
    if weight.nbytes <= _STREAMED_BYTES or not weight.ndim:
        made = np.empty(weight.shape, weight.dtype)
    largest = before = 0.0
    for (start, stop), piece in _products(weight, factor):
        if made is not None and piece.shape == made.shape:
            made = piece  # it is all of it
        elif made is not None:
            made[start:stop] = piece
        peak = _peak(piece)
        largest = float("inf") if np.isnan(peak) else max(largest, peak)
        before = max(before, _peak(weight[start:stop]))
    return made, largest, before


def _peak(values: Array) -> float:
    """Return the largest magnitude, 0 of no values; NaN where one of them is."""
    known = values if values.dtype in _COMPARED else values.astype(np.float64)
    return float(np.abs(known).max(initial=0.0))


def _filled(weight: Array, factor: Array) -> Array:
    """Return the product, whatever its size."""
    made = np.empty(weight.shape, weight.dtype)
    for (start, stop), piece in _products(weight, factor):
        made[start:stop] = piece
    return made


def _products(weight: Array, factor: Array) -> Iterator[tuple[tuple[int, int], Array]]:
    """Yield pieces of weight times factor, computed in float64 and rounded once."""
    aligned = factor.reshape((1,) * (weight.ndim - factor.ndim) + factor.shape)
    for start, stop in pieces(weight):
        part = aligned if aligned.shape[0] == 1 else aligned[start:stop]
        with np.errstate(over="ignore", invalid="ignore", under="ignore"):
            yield (start, stop), (weight[start:stop].astype(np.float64) * part).astype(weight.dtype)


def pieces(weight: Array) -> Iterator[tuple[int, int]]:
    """Yield ranges of rows that are a few megabytes each."""
    rows = weight.shape[0]
    step = max(1, _PIECE_BYTES * rows // max(1, weight.nbytes))
    for start in range(0, rows, step):
        yield start, min(rows, start + step)
