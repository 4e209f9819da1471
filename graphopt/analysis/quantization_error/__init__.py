"""Where a quantized model departs from its float one: tensors matched, errors of single layers and sums of them.

`match` pairs tensors, `measure` runs both models batch by batch, `explain` says what a layer's error comes from.
"""

from __future__ import annotations

from graphopt.analysis.quantization_error.explain import Finding, explain
from graphopt.analysis.quantization_error.matching import Pair, match
from graphopt.analysis.quantization_error.measuring import TensorError, measure
from graphopt.analysis.quantization_error.view import View
from graphopt.analysis.quantization_error.weights import WeightError, compare_weights

__all__ = [
    "Finding",
    "Pair",
    "TensorError",
    "View",
    "WeightError",
    "compare_weights",
    "explain",
    "match",
    "measure",
]
