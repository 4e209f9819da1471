"""The sparse convolution kernels through their C interface, and what their results may differ by."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass

import numpy as np

from kernel_calls import ACTIVATIONS, Guarded, address, blob, call, objection


@dataclass(frozen=True)
class Steps:
    """Strides, dilations and pads, height before width; pads as ONNX lists them."""

    strides: tuple[int, int] = (1, 1)
    dilations: tuple[int, int] = (1, 1)
    pads: tuple[int, int, int, int] = (0, 0, 0, 0)

    def output(self, sizes: tuple[int, int], kernel: tuple[int, int]) -> tuple[int, int]:
        """Spatial sizes of the output."""
        reach = [d * (k - 1) + 1 for d, k in zip(self.dilations, kernel, strict=True)]
        padded = [sizes[i] + self.pads[i] + self.pads[i + 2] for i in range(2)]
        height, width = ((p - r) // s + 1 for p, r, s in zip(padded, reach, self.strides, strict=True))
        return height, width

    def as_c(self) -> ctypes.Array[ctypes.c_int64]:
        """The order of the C interface."""
        per_axis = [(self.strides[i], self.dilations[i], self.pads[i], self.pads[i + 2]) for i in range(2)]
        return (ctypes.c_int64 * 8)(*per_axis[0], *per_axis[1])


@dataclass(frozen=True)
class Extras:
    """What follows the sums."""

    bias: np.ndarray | None = None
    residual: np.ndarray | None = None
    activation: str = "none"
    low: float = -np.inf
    high: float = np.inf


def padded_plane(positions: int) -> int:
    """Floats of a plane in the padded layout."""
    whole = -(-positions // 16) * 16
    return whole + 16 if whole and whole % 256 == 0 else whole


def to_padded(x: np.ndarray) -> np.ndarray:
    """[N, C, H, W] -> [N, C, P]."""
    flat = x.reshape(*x.shape[:2], x.shape[2] * x.shape[3])
    return np.pad(flat, ((0, 0), (0, 0), (0, padded_plane(flat.shape[2]) - flat.shape[2])))


def from_padded(y: np.ndarray, sizes: tuple[int, int]) -> np.ndarray:
    """[N, C, P] -> [N, C, H, W]; what lies behind the image must be zero."""
    count = sizes[0] * sizes[1]
    assert not y[:, :, count:].any(), "something lies behind the image"
    return np.ascontiguousarray(y[:, :, :count]).reshape(*y.shape[:2], *sizes)


@dataclass(frozen=True)
class ConvLibrary:
    """The kernels through their C interface."""

    dll: ctypes.CDLL

    def run(
        self,
        packed: np.ndarray,
        x: np.ndarray,
        isa: str,
        weight: tuple[int, ...],
        steps: Steps = Steps(),
        extras: Extras = Extras(),
        padded: tuple[bool, bool] = (False, False),
        *,
        in_place: bool = False,
    ) -> np.ndarray:
        """Return y [N, M, H, W]; x is [N, C, H, W], whatever the layouts; `weight` is the shape of the dense weight.

        With `in_place` y lies where the residual does.
        """
        sizes = steps.output((x.shape[2], x.shape[3]), (weight[2], weight[3]))
        count = padded_plane(sizes[0] * sizes[1]) if padded[1] else sizes[0] * sizes[1]
        given = to_padded(x) if padded[0] else x
        residual = extras.residual
        if residual is not None and padded[1]:
            residual = to_padded(residual)
        total = x.shape[0] * weight[0] * count
        y = Guarded(total)
        if in_place and residual is not None:
            y.room[:] = residual.reshape(-1)
            residual = y.room
        call(
            self.dll.graphopt_sparse_conv_f32,
            *blob(packed),
            isa.encode(),
            address(given),
            (ctypes.c_int64 * 3)(x.shape[0], x.shape[2], x.shape[3]),
            steps.as_c(),
            int(padded[0]) + 2 * int(padded[1]),
            address(extras.bias),
            address(residual),
            ACTIVATIONS.index(extras.activation),
            ctypes.c_float(extras.low),
            ctypes.c_float(extras.high),
            address(y.room),
        )
        made = y.written().reshape(x.shape[0], weight[0], count)
        return from_padded(made, sizes) if padded[1] else made.reshape(*made.shape[:2], *sizes)

    def choice(
        self, packed: np.ndarray, isa: str, x_sizes: tuple[int, int, int], steps: Steps, padded: tuple[bool, bool]
    ) -> str:
        """Return instruction set, how x is read, positions of a tile, and tasks, for images, height and width of x."""
        return call(
            self.dll.graphopt_sparse_conv_choice,
            *blob(packed),
            isa.encode(),
            (ctypes.c_int64 * 3)(*x_sizes),
            steps.as_c(),
            int(padded[0]) + 2 * int(padded[1]),
        )

    def check(self, packed: np.ndarray) -> str:
        """Return the library's objection to these bytes, or ''."""
        return objection(self.dll.graphopt_sparse_conv_check, packed, 7)


def conv_bound(x: np.ndarray, w: np.ndarray, steps: Steps, group: int, extras: Extras) -> tuple[np.ndarray, np.ndarray]:
    """The exact sums before the activation, and |fl(sum) - sum| <= (K + 3) eps (|x| * |w| + |b| + |r|) of any order."""
    exact = dense_conv(x.astype(np.float64), w.astype(np.float64), steps, group)
    size = dense_conv(np.abs(x).astype(np.float64), np.abs(w).astype(np.float64), steps, group)
    if extras.bias is not None:
        exact = exact + extras.bias[:, None, None]
        size = size + np.abs(extras.bias)[:, None, None]
    if extras.residual is not None:
        exact = exact + extras.residual
        size = size + np.abs(extras.residual)
    return exact, (w[0].size + 3) * np.finfo(np.float32).eps * size + 1e-38


def dense_conv(x: np.ndarray, w: np.ndarray, steps: Steps, group: int) -> np.ndarray:
    """Convolution as its definition has it, tap by tap."""
    (top, left, bottom, right), (sh, sw), (dh, dw) = steps.pads, steps.strides, steps.dilations
    height, width = steps.output((x.shape[2], x.shape[3]), (w.shape[2], w.shape[3]))
    planes = np.pad(x, ((0, 0), (0, 0), (top, bottom), (left, right)))
    y = np.zeros((x.shape[0], w.shape[0], height, width), x.dtype)
    inputs, outputs = x.shape[1] // group, w.shape[0] // group
    for g in range(group):
        mine = planes[:, g * inputs : (g + 1) * inputs]
        for a in range(w.shape[2]):
            for b in range(w.shape[3]):
                rows = slice(a * dh, a * dh + (height - 1) * sh + 1, sh)
                columns = slice(b * dw, b * dw + (width - 1) * sw + 1, sw)
                taps = w[g * outputs : (g + 1) * outputs, :, a, b]
                y[:, g * outputs : (g + 1) * outputs] += np.einsum("oi,nihw->nohw", taps, mine[:, :, rows, columns])
    return y
