"""The rows of figures that kernels are held to: which kernel, over what, on which sizes, how much faster at least."""

from __future__ import annotations

from dataclasses import dataclass

from graphopt.tuning.stacks import ConvSize, MatmulSize, Size

DENSE = ""
"""The dense float32 operator of ONNX Runtime, as something to compare with."""

WORST_SHARE = 0.75
"""No single size may be below this share of its row's floor."""

SMALL = MatmulSize(16, 768, 3072)
BATCHES = tuple(MatmulSize(*size) for size in ((64, 768, 3072), (256, 768, 3072), (197, 3072, 768), (128, 384, 1536)))
SQUARE, WIDE = MatmulSize(1, 4096, 4096), MatmulSize(1, 4096, 11008)
SQUARE_BATCHES = tuple(MatmulSize(m, 4096, 4096) for m in (4, 16, 64))
WINDOWS = tuple(ConvSize(3, channels, side) for channels, side in ((64, 56), (128, 28), (256, 14), (512, 7)))
POINTS = tuple(
    ConvSize(1, channels, side) for channels, side in ((64, 56), (128, 28), (256, 28), (256, 14), (512, 14), (512, 7))
)
_POINT_FLOORS = {56: 3.0, 28: 3.5, 14: 2.5, 7: 2.0}


@dataclass(frozen=True, slots=True)
class Row:
    """One row of the table.

    Attributes:
        title: What it shows.
        kernel: Name in cost tables.
        level: Share of zeros or bits.
        sizes: Over which the geometric mean is taken.
        floors: Least speedup of each size; the row's floor is their geometric mean.
        after: What is hoped for.
        over: What it is compared with: a kernel of cost tables, or the dense operator.
        over_level: Its level.
    """

    title: str
    kernel: str
    level: float
    sizes: tuple[Size, ...]
    floors: tuple[float, ...]
    after: float
    over: str = DENSE
    over_level: float = 8


def _rows() -> list[Row]:
    rows = []

    def add(
        title: str,
        kernel: str,
        level: float,
        sizes: tuple[Size, ...],
        floor: float | tuple[float, ...],
        after: float,
        over: str = DENSE,
        over_level: float = 8,
    ) -> None:
        floors = floor if isinstance(floor, tuple) else (floor,) * len(sizes)
        rows.append(Row(title, kernel, level, sizes, floors, after, over, over_level))

    for level, floor, after in ((0.8, 2.3, 3), (0.9, 3.5, 5.5), (0.95, 5, 9)):
        add("unstructured GEMM, M>=64", "sparse-matmul", level, BATCHES, floor, after)
    for level, floor, after in ((0.7, 2.3, 2.9), (0.8, 3.5, 4.5), (0.9, 6.5, 8.5), (0.95, 10, 15)):
        for block in ("4x1", "8x1"):
            add(f"{block} GEMM", f"sparse-matmul-{block}", level, (SMALL, *BATCHES), floor, after)
    for chained in ("", "-chained"):
        what = f"3x3 conv{chained.replace('-', ', ')}"
        for level, floor, after in ((0.8, 1.6, 2.3), (0.9, 2.7, 4), (0.95, 4.7, 7)):
            add(f"{what} unstructured", f"sparse-conv{chained}", level, WINDOWS, floor, after)
        add(f"{what} 4x1", f"sparse-conv-4x1{chained}", 0.9, WINDOWS, 5.5, 7.5)
    floors = tuple(_POINT_FLOORS[size.side] for size in POINTS)
    add("1x1 conv, chained unstructured", "sparse-conv-1x1-chained", 0.9, POINTS, floors, 5)
    for level, floor, after in ((0.8, 3, 5), (0.9, 4.5, 9)):
        add("unstructured GEMV", "sparse-matmul", level, (SQUARE, WIDE), floor, after)
    add("16x1 GEMV", "sparse-matmul-16x1", 0.9, (SQUARE, WIDE), 10, 10)
    add("4-bit M=1", "low-bit-matmul", 4, (SQUARE, WIDE), 1.3, 1.5, "matmul-nbits", 4)
    add("4-bit M>=4", "low-bit-matmul", 4, SQUARE_BATCHES, 2, 3, "matmul-nbits", 4)
    add("2-bit M=1", "low-bit-matmul", 2, (SQUARE, WIDE), 1.5, 3, "matmul-nbits", 2)
    add("ternary M=1", "low-bit-matmul-ternary", 2, (SQUARE, WIDE), 1.5, 3, "matmul-nbits", 2)
    add("1-bit M=1", "low-bit-matmul-128", 1, (SQUARE, WIDE), 5, 6, "matmul-nbits", 4)
    add("int8 1x4 GEMM", "sparse-int8-matmul-1x4", 0.9, BATCHES, 7, 12)
    add("int8 1x4 GEMM", "sparse-int8-matmul-1x4", 0.9, BATCHES, 2.4, 4, "dense-int8-matmul", 8)
    return rows


ROWS = _rows()

ALSO: tuple[tuple[str, float, Size], ...] = (
    *(("sparse-matmul", level, SMALL) for level in (0.8, 0.9, 0.95)),
    *(("sparse-matmul", 0.7, size) for size in BATCHES),
    *(("low-bit-matmul", bits, size) for bits in (8, 3, 2, 1) for size in (SQUARE, *SQUARE_BATCHES)),
    *(
        (f"{name}-128", bits, size)
        for name in ("low-bit-matmul", "matmul-nbits")
        for bits in (2, 4)
        for size in (SQUARE,)
    ),
    *(("sparse-int8-matmul-4x4", 0.9, size) for size in BATCHES),
    *(("sparse-int8-matmul-1x4", level, size) for level in (0.8, 0.95) for size in BATCHES),
    *((f"sparse-int8-conv-{block}", 0.9, size) for block in ("1x4", "4x4") for size in WINDOWS),
    *(("dense-int8-conv", 8, size) for size in WINDOWS),
    *(("sparse-conv-1x1", 0.9, size) for size in POINTS),
    *(("sparse-conv-1x1-4x1-chained", 0.9, size) for size in POINTS),
)
"""Measured beside the rows, without a figure to reach."""
