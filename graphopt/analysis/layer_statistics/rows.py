"""Samples the rows that a weight is multiplied with: every linear layer as y = W x on vectors x.

Rows are drawn by a seeded generator that sees shapes only, so that the dense and the compressed model, whose
activations have the same shapes, give the same rows.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from graphopt.graph import Node

    Array = NDArray[Any]


@dataclass(frozen=True, slots=True)
class Form:
    """How a layer's weight is read as matrices W, [rows, columns], one per group, and its input as rows.

    Attributes:
        op: Conv, Gemm or MatMul.
        index: Which input of the node is the weight.
        transposed: The weight is stored as [columns, rows].
        groups: Number of groups of a convolution; 1 for everything else.
        kernel, strides, dilations, begins: Of a convolution, one number per spatial axis.
        same: ``SAME_UPPER``, ``SAME_LOWER`` or "" where the padding is explicit.
        ends: Padding behind, one number per spatial axis.
        flipped: A Gemm that reads its input transposed.
    """

    op: str
    index: int = 1
    transposed: bool = False
    groups: int = 1
    kernel: tuple[int, ...] = ()
    strides: tuple[int, ...] = ()
    dilations: tuple[int, ...] = ()
    begins: tuple[int, ...] = ()
    ends: tuple[int, ...] = ()
    same: str = ""
    flipped: bool = False

    def matrices(self, weight: Array) -> list[NDArray[np.float64]]:
        """Return W of every group as float64."""
        if self.op == "Conv":
            return [part.reshape(len(part), -1).astype(np.float64) for part in np.split(weight, self.groups)]
        return [(weight.T if self.transposed else weight).astype(np.float64)]

    def weight(self, matrices: Sequence[NDArray[np.float64]], like: Array) -> Array:
        """Return the matrices of all groups as a weight, in the layout and type of ``like``."""
        if self.op == "Conv":
            return np.concatenate(matrices).reshape(like.shape).astype(like.dtype)
        return np.ascontiguousarray(matrices[0].T if self.transposed else matrices[0]).astype(like.dtype)

    def sample(self, inputs: Sequence[Array], count: int, draw: np.random.Generator) -> list[list[Array]]:
        """Return rows of each group, [at most count, columns], for each of several arrays of the same shape.

        Args:
            inputs: What the layer reads, in the models that are compared.
            count: Rows drawn from each array.
            draw: Decides which.
        """
        if self.op == "Conv":
            return self._patches(inputs, count, draw)
        tables = [self._table(array) for array in inputs]
        chosen = draw.permutation(len(tables[0]))[:count]
        return [[table[chosen]] for table in tables]

    def _table(self, array: Array) -> Array:
        if self.op == "Gemm":
            return array.T if self.flipped else array
        if self.index == 0:
            array = np.moveaxis(array, -2, -1) if array.ndim > 1 else array
        return array.reshape(-1, array.shape[-1])

    def _patches(self, inputs: Sequence[Array], count: int, draw: np.random.Generator) -> list[list[Array]]:
        spatial = inputs[0].shape[2:]
        begins, ends = self._padding(spatial)
        reach = [d * (k - 1) + 1 for k, d in zip(self.kernel, self.dilations, strict=True)]
        sizes = [
            (size + b + e - r) // s + 1
            for size, b, e, r, s in zip(spatial, begins, ends, reach, self.strides, strict=True)
        ]
        total = len(inputs[0]) * int(np.prod(sizes))
        chosen = draw.permutation(total)[:count] if total < 1 << 20 else draw.integers(0, total, count)
        sample, *places = np.unravel_index(chosen, (len(inputs[0]), *sizes))
        # starts [n], then one index per kernel tap; out of bounds is padding
        found = []
        for array in inputs:
            padded = np.pad(array, [(0, 0), (0, 0), *zip(begins, ends, strict=True)])
            index: list[Array] = [sample.reshape(-1, *[1] * len(spatial))]
            for axis, (place, k, d, s) in enumerate(
                zip(places, self.kernel, self.dilations, self.strides, strict=True)
            ):
                taps = (place * s)[:, None] + np.arange(k) * d
                index.append(taps.reshape(len(place), *[1] * axis, k, *[1] * (len(spatial) - axis - 1)))
            # advanced indices around a slice: [n, *kernel, channels] -> [n, channels, *kernel]
            chooser: Any = (index[0], slice(None), *index[1:])
            patches = np.moveaxis(padded[chooser], -1, 1)
            parts = np.split(patches, self.groups, axis=1)
            found.append([part.reshape(len(part), -1) for part in parts])
        return found

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


def form_of(node: Node, index: int, weight: Array) -> Form | str:
    """Return how a layer is read as y = W x, or why it cannot be.

    Args:
        node: Conv, ConvTranspose, Gemm or MatMul.
        index: Which input is the weight.
        weight: Its values.
    """
    if node.op == "Conv":
        axes = weight.ndim - 2
        pads = list(node.attrs.get("pads", [0] * (2 * axes)))
        automatic = str(node.attrs.get("auto_pad", "NOTSET"))
        if automatic == "VALID":
            pads = [0] * (2 * axes)
        return Form(
            "Conv",
            groups=int(node.attrs.get("group", 1)),
            kernel=tuple(weight.shape[2:]),
            strides=tuple(node.attrs.get("strides", [1] * axes)),
            dilations=tuple(node.attrs.get("dilations", [1] * axes)),
            begins=tuple(pads[:axes]),
            ends=tuple(pads[axes:]),
            same=automatic if automatic.startswith("SAME") else "",
        )
    if weight.ndim != 2:
        return f"its weight has rank {weight.ndim}"
    if node.op == "Gemm":
        return Form("Gemm", transposed=not node.attrs.get("transB", 0), flipped=bool(node.attrs.get("transA", 0)))
    if node.op == "MatMul":
        return Form("MatMul", index=index, transposed=index == 1)
    return f"{node.op} spreads each input over several outputs, which this solver does not cover"
