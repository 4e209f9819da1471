"""ONNX Runtime on 64-bit ARM CPUs: the rules of x86, and signed activations fuse as well as unsigned ones.

The runtime keeps int8 activations there, multiplies int8 by int8 with the dot product instructions, and does not turn
them into uint8; a tensor of int8 may have several readers. After Relu the zero point is -128.
"""

from __future__ import annotations

from dataclasses import replace

from graphopt.target import fusion_checks
from graphopt.target.numbers import INT8, UINT8
from graphopt.target.ort_cpu import ORT_CPU

ORT_CPU_ARM64 = replace(
    ORT_CPU,
    name="ort-cpu-arm64",
    activations=(INT8, UINT8),
    session={"session.qdqisint8allowed": "1"},
    checks=tuple(check for check in ORT_CPU.checks if check is not fusion_checks.SHARED_SIGNED),
)
