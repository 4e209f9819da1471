"""The kernels through their C interface, and what their results may differ by."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass

import numpy as np


def sparse(k: int, n: int, density: float, seed: int = 0) -> np.ndarray:
    """Gaussian [k, n] with about this share of entries."""
    rng = np.random.default_rng(seed)
    w = rng.standard_normal((k, n)).astype(np.float32)
    w[rng.random((k, n)) >= density] = 0
    return w


def rounding_bound(x: np.ndarray, w: np.ndarray, bias: np.ndarray | None) -> np.ndarray:
    """|fl(x w + b) - (x w + b)| of any order of K fp32 products and sums is at most (K + 1) eps (|x| |w| + |b|)."""
    size = np.abs(x).astype(np.float64) @ np.abs(w).astype(np.float64)
    if bias is not None:
        size = size + np.abs(bias)
    bound: np.ndarray = (w.shape[0] + 2) * np.finfo(np.float32).eps * size + 1e-38
    return bound


ACTIVATIONS = ("none", "relu", "relu6", "clip", "silu", "gelu", "gelu_tanh")


@dataclass(frozen=True)
class Library:
    """The kernels through their C interface."""

    dll: ctypes.CDLL

    def run(
        self,
        packed: np.ndarray,
        x: np.ndarray,
        n: int,
        isa: str,
        bias: np.ndarray | None = None,
        *,
        relu: bool = False,
        residual: np.ndarray | None = None,
        activation: str = "",
        low: float = -np.inf,
        high: float = np.inf,
    ) -> np.ndarray:
        guard = 16
        y = np.full(x.shape[0] * n + 2 * guard, 12345.0, np.float32)
        message = ctypes.create_string_buffer(512)
        failed = self.dll.graphopt_sparse_matmul_f32(
            ctypes.c_void_p(packed.ctypes.data),
            ctypes.c_size_t(packed.nbytes),
            isa.encode(),
            ctypes.c_void_p(x.ctypes.data),
            ctypes.c_size_t(x.shape[0]),
            None if bias is None else ctypes.c_void_p(bias.ctypes.data),
            None if residual is None else ctypes.c_void_p(residual.ctypes.data),
            ACTIVATIONS.index(activation or ("relu" if relu else "none")),
            ctypes.c_float(low),
            ctypes.c_float(high),
            ctypes.c_void_p(y[guard:].ctypes.data),
            message,
            ctypes.c_size_t(512),
        )
        assert failed == 0, message.value.decode()
        assert np.all(y[:guard] == 12345.0), "written before the output"
        assert np.all(y[-guard:] == 12345.0), "written behind the output"
        return y[guard:-guard].reshape(x.shape[0], n)

    def check(self, packed: np.ndarray) -> str:
        """Return the library's objection to these bytes, or ''."""
        message = ctypes.create_string_buffer(512)
        shape = (ctypes.c_uint64 * 3)()
        failed = self.dll.graphopt_sparse_matmul_check(
            ctypes.c_void_p(packed.ctypes.data), ctypes.c_size_t(packed.nbytes), shape, message, ctypes.c_size_t(512)
        )
        assert bool(failed) == bool(message.value)
        return message.value.decode()
