"""How each alternative of a cost table stores the weight of a layer and runs it.

The matrices are random: Gaussian, entries or blocks set to zero at random, so that the share of zeros is the level on
average. Their values do not matter for the time, their pattern does.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from graphopt.solve.pack_low_bit import LowBitMatrix, pack_low_bit
from graphopt.solve.pack_sparse import pack_sparse
from graphopt.solve.pack_sparse_conv import pack_sparse_conv
from graphopt.solve.pack_sparse_int8 import pack_sparse_int8, pack_sparse_int8_conv
from graphopt.tuning.stacks import ConvSize, MatmulSize, Size, Stack

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Array = NDArray[Any]

DOMAIN = "ai.graphopt"
CONTRIBUTED = "com.microsoft"
NBITS_BLOCK = 32
"""Inputs that share a scale in low-bit alternatives that do not name another number."""


@dataclass(frozen=True, slots=True)
class Weights:
    """The weight of one layer.

    Attributes:
        dense: What it is in float32, of the size's ``weight_shape``.
        stored: What the operator reads instead.
    """

    dense: NDArray[np.float32]
    stored: tuple[Array, ...]


class Alternative(Protocol):
    """One way to run a layer."""

    @property
    def kernel(self) -> str:
        """Its name in cost tables; empty for the dense operator itself."""

    @property
    def exact(self) -> bool:
        """Whether it computes in float32; otherwise activations are rounded to 8 bits."""

    def make(self, rng: np.random.Generator, size: Size, level: float) -> Weights:
        """Return a random weight of this level."""

    def write(self, stack: Stack, x: str, weights: Weights, size: Size) -> str:
        """Add the layer to a stack and return the name of its output."""

    def open(self, stack: Stack, x: str, size: Size) -> str:
        """Add what stands once before all layers and return what they read."""

    def close(self, stack: Stack, y: str, size: Size) -> str:
        """Add what stands once behind all layers and return the result."""


class _Plain:
    """A layer that reads and writes float32 as the dense operator does."""

    @property
    def exact(self) -> bool:
        return True

    def open(self, stack: Stack, x: str, size: Size) -> str:
        return x

    def close(self, stack: Stack, y: str, size: Size) -> str:
        return y


@dataclass(frozen=True)
class _Dense(_Plain):
    """What everything is compared with."""

    kernel: str = ""

    def make(self, rng: np.random.Generator, size: Size, level: float) -> Weights:
        dense = gaussian(rng, size, level)
        return Weights(dense, (dense,))

    def write(self, stack: Stack, x: str, weights: Weights, size: Size) -> str:
        if isinstance(size, MatmulSize):
            return stack.node("MatMul", [x, stack.constant(weights.dense)])
        return stack.node("Relu", [stack.node("Conv", [x, stack.constant(weights.dense)], **size.attributes)])


@dataclass(frozen=True)
class _SparseMatmul(_Plain):
    """SparseMatMul on entries, or on blocks of adjacent outputs."""

    kernel: str
    block: int = 1

    def make(self, rng: np.random.Generator, size: Size, level: float) -> Weights:
        dense = sparse(rng, size, level, outputs=self.block)
        return Weights(dense, (pack_sparse(dense, block_rows=self.block),))

    def write(self, stack: Stack, x: str, weights: Weights, size: Size) -> str:
        assert isinstance(size, MatmulSize)
        inputs = [x, stack.constant(weights.stored[0])]
        return stack.node("SparseMatMul", inputs, DOMAIN, K=size.k, N=size.n)


@dataclass(frozen=True)
class _DenseInt8Matmul(_Plain):
    """ONNX Runtime's product of 8-bit integers, the activations rounded in every run."""

    kernel: str = "dense-int8-matmul"
    exact: bool = False

    def make(self, rng: np.random.Generator, size: Size, level: float) -> Weights:
        values = gaussian(rng, size, 0)
        scale = (np.abs(values).max(axis=0) / (2 ** (level - 1) - 1)).astype(np.float32)
        codes = np.rint(values / scale).astype(np.int8)
        return Weights(codes * scale, (codes, scale))

    def write(self, stack: Stack, x: str, weights: Weights, size: Size) -> str:
        inputs = [x, *map(stack.constant, weights.stored)]
        return stack.node("DynamicQuantizeMatMul", inputs, CONTRIBUTED)


