"""The activations of all instruction sets against their definitions in double."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
import pytest

from graphopt.runtime.library import isa_report
from graphopt.solve.pack_sparse import pack_sparse
from kernel_calls import ACTIVATIONS

if TYPE_CHECKING:
    from kernel_calls import Library

LOW, HIGH = -1.0, 2.0
SPECIAL = [np.inf, -np.inf, np.nan, 0.0, -0.0, 1e-40, 3e38, -3e38, -87.3, 88.0, -13.1]


def defined(activation: str, v: float) -> float:
    if activation == "silu":
        return v / (1 + math.exp(-v)) if v > -700 else v * 0.0
    if activation == "gelu":
        return v * (0.5 * math.erfc(-v * math.sqrt(0.5)))
    if activation == "gelu_tanh":
        cubed = min(max(v, -1e9), 1e9) ** 3
        return v * (0.5 * (1 + math.tanh(math.sqrt(2 / math.pi) * (v + 0.044715 * cubed))))
    low, high = {"none": (-np.inf, np.inf), "relu": (0, np.inf), "relu6": (0, 6), "clip": (LOW, HIGH)}[activation]
    return v if math.isnan(v) else min(max(v, low), high)


@pytest.mark.parametrize("isa", isa_report().supported)
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_activation(library: Library, activation: str, isa: str) -> None:
    x = np.concatenate([np.linspace(-100, 100, 4001), np.linspace(-1, 1, 1001), SPECIAL]).astype(np.float32)
    identity = pack_sparse(np.eye(1, dtype=np.float32))
    y = library.run(identity, x[:, None], 1, isa, activation=activation, low=LOW, high=HIGH)[:, 0]
    wanted = np.array([defined(activation, float(v)) for v in x])
    assert np.array_equal(np.isnan(y), np.isnan(wanted))
    finite = np.isfinite(wanted)
    assert np.array_equal(y[~finite & ~np.isnan(wanted)], wanted[~finite & ~np.isnan(wanted)])
    error = np.abs(y[finite] - wanted[finite])
    assert np.all(error <= 3e-7 * np.abs(x[finite]) + 1e-36)
