"""Small models of every operator of the kernels, with inputs, for tests that run all of them somewhere unusual."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from kernel_calls import sparse
from kernel_models import model


@dataclass(frozen=True)
class Case:
    """One model with one feed.

    Attributes:
        name: Unique, fit for a file.
        op: The operator it is about.
        model: The bytes of the model.
        feeds: Inputs in the order of the model.
        rounding: What two instruction sets may differ by, over the largest value of an output.
    """

    name: str
    op: str
    model: bytes
    feeds: dict[str, np.ndarray]
    rounding: float


def all_cases() -> list[Case]:
    """Return the cases of all operators."""
    return [*sparse_matmul_cases()]


def sparse_matmul_cases() -> list[Case]:
    """One row, a narrow batch, a wide one, and none; odd sizes; bias and activation."""
    made = []
    for name, shape, n, density, relu in (
        ("vector", (1, 301), 130, 0.2, False),
        ("narrow", (7, 257), 65, 0.1, True),
        ("wide", (2, 33, 300), 129, 0.3, True),
        ("one", (1, 1), 1, 1.0, False),
        ("empty", (0, 40), 9, 0.2, False),
    ):
        k = shape[-1]
        w, bias = sparse(k, n, density), values((n,), 1)
        free: list[int | str | None] = [f"d{i}" for i in range(len(shape) - 1)]
        data = model(w, [*free, k], bias=bias, activation="relu" if relu else "none")
        # Any order of k products and sums in fp32; entries and inputs of about one, sums of about sqrt(k) or more.
        made.append(Case(f"sparse_matmul_{name}", "SparseMatMul", data, {"x": values(shape)}, (k + 2) * 2.0**-23))
    return made


def values(shape: tuple[int, ...], seed: int = 0) -> np.ndarray:
    """Gaussian numbers."""
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)
