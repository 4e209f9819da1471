"""The sparse int8 kernels through their C interface, and what they compute in numpy."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from functools import partial

import numpy as np

from kernel_calls import ACTIVATIONS, Guarded, address, attempt, blob, call, objection

EXACT = ("none", "relu", "relu6", "clip")


def block_sparse(k: int, n: int, unit: int, density: float, seed: int = 0) -> np.ndarray:
    """int8 [k, n] of which about this share of the blocks (4 rows, `unit` columns) is not zero."""
    rng = np.random.default_rng(seed)
    w = rng.integers(-128, 128, (k, n)).astype(np.int8)
    kept = rng.random((-(-k // 4), -(-n // unit))) < density
    mask: np.ndarray = np.repeat(np.repeat(kept, 4, 0), unit, 1)[:k, :n]
    masked: np.ndarray = w * mask
    return masked


@dataclass(frozen=True)
class Output:
    """What is made of the sums: see kernels/sparse_int8/contract.h."""

    bias: np.ndarray | None = None
    residual: np.ndarray | None = None
    activation: str = "none"
    low: float = -np.inf
    high: float = np.inf
    grid: tuple[float, int] | None = None  # scale and zero point of bytes; None for floats


PLAIN = Output()


class _Call(ctypes.Structure):
    _fields_ = [
        *((name, ctypes.c_void_p) for name in ("x_floats", "x_bytes", "bias", "residual", "y_floats", "y_bytes")),
        *((name, ctypes.c_float) for name in ("x_scale", "y_scale", "low", "high")),
        *((name, ctypes.c_int32) for name in ("x_zero_point", "y_zero_point", "activation")),
    ]


@dataclass(frozen=True)
class Int8Library:
    """The kernels through their C interface."""

    dll: ctypes.CDLL

    def check(self, packed: np.ndarray) -> str:
        """Return the library's objection to these bytes, or ''."""
        return objection(self.dll.graphopt_sparse_int8_check, packed, 3)

    def choice(self, packed: np.ndarray, isa: str, m: int) -> str:
        """Return what is chosen for m rows; '' for an instruction set of another platform."""
        chosen = self.dll.graphopt_sparse_int8_choice
        failed, message = attempt(chosen, *blob(packed), isa.encode(), ctypes.c_size_t(m))
        return "" if failed else message

    def matmul(
        self,
        packed: np.ndarray,
        x: np.ndarray,
        n: int,
        isa: str,
        output: Output = PLAIN,
        grid: tuple[float, int] = (0.0, 0),
    ) -> np.ndarray:
        """Return y of x [M, K], float32 or uint8; a grid with scale 0 is found by the kernel."""
        y = _room(x.shape[0] * n, output)
        rows = ctypes.c_size_t(x.shape[0])
        given = _call(x, y, output, grid)
        call(self.dll.graphopt_sparse_int8_matmul, *blob(packed), isa.encode(), rows, ctypes.byref(given))
        return y.written().reshape(x.shape[0], n)

    def conv(
        self,
        packed: np.ndarray,
        x: np.ndarray,
        n: int,
        isa: str,
        window: Window,
        output: Output = PLAIN,
        grid: tuple[float, int] = (0.0, 0),
    ) -> np.ndarray:
        """Return y of x [batch, channels, height, width], float32 or uint8."""
        window_sizes = (*window.kernel, *window.strides, *window.dilations, *window.pads)
        sizes = (ctypes.c_int64 * 17)(*x.shape, n, window.group, *window_sizes, window.channels_last)
        out = (ctypes.c_int64 * 2)()
        convolve = partial(call, self.dll.graphopt_sparse_int8_conv, *blob(packed), isa.encode(), sizes)
        convolve(ctypes.byref(_Call()), out)  # tells the sizes of the output
        y = _room(x.shape[0] * n * out[0] * out[1], output)
        convolve(ctypes.byref(_call(x, y, output, grid)), out)
        return y.written().reshape(x.shape[0], n, out[0], out[1])


def _room(elements: int, output: Output) -> Guarded:
    return Guarded(elements, np.float32 if output.grid is None else np.uint8)


def _call(x: np.ndarray, y: Guarded, output: Output, grid: tuple[float, int]) -> _Call:
    to_bytes, is_float = output.grid is not None, x.dtype == np.float32
    y_scale, y_zero_point = output.grid or (1.0, 0)
    return _Call(
        address(x) if is_float else None,
        None if is_float else address(x),
        address(output.bias),
        address(output.residual),
        None if to_bytes else address(y.room),
        address(y.room) if to_bytes else None,
        grid[0],
        y_scale,
        output.low,
        output.high,
        grid[1],
        y_zero_point,
        ACTIVATIONS.index(output.activation),
    )


@dataclass(frozen=True)
class Window:
    """What a convolution does, as Conv says it."""

    kernel: tuple[int, int] = (1, 1)
    strides: tuple[int, int] = (1, 1)
    dilations: tuple[int, int] = (1, 1)
    pads: tuple[int, int, int, int] = (0, 0, 0, 0)
    group: int = 1
    channels_last: bool = False

    def attributes(self) -> dict[str, object]:
        return {
            "kernel_shape": list(self.kernel),
            "strides": list(self.strides),
            "dilations": list(self.dilations),
            "pads": list(self.pads),
            "group": self.group,
            "channels_last": int(self.channels_last),
        }


def dynamic_grid(x: np.ndarray) -> tuple[float, int]:
    """The grid of DynamicQuantizeLinear."""
    low, high = np.minimum(x.min(initial=0), np.float32(0)), np.maximum(x.max(initial=0), np.float32(0))
    scale = np.float32(1) if low == high else np.float32((high - low) / np.float32(255))
    return float(scale), int(np.rint(np.clip(np.float32(0) - low / scale, 0, 255)))


def to_bytes(x: np.ndarray, grid: tuple[float, int]) -> np.ndarray:
    """QuantizeLinear to uint8."""
    scaled = np.rint(np.clip(x / np.float32(grid[0]), np.float32(-grid[1]), np.float32(255 - grid[1])))
    bytes_: np.ndarray = (np.nan_to_num(scaled, nan=-grid[1]) + grid[1]).astype(np.uint8)
    return bytes_


def integer_sums(q: np.ndarray, zero_point: int, w: np.ndarray, fixes: np.ndarray | None = None) -> np.ndarray:
    """int32 [M, N]."""
    sums = (q.astype(np.float64) - zero_point) @ w.astype(np.float64)
    exact: np.ndarray = sums.astype(np.int64)
    return (exact + (0 if fixes is None else fixes)).astype(np.int32)
