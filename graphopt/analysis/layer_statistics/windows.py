"""Convolutions as y = W x: a row is what one output position reads."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from graphopt.analysis.layer_statistics.rows import Form

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from graphopt.graph import Node

    Array = NDArray[Any]


@dataclass(frozen=True, slots=True)
class WindowForm(Form):
    """A convolution; its columns count the channels of a group, then the taps of the kernel.

    Attributes:
        kernel, strides, dilations, begins: One number per spatial axis.
        ends: Padding behind, one number per spatial axis.
        same: ``SAME_UPPER``, ``SAME_LOWER`` or "" where the padding is explicit.
    """

    kernel: tuple[int, ...] = ()
    strides: tuple[int, ...] = ()
    dilations: tuple[int, ...] = ()
    begins: tuple[int, ...] = ()
    ends: tuple[int, ...] = ()
    same: str = ""

    @property
    def layout(self) -> tuple[object, ...]:
        """How the weight is stored."""
        return (self.op, self.groups)

    def columns(self, shape: Sequence[int]) -> int:
        """Return the columns of each group's matrix."""
        return int(np.prod(shape[1:]))

    def matrices(self, weight: Array) -> list[NDArray[np.float64]]:
        """Return W of every group as float64."""
        return [part.reshape(len(part), -1).astype(np.float64) for part in np.split(weight, self.groups)]

    def weight(self, matrices: Sequence[NDArray[np.float64]], like: Array) -> Array:
        """Return the matrices of all groups as a weight, in the layout and type of ``like``."""
        return np.concatenate(matrices).reshape(like.shape).astype(like.dtype)

    def channels(self, array: Array) -> Array:
        """Return what the layer reads with its channels last."""
        return np.moveaxis(array, 1, -1)

    def sample(self, inputs: Sequence[Array], count: int, draw: np.random.Generator) -> list[list[Array]]:
        """Return rows of each group for each of several arrays of the same shape."""
        spatial = inputs[0].shape[2:]
        begins, ends = self._padding(spatial)
        sizes = self._sizes(spatial, begins, ends)
        sample, places = _places(len(inputs[0]), sizes, count, draw)
        found = []
        for array in inputs:
            padded = np.pad(array, [(0, 0), (0, 0), *zip(begins, ends, strict=True)])
            taps = [
                (place * s)[:, None] + np.arange(k) * d
                for place, k, d, s in zip(places, self.kernel, self.dilations, self.strides, strict=True)
            ]
            found.append(self._split(_patches(padded, sample, taps)))
        return found

    def _sizes(self, spatial: Sequence[int], begins: Sequence[int], ends: Sequence[int]) -> list[int]:
        """Return the spatial axes of the output."""
        axes = zip(spatial, begins, ends, self.kernel, self.dilations, self.strides, strict=True)
        return [(size + b + e - d * (k - 1) - 1) // s + 1 for size, b, e, k, d, s in axes]

    def _padding(self, spatial: Sequence[int]) -> tuple[Sequence[int], Sequence[int]]:
        if not self.same:
            return self.begins, self.ends
        begins, ends = [], []
        for size, k, d, s in zip(spatial, self.kernel, self.dilations, self.strides, strict=True):
            total = max(0, (-(-size // s) - 1) * s + d * (k - 1) + 1 - size)
            small, large = total // 2, total - total // 2
            begins.append(small if self.same == "SAME_UPPER" else large)
            ends.append(large if self.same == "SAME_UPPER" else small)
        return begins, ends

    def _split(self, patches: Array) -> list[Array]:
        return [part.reshape(len(part), -1) for part in np.split(patches, self.groups, axis=1)]


@dataclass(frozen=True, slots=True)
class TransposedForm(WindowForm):
    """A transposed convolution: an output position reads, of each tap, the input that reaches it, or none.

    Attributes:
        more: Output padding, one number per spatial axis.
        wanted: The spatial axes of the output where the node states them, else empty.
    """

    more: tuple[int, ...] = ()
    wanted: tuple[int, ...] = ()

    def columns(self, shape: Sequence[int]) -> int:
        """Return the columns of each group's matrix."""
        return int(shape[0] // self.groups * np.prod(shape[2:]))

    def matrices(self, weight: Array) -> list[NDArray[np.float64]]:
        """Return W of every group as float64; a weight is stored as [inputs, outputs of a group, *kernel]."""
        parts = (np.moveaxis(part, 0, 1) for part in np.split(weight, self.groups))
        return [part.reshape(len(part), -1).astype(np.float64) for part in parts]

    def weight(self, matrices: Sequence[NDArray[np.float64]], like: Array) -> Array:
        """Return the matrices of all groups as a weight, in the layout and type of ``like``."""
        inputs = len(like) // self.groups
        parts = (np.moveaxis(part.reshape(-1, inputs, *like.shape[2:]), 0, 1) for part in matrices)
        return np.ascontiguousarray(np.concatenate(list(parts))).astype(like.dtype)

    def sample(self, inputs: Sequence[Array], count: int, draw: np.random.Generator) -> list[list[Array]]:
        """Return rows of each group for each of several arrays of the same shape."""
        spatial = inputs[0].shape[2:]
        begins, ends = self._padding(spatial)
        sizes = [full - b - e for full, b, e in zip(self._full(spatial), begins, ends, strict=True)]
        sample, places = _places(len(inputs[0]), sizes, count, draw)
        taps, reached = [], []
        for axis, (place, begin) in enumerate(zip(places, begins, strict=True)):
            ahead = (place + begin)[:, None] - np.arange(self.kernel[axis]) * self.dilations[axis]
            source, off = np.divmod(ahead, self.strides[axis])
            reached.append((off == 0) & (source >= 0) & (source < spatial[axis]))
            taps.append(np.where(reached[-1], source, 0))
        mask = np.ones((len(sample), 1, *[1] * len(spatial)), np.bool_)
        for axis, hit in enumerate(reached):
            mask = mask & hit.reshape(len(sample), 1, *[1] * axis, -1, *[1] * (len(spatial) - axis - 1))
        return [self._split(np.where(mask, _patches(array, sample, taps), 0)) for array in inputs]

    def _full(self, spatial: Sequence[int]) -> list[int]:
        """Return the spatial axes of the output before padding is cut off."""
        axes = zip(spatial, self.kernel, self.dilations, self.strides, self.more, strict=True)
        return [s * (size - 1) + more + d * (k - 1) + 1 for size, k, d, s, more in axes]

    def _padding(self, spatial: Sequence[int]) -> tuple[Sequence[int], Sequence[int]]:
        if not self.same and not self.wanted:
            return self.begins, self.ends
        wanted = self.wanted or [size * s for size, s in zip(spatial, self.strides, strict=True)]
        # What is wanted beyond the full output, no input reaches.
        total = [max(0, full - size) for full, size in zip(self._full(spatial), wanted, strict=True)]
        small = [size // 2 for size in total]
        large = [size - part for size, part in zip(total, small, strict=True)]
        return (small, large) if self.same == "SAME_UPPER" else (large, small)


def window_form(node: Node, weight: Array) -> WindowForm:
    """Return how a Conv or ConvTranspose is read as y = W x."""
    axes = weight.ndim - 2
    pads = list(node.attrs.get("pads", [0] * (2 * axes)))
    automatic = str(node.attrs.get("auto_pad", "NOTSET"))
    if automatic == "VALID":
        pads = [0] * (2 * axes)
    given: dict[str, Any] = {
        "groups": int(node.attrs.get("group", 1)),
        "kernel": tuple(weight.shape[2:]),
        "strides": tuple(node.attrs.get("strides", [1] * axes)),
        "dilations": tuple(node.attrs.get("dilations", [1] * axes)),
        "begins": tuple(pads[:axes]),
        "ends": tuple(pads[axes:]),
        "same": automatic if automatic.startswith("SAME") else "",
    }
    if node.op == "Conv":
        return WindowForm("Conv", **given)
    more = tuple(node.attrs.get("output_padding", [0] * axes))
    return TransposedForm("ConvTranspose", more=more, wanted=tuple(node.attrs.get("output_shape", ()))[-axes:], **given)


def _places(samples: int, sizes: Sequence[int], count: int, draw: np.random.Generator) -> tuple[Array, list[Array]]:
    """Draw output positions: which sample of the batch, and where along each spatial axis, [n] each."""
    total = samples * int(np.prod(sizes))
    chosen = draw.permutation(total)[:count] if total < 1 << 20 else draw.integers(0, total, count)
    sample, *places = np.unravel_index(chosen, (samples, *sizes))
    return sample, list(places)


def _patches(array: Array, sample: Array, taps: Sequence[Array]) -> Array:
    """Return [n, channels, *kernel]: the values at the taps, [n, kernel] per spatial axis."""
    axes = len(taps)
    index: list[Array] = [sample.reshape(-1, *[1] * axes)]
    for axis, tap in enumerate(taps):
        index.append(tap.reshape(len(tap), *[1] * axis, -1, *[1] * (axes - axis - 1)))
    # advanced indices around a slice: [n, *kernel, channels] -> [n, channels, *kernel]
    chooser: Any = (index[0], slice(None), *index[1:])
    return np.moveaxis(array[chooser], -1, 1)
