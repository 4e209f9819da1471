"""ONNX Runtime on x86 CPUs without VNNI instructions: as with them, but weights use half of the range of int8.

There the product of uint8 and int8 is made by an instruction that adds two products in 16 bits, which hold twice 255 by
64, but not twice 255 by 127: larger weights saturate without a word and results are wrong by any amount. Weights of -64
to 64 cannot saturate; the lost bit costs about 2.5 dB.
"""

from __future__ import annotations

from dataclasses import replace

from graphopt.target import fusion_checks
from graphopt.target.ort_cpu import ORT_CPU
from graphopt.target.rules import WeightKind

ORT_CPU_AVX2 = replace(
    ORT_CPU,
    name="ort-cpu-avx2",
    weights=WeightKind(limit=fusion_checks.LARGEST_WEIGHT),
    checks=(*ORT_CPU.checks, fusion_checks.WEIGHT_LIMIT),
)
