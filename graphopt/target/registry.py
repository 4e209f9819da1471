"""The targets there are, by name."""

from __future__ import annotations

from typing import TYPE_CHECKING

from graphopt.errors import UsageError
from graphopt.target.openvino import OPENVINO
from graphopt.target.ort_cpu import ORT_CPU
from graphopt.target.ort_cpu_arm64 import ORT_CPU_ARM64
from graphopt.target.ort_cpu_avx2 import ORT_CPU_AVX2
from graphopt.target.qnn import QNN
from graphopt.target.tensorrt import TENSORRT

if TYPE_CHECKING:
    from graphopt.target.numbers import Number
    from graphopt.target.rules import Target

ALL = (ORT_CPU, ORT_CPU_AVX2, ORT_CPU_ARM64, TENSORRT, OPENVINO, QNN)
TARGETS: dict[str, Target] = {target.name: target for target in ALL}


def find_target(name: str) -> Target:
    """Return a target by its name.

    Raises:
        UsageError: There is none of this name; the message lists those there are.
    """
    if name not in TARGETS:
        raise UsageError(
            f"there is no target '{name}'",
            must=f"The target is one of: {', '.join(sorted(TARGETS))}",
            do="Pass one of them with --target, or leave the option out",
        )
    return TARGETS[name]


def find_number(target: Target, name: str) -> Number:
    """Return a type of activations by its name.

    Raises:
        UsageError: The target has no kernels for it; the message lists those it has.
    """
    for number in target.activations:
        if number.name == name:
            return number
    raise UsageError(
        f"{target.runtime} computes nothing on activations of {name} (target {target.name})",
        must=f"Activations are one of: {', '.join(number.name for number in target.activations)}",
        do="Pass one of them with --activations, or choose another target",
    )
