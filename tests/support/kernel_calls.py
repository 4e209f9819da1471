"""The kernels through their C interface, and what their results may differ by."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from graphopt.runtime.library import isa_report


def runs_here(isa: str) -> str:
    """Return the instruction set; a test that needs another machine is skipped."""
    if isa not in isa_report().supported:
        pytest.skip(f"this CPU does not run {isa}")
    return isa


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
_GUARD = 64
_MARKS = {np.dtype(np.float32): 12345, np.dtype(np.uint8): 77}
_MESSAGE_BYTES = 512


def address(values: np.ndarray | None) -> ctypes.c_void_p | None:
    """Return where an array lies; nothing for none."""
    return None if values is None else ctypes.c_void_p(values.ctypes.data)


class Guarded:
    """Room for an output with marks on both sides.

    Args:
        elements: Of the output.
        dtype: float32 or uint8.
    """

    def __init__(self, elements: int, dtype: type = np.float32) -> None:
        self._mark = _MARKS[np.dtype(dtype)]
        self._whole: np.ndarray = np.full(elements + 2 * _GUARD, self._mark, dtype)
        self.room = self._whole[_GUARD:-_GUARD]

    def written(self) -> np.ndarray:
        """Return the output; the marks must be as they were."""
        assert np.all(self._whole[:_GUARD] == self._mark), "written before the output"
        assert np.all(self._whole[-_GUARD:] == self._mark), "written behind the output"
        return self.room


def call(function: Any, *arguments: object) -> str:
    """Call a function of the C interface whose last arguments are a message and its room; return the message.

    Raises:
        AssertionError: The function fails.
    """
    failed, message = attempt(function, *arguments)
    assert not failed, message
    return message


def attempt(function: Any, *arguments: object) -> tuple[bool, str]:
    """Return whether a function of the C interface fails, and its message."""
    message = ctypes.create_string_buffer(_MESSAGE_BYTES)
    failed = function(*arguments, message, ctypes.c_size_t(_MESSAGE_BYTES))
    return bool(failed), message.value.decode()


def blob(packed: np.ndarray) -> tuple[ctypes.c_void_p, ctypes.c_size_t]:
    """Return packed bytes as the C interface takes them."""
    return ctypes.c_void_p(packed.ctypes.data), ctypes.c_size_t(packed.nbytes)


def objection(check: Any, packed: np.ndarray, numbers: int) -> str:
    """Return what a check of packed bytes says against them, or ''.

    Args:
        check: A function of the C interface.
        packed: The bytes.
        numbers: How many it tells of a weight that is valid.
    """
    failed, message = attempt(check, *blob(packed), (ctypes.c_uint64 * numbers)())
    assert failed == bool(message)
    return message


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
        y = Guarded(x.shape[0] * n)
        call(
            self.dll.graphopt_sparse_matmul_f32,
            *blob(packed),
            isa.encode(),
            address(x),
            ctypes.c_size_t(x.shape[0]),
            address(bias),
            address(residual),
            ACTIVATIONS.index(activation or ("relu" if relu else "none")),
            ctypes.c_float(low),
            ctypes.c_float(high),
            address(y.room),
        )
        return y.written().reshape(x.shape[0], n)

    def check(self, packed: np.ndarray) -> str:
        """Return the library's objection to these bytes, or ''."""
        return objection(self.dll.graphopt_sparse_matmul_check, packed, 3)
