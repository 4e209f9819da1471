"""Tells whether a model is quantized already."""

from __future__ import annotations

from typing import TYPE_CHECKING

from graphopt.target.stored import restores_constant

if TYPE_CHECKING:
    from graphopt.graph import Model

QUANTIZED = frozenset(
    (
        *("QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear", "MatMulInteger", "ConvInteger", "QGemm"),
        *("QLinearConv", "QLinearMatMul", "MatMulNBits", "DynamicQuantizeMatMul", "DynamicQuantizeLSTM"),
    )
)
"""Operators that tell a model is quantized already."""


def quantized_operators(model: Model) -> list[str]:
    """Return the operators that tell a model is quantized already; weights alone that are stored as integers do not."""
    return sorted({node.op for _, node in model.walk() if node.op in QUANTIZED and not restores_constant(node)})
