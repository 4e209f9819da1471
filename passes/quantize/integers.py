"""The integers of a weight: those that an earlier pass found for it, else rounded to nearest on a grid of its own."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
from onnx import TensorProto

from graphopt.graph import constant_value
from graphopt.target.grid import WEIGHT_LIMIT, quantize_weight, weight_scales
from graphopt.target.operators import output_axis
from graphopt.target.stored import StoredWeight, stored_weight

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from graphopt.graph import Node, Rewriter, Tensor


@dataclass(frozen=True, slots=True)
class IntegerWeight:
    """A weight that an integer kernel multiplies.

    Attributes:
        values: float32, what was rounded, with the factor of a Gemm.
        codes: int8, in the same shape.
        scales: float32, one per channel, or one element.
        axis: Axis of the channels; None for a single scale.
        integers: A constant that holds the codes already, in this type or a smaller one; None where none does.
        limit: Largest magnitude of a code.
    """

    values: NDArray[np.float32]
    codes: NDArray[np.int8]
    scales: NDArray[np.float32]
    axis: int | None
    integers: Tensor | None = None
    limit: int = WEIGHT_LIMIT

    def restore(self) -> NDArray[np.float32]:
        """Return the weights that the integers stand for."""
        return (self.codes.astype(np.float32) * self.scales.reshape(self._shape())).astype(np.float32)

    def with_scales(self, scales: NDArray[np.float32]) -> IntegerWeight:
        """Return the weight on other scales."""
        if np.array_equal(scales, self.scales):
            return self
        wanted = np.rint(self.restore() / scales.reshape(self._shape())) if self.integers is not None else None
        if wanted is None:
            codes = quantize_weight(self.values, self.axis, scales, self.limit).values
            return replace(self, codes=codes, scales=scales)
        codes = np.clip(wanted, -self.limit, self.limit).astype(np.int8)
        return replace(self, codes=codes, scales=scales, integers=None)

    def with_fourth_channel(self) -> IntegerWeight:
        """Return the weight of a convolution with one more input channel that is ignored."""
        pads = [(0, 0), (0, 1), *[(0, 0)] * (self.codes.ndim - 2)]
        return replace(self, values=np.pad(self.values, pads), codes=np.pad(self.codes, pads), integers=None)

    def repeated(self, codes: NDArray[np.int8], times: int) -> IntegerWeight:
        """Return the weight with other codes, whose outputs are those there were, several times."""
        scales = self.scales if self.axis is None else np.tile(self.scales, times)
        return replace(self, values=codes.astype(np.float32), codes=codes, scales=scales, integers=None)

    def write(self, rw: Rewriter, node: Node, name: str) -> Tensor:
        """Return the codes as a tensor of int8; those kept in fewer bits are widened by whoever loads the model."""
        if self.integers is None:
            made: Tensor = rw.constant(self.codes, name=f"{name}_quantized", near=node)
            return made
        if self.integers.onnx_dtype == TensorProto.INT8:
            return self.integers
        wide = rw.op("Cast", [self.integers], attrs={"to": int(TensorProto.INT8)}, near=node, name=f"{name}_widened")
        rw.set_type(wide, np.dtype(np.int8), list(self.codes.shape))
        found: Tensor = wide
        return found

    def _shape(self) -> list[int]:
        shape = [1] * self.codes.ndim
        if self.axis is not None:
            shape[self.axis] = -1
        return shape


def integer_weight(node: Node, *, per_channel: bool, limit: int = WEIGHT_LIMIT) -> IntegerWeight:
    """Return the integers of the weight of a Conv, Gemm or MatMul whose rule does not refuse it.

    Args:
        node: The operator.
        per_channel: One scale per output channel where the weight has none yet.
        limit: Largest magnitude of an integer; a weight that is rounded already and goes beyond is rounded anew.
    """
    factor = np.float32(node.attrs.get("alpha", 1.0)) if node.op == "Gemm" else np.float32(1.0)
    stored = stored_weight(node.inputs[1])
    if isinstance(stored, StoredWeight) and factor != 0 and fits(stored, limit):
        scales = (stored.scales * abs(factor)).astype(np.float32)
        codes = stored.codes if factor > 0 else np.maximum(stored.codes, -WEIGHT_LIMIT) * np.int8(-1)
        found = IntegerWeight(stored.restore(), codes, scales, stored.axis, stored.integers if factor > 0 else None)
        return replace(found, values=found.restore())
    value = constant_value(node.inputs[1]) if not isinstance(stored, StoredWeight) else stored.restore()
    assert value is not None
    weight = np.asarray(value * factor, np.float32)
    axis = output_axis(node, weight.ndim) if per_channel else None
    scales = weight_scales(weight, axis, limit)
    codes = quantize_weight(weight, axis, scales, limit).values
    return IntegerWeight(weight, codes, scales, axis, limit=limit)


def fits(stored: StoredWeight, limit: int) -> bool:
    """Tell whether no integer of a weight lies beyond a limit that is below what its type holds."""
    return limit >= WEIGHT_LIMIT or int(np.abs(stored.codes.astype(np.int16)).max(initial=0)) <= limit


def describe(node: Node, *, per_channel: bool, limit: int = WEIGHT_LIMIT) -> str:
    """Return how the weight of an operator is rounded, for the per-layer table."""
    stored = stored_weight(node.inputs[1])
    if isinstance(stored, StoredWeight) and fits(stored, limit):
        kind = np.dtype(stored.integers.dtype).name
        return f"{kind} weights per {'tensor' if stored.axis is None else 'channel'} as rounded before"
    return f"int8 weights per {'channel' if per_channel else 'tensor'}"