@dataclass(frozen=True)
class _MatmulNbits(_Plain):
    """ONNX Runtime's product with few-bit weights in blocks, the activations rounded to 8 bits in every run."""

    kernel: str = "matmul-nbits"
    exact: bool = False
    block: int = NBITS_BLOCK

    def make(self, rng: np.random.Generator, size: Size, level: float) -> Weights:
        bits = int(level)
        codes, scales, dense = few_bits(rng, size, bits, self.block)
        n, blocks, _ = codes.shape
        grouped = codes.reshape(n, blocks, -1, 8 // bits)
        packed = (grouped << (np.arange(8 // bits) * bits).astype(np.uint8)).sum(axis=-1).astype(np.uint8)
        return Weights(dense, (packed, scales, np.array([bits])))

    def write(self, stack: Stack, x: str, weights: Weights, size: Size) -> str:
        assert isinstance(size, MatmulSize)
        packed, scales, bits = weights.stored
        return stack.node(
            "MatMulNBits",
            [x, stack.constant(packed), stack.constant(scales)],
            CONTRIBUTED,
            K=size.k,
            N=size.n,
            bits=int(bits[0]),
            block_size=self.block,
            accuracy_level=4,
        )


@dataclass(frozen=True)
class _LowBitMatmul(_Plain):
    """LowBitMatMul on blocks as MatMulNBits has them."""

    kernel: str = "low-bit-matmul"
    activations: str = "int8"
    ternary: bool = False
    block: int = NBITS_BLOCK

    @property
    def exact(self) -> bool:
        return self.activations == "float"

    def make(self, rng: np.random.Generator, size: Size, level: float) -> Weights:
        bits = int(level)
        if self.ternary:
            assert isinstance(size, MatmulSize)
            codes = rng.integers(0, 3, size.weight_shape, dtype=np.uint8)
            scales = rng.uniform(0.5, 1.5, (-(-size.k // self.block), size.n)) * np.sqrt(1.5 / size.k)
            matrix = LowBitMatrix(codes, scales.astype(np.float32), bits, self.block, 1)
        else:
            grouped, scales, _ = few_bits(rng, size, bits, self.block)
            codes = np.ascontiguousarray(grouped.reshape(grouped.shape[0], -1)[:, : size.weight_shape[0]].T)
            zero = max(2 ** (bits - 1), 1)
            matrix = LowBitMatrix(codes, np.ascontiguousarray(scales.T), bits, self.block, zero)
        return Weights(matrix.restored(), (pack_low_bit(matrix), np.array([bits])))

    def write(self, stack: Stack, x: str, weights: Weights, size: Size) -> str:
        assert isinstance(size, MatmulSize)
        return stack.node(
            "LowBitMatMul",
            [x, stack.constant(weights.stored[0])],
            DOMAIN,
            K=size.k,
            N=size.n,
            bits=int(weights.stored[1][0]),
            block_size=self.block,
            activations=self.activations,
        )


@dataclass(frozen=True)
class _SparseInt8Matmul(_Plain):
    """SparseInt8MatMul on blocks of four inputs, the activations rounded in every run."""

    kernel: str
    unit: int
    exact: bool = False

    def make(self, rng: np.random.Generator, size: Size, level: float) -> Weights:
        values = sparse(rng, size, level, outputs=self.unit, inputs=4)
        scales = (np.maximum(np.abs(values).max(axis=0), 1e-6) / 127).astype(np.float32)
        codes = np.rint(values / scales).astype(np.int8)
        return Weights(codes * scales, (pack_sparse_int8(codes, scales, unit=self.unit),))

    def write(self, stack: Stack, x: str, weights: Weights, size: Size) -> str:
        assert isinstance(size, MatmulSize)
        inputs = [x, stack.constant(weights.stored[0])]
        return stack.node("SparseInt8MatMul", inputs, DOMAIN, K=size.k, N=size.n)


@dataclass(frozen=True)
class _SparseConv:
    """SparseConv on entries or on blocks of adjacent output channels, between NCHW or between padded planes."""

    kernel: str
    block: int = 1
    chained: bool = False
    exact: bool = True

    def make(self, rng: np.random.Generator, size: Size, level: float) -> Weights:
        dense = sparse(rng, size, level, outputs=self.block)
        return Weights(dense, (pack_sparse_conv(dense, block=self.block),))

    def open(self, stack: Stack, x: str, size: Size) -> str:
        return stack.node("ToPadded", [x], DOMAIN) if self.chained else x

    def write(self, stack: Stack, x: str, weights: Weights, size: Size) -> str:
        assert isinstance(size, ConvSize)
        layout = "padded" if self.chained else "nchw"
        return stack.node(
            "SparseConv",
            [x, stack.constant(weights.stored[0])],
            DOMAIN,
            **size.attributes,
            out_channels=size.outputs,
            layout_in=layout,
            layout_out=layout,
            activation="relu",
            **({"spatial": [size.side] * 2} if self.chained else {}),
        )

    def close(self, stack: Stack, y: str, size: Size) -> str:
        assert isinstance(size, ConvSize)
        return stack.node("FromPadded", [y], DOMAIN, spatial=[size.side] * 2) if self.chained else y


@dataclass(frozen=True)
class _DenseInt8Conv:
    """ONNX Runtime's convolution of 8-bit integers, in a chain that stays in 8 bits."""

    kernel: str = "dense-int8-conv"
    exact: bool = False
    scale: float = 0.02

    def make(self, rng: np.random.Generator, size: Size, level: float) -> Weights:
        values = gaussian(rng, size, 0)
        highest = np.abs(values).max(axis=(1, 2, 3), keepdims=True)
        scale = (highest / (2 ** (level - 1) - 1)).astype(np.float32)
        codes = np.rint(values / scale).astype(np.int8)
        return Weights(codes * scale, (codes, scale.reshape(-1)))

    def open(self, stack: Stack, x: str, size: Size) -> str:
        return stack.node("QuantizeLinear", [x, *self._grid(stack)])

    def write(self, stack: Stack, x: str, weights: Weights, size: Size) -> str:
        assert isinstance(size, ConvSize)
        codes, scale = map(stack.constant, weights.stored)
        grid, zeros = self._grid(stack), stack.constant(np.zeros(size.outputs, np.int8))
        return stack.node("QLinearConv", [x, *grid, codes, scale, zeros, *grid], **size.attributes)

    def close(self, stack: Stack, y: str, size: Size) -> str:
        return stack.node("DequantizeLinear", [y, *self._grid(stack)])

    def _grid(self, stack: Stack) -> list[str]:
        return [stack.constant(np.array(self.scale, np.float32)), stack.constant(np.array(0, np.uint8))]


@dataclass(frozen=True)
class _SparseInt8Conv(_DenseInt8Conv):
    """SparseInt8Conv on blocks of four input channels, in a chain that stays in 8 bits."""

    unit: int = 1

    def make(self, rng: np.random.Generator, size: Size, level: float) -> Weights:
        values = sparse(rng, size, level, outputs=self.unit, inputs=4)
        highest = np.maximum(np.abs(values).max(axis=(1, 2, 3), keepdims=True), 1e-6)
        scale = (highest / 127).astype(np.float32)
        codes = np.rint(values / scale).astype(np.int8)
        packed = pack_sparse_int8_conv(codes, scale.reshape(-1), unit=self.unit, channels_last=True)
        return Weights(codes * scale, (packed,))

    def write(self, stack: Stack, x: str, weights: Weights, size: Size) -> str:
        assert isinstance(size, ConvSize)
        return stack.node(
            "SparseInt8Conv",
            [x, stack.constant(weights.stored[0].view(np.int8))],
            DOMAIN,
            **size.attributes,
            N=size.outputs,
            channels_last=1,
            output="uint8",
            x_scale=self.scale,
            y_scale=self.scale,
            activation="relu",
        )


def gaussian(rng: np.random.Generator, size: Size, sparsity: float) -> NDArray[np.float32]:
    """Return a weight that keeps the second moment of what passes through it."""
    gain = 1.0 if isinstance(size, MatmulSize) else 2.0  # a Relu behind it halves the moment
    deviation = np.sqrt(gain / (size.fan_in * max(1 - sparsity, 1e-3)))
    return rng.standard_normal(size.weight_shape, dtype=np.float32) * np.float32(deviation)


def sparse(
    rng: np.random.Generator, size: Size, sparsity: float, *, outputs: int = 1, inputs: int = 1
) -> NDArray[np.float32]:
    """Return a weight of which random blocks of adjacent outputs and inputs are zero."""
    dense = gaussian(rng, size, sparsity)
    steps = (inputs, outputs) if isinstance(size, MatmulSize) else (outputs, inputs, 1, 1)
    coarse = [-(-extent // step) for extent, step in zip(dense.shape, steps, strict=True)]
    drop = rng.random(coarse, np.float32) < sparsity
    for axis, step in enumerate(steps):
        drop = np.repeat(drop, step, axis=axis) if step > 1 else drop
    dense[drop[tuple(map(slice, dense.shape))]] = 0
    return dense


def few_bits(
    rng: np.random.Generator, size: Size, bits: int, block: int
) -> tuple[NDArray[np.uint8], NDArray[np.float32], NDArray[np.float32]]:
    """Return a matrix of few-bit integers in blocks: codes [n, blocks, block], scales [n, blocks], and what they mean.

    The value of a code is (code - 2^(bits - 1)) * scale.
    """
    assert isinstance(size, MatmulSize)
    shape = (size.n, -(-size.k // block), block)
    codes = rng.integers(0, 2**bits, shape, dtype=np.uint8)
    width = np.sqrt(12 / size.k) / 2**bits
    scales = (width * rng.uniform(0.5, 1.5, shape[:2])).astype(np.float32)
    values = (codes.astype(np.float32) - 2 ** (bits - 1)) * scales[:, :, None]
    return codes, scales, np.ascontiguousarray(values.reshape(size.n, -1)[:, : size.k].T)


DENSE = _Dense()
MATMULS: tuple[Alternative, ...] = (
    _SparseMatmul("sparse-matmul"),
    _SparseMatmul("sparse-matmul-4x1", 4),
    _SparseMatmul("sparse-matmul-8x1", 8),
    _SparseMatmul("sparse-matmul-16x1", 16),
    _DenseInt8Matmul(),
    _MatmulNbits(),
    _MatmulNbits("matmul-nbits-128", block=128),
    _LowBitMatmul(),
    _LowBitMatmul("low-bit-matmul-128", block=128),
    _LowBitMatmul("low-bit-matmul-ternary", ternary=True),
    _LowBitMatmul("low-bit-matmul-float", activations="float"),
    _SparseInt8Matmul("sparse-int8-matmul-1x4", 1),
    _SparseInt8Matmul("sparse-int8-matmul-4x4", 4),
)
"""Alternatives to a dense matrix product."""

CONVOLUTIONS: tuple[Alternative, ...] = (
    _SparseConv("sparse-conv"),
    _SparseConv("sparse-conv-4x1", 4),
    _SparseConv("sparse-conv-chained", chained=True),
    _SparseConv("sparse-conv-4x1-chained", 4, chained=True),
    _DenseInt8Conv(),
    _SparseInt8Conv("sparse-int8-conv-1x4"),
    _SparseInt8Conv("sparse-int8-conv-4x4", unit=4),
)
"""Alternatives to a dense convolution with a window."""

POINTWISE: tuple[Alternative, ...] = (
    _SparseConv("sparse-conv-1x1"),
    _SparseConv("sparse-conv-1x1-4x1", 4),
    _SparseConv("sparse-conv-1x1-chained", chained=True),
    _SparseConv("sparse-conv-1x1-4x1-chained", 4, chained=True),
)
"""Alternatives to a dense convolution without one."""

ALTERNATIVES = {each.kernel: each for each in (*MATMULS, *CONVOLUTIONS, *POINTWISE)}
"""All of them by name."""
