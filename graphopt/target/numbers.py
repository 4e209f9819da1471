"""The number types that quantized tensors are stored in, with what the ONNX versions allow of each."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from onnx import TensorProto, helper

if TYPE_CHECKING:
    from numpy.typing import NDArray


@dataclass(frozen=True)
class Number:
    """A type that QuantizeLinear writes and DequantizeLinear reads.

    Attributes:
        name: What options take.
        bottom: Smallest value.
        top: Largest value.
        element: Element type of ONNX.
        since: First opset whose QuantizeLinear of the default domain writes it.
        contributed: First opset in which the QuantizeLinear of com.microsoft stands in for it, or None.
        real: Whether its values are not evenly spaced: rounding errs in proportion to the value.
    """

    name: str
    bottom: int
    top: int
    element: int
    since: int = 10
    contributed: int | None = None
    real: bool = False

    @cached_property
    def dtype(self) -> np.dtype[Any]:
        """The numpy type."""
        found: np.dtype[Any] = np.dtype(helper.tensor_dtype_to_np_dtype(self.element))
        return found

    @property
    def signed(self) -> bool:
        """Whether it has negative values."""
        return self.bottom < 0

    @property
    def levels(self) -> int:
        """How many evenly spaced values it has; 256 stands in where they are not evenly spaced."""
        return 256 if self.real else self.top - self.bottom + 1

    def cast(self, values: NDArray[np.floating]) -> NDArray[Any]:
        """Return values, on the scale of the type already, in the type: rounded halves to even, ends cut off."""
        found: NDArray[Any] = np.clip(values if self.real else np.rint(values), self.bottom, self.top)
        return found.astype(self.dtype)


UINT8 = Number("uint8", 0, 255, TensorProto.UINT8)
INT8 = Number("int8", -128, 127, TensorProto.INT8)
UINT16 = Number("uint16", 0, 65535, TensorProto.UINT16, since=21, contributed=10)
INT16 = Number("int16", -32768, 32767, TensorProto.INT16, since=21, contributed=10)
FP8 = Number("fp8", -448, 448, TensorProto.FLOAT8E4M3FN, since=19, real=True)
"""Four bits of exponent, three of fraction, no infinity."""

NUMBERS = {number.name: number for number in (UINT8, INT8, UINT16, INT16, FP8)}
BY_ELEMENT = {number.element: number for number in NUMBERS.values()}
