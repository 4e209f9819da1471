"""Operators that ONNX Runtime loads in an older opset only: it has no kernel for their newer version."""

from __future__ import annotations

MISSING: dict[str, int] = {
    **dict.fromkeys(("RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike", "Multinomial"), 22),
    "Bernoulli": 22,  # composed of RandomUniformLike
    **dict.fromkeys(("GlobalLpPool", "MaxRoiPool", "RoiAlign"), 22),
    "Swish": 25,
}
"""Operator and the opset from which on ONNX Runtime 1.31 does not run it on a CPU."""
