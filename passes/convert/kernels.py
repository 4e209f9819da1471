"""Operators that ONNX Runtime loads in an older opset only: it has no kernel for their newer version."""

from __future__ import annotations

from onnx import TensorProto

MISSING: dict[str, int] = {
    **dict.fromkeys(("RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike", "Multinomial"), 22),
    "Bernoulli": 22,  # composed of RandomUniformLike
    **dict.fromkeys(("GlobalLpPool", "MaxRoiPool", "RoiAlign"), 22),
    "Swish": 25,
}
"""Operator and the opset from which on ONNX Runtime 1.31 does not run it on a CPU."""

COMPOSED_UP_TO = 18
"""The last opset whose functions ONNX Runtime 1.31 composes of the operators that they consist of."""

COMPOSED: dict[str, int] = {
    **dict.fromkeys(("LeakyRelu", "PRelu"), 16),
    **dict.fromkeys(("Elu", "HardSigmoid", "HardSwish", "Mish", "Relu", "Selu", "Softplus", "Softsign"), 18),
    **dict.fromkeys(("ReduceLogSumExp", "ThresholdedRelu"), 18),
}
"""Operators that have no kernel for some types, and the first opset in which ONNX Runtime composes them for those."""

_FLOATS = frozenset((TensorProto.FLOAT, TensorProto.FLOAT16))

WITH_KERNEL: dict[str, frozenset[int]] = {
    **dict.fromkeys(COMPOSED, _FLOATS),
    "Relu": _FLOATS | {TensorProto.DOUBLE, TensorProto.INT32, TensorProto.INT8},
    "ReduceLogSumExp": _FLOATS | {TensorProto.DOUBLE, TensorProto.INT32, TensorProto.INT64},
}
"""The element types for which operators of `COMPOSED` have a kernel, float16 between two Casts."""


def lost(op: str, element: int | None, source: int, target: int) -> str | None:
    """Return why ONNX Runtime runs an operator in one opset and not in another, or None.

    Args:
        op: The operator.
        element: Element type of its first input, if known.
        source: Opset of the model.
        target: A newer one.
    """
    if source < MISSING.get(op, 0) <= target:
        return f"ONNX Runtime has no kernel for {op} from opset {MISSING[op]} on"
    composed = op in COMPOSED and COMPOSED[op] <= source <= COMPOSED_UP_TO < target
    if composed and element and element not in WITH_KERNEL[op]:
        kind = TensorProto.DataType.Name(element).lower()
        return f"ONNX Runtime has no kernel for {op} of {kind}, and composes it up to opset {COMPOSED_UP_TO} only"
    return None
