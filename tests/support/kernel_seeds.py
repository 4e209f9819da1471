"""Packed weights of every operator, sound ones: what fuzzers then damage."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from graphopt.solve.pack_low_bit import LowBitMatrix, pack_low_bit
from graphopt.solve.pack_sparse import pack_sparse
from graphopt.solve.pack_sparse_conv import pack_sparse_conv
from graphopt.solve.pack_sparse_int8 import pack_sparse_int8
from int8_calls import block_sparse
from kernel_calls import sparse
from kernel_cases import sparse_tensor, values

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


def sparse_matmul() -> list[bytes]:
    shapes = [(1, 1, 1.0, 1, 128, 512), (60, 40, 0.3, 1, 16, 12), (130, 33, 0.1, 1, 128, 512), (20, 9, 0.0, 1, 7, 4)]
    blocks = [(50, 37, 0.3, 4, 32, 16), (33, 24, 0.5, 8, 128, 512), (40, 50, 0.2, 16, 16, 32)]
    return [
        pack_sparse(sparse(k, n, density), block_rows=rows, k_block=k_block, panel_rows=panel_rows).tobytes()
        for k, n, density, rows, k_block, panel_rows in shapes + blocks
    ]


def low_bit_matmul() -> list[bytes]:
    made = []
    for bits, block, zeros, book in (
        (8, 16, "bytes", ()),
        (4, 32, "offsets", ()),
        (4, 64, "constant", (0.5, -2.0, 3.25)),
        (3, 32, "constant", (0.0, 1.0, 200.0)),
        (2, 64, "bytes", ()),
        (1, 32, "constant", ()),
    ):
        k, n, random = 70, 67 if bits > 1 else 451, np.random.default_rng(bits)  # one bit: enough to be looked up
        blocks = -(-k // block)
        kinds: dict[str, Any] = {
            "constant": 1,
            "bytes": random.integers(0, 1 << bits, (blocks, n)).astype(np.uint8),
            "offsets": values((blocks, n)),
        }
        codes = random.integers(0, len(book) or 1 << bits, (k, n)).astype(np.uint8)
        matrix = LowBitMatrix(codes, values((blocks, n)), bits, block, kinds[zeros], book)
        made.append(pack_low_bit(matrix).tobytes())
    return made


def sparse_conv() -> list[bytes]:
    weights = [
        ((9, 5, 3, 3), 1, 1),
        ((10, 4, 1, 1), 1, 4),
        ((12, 3, 3, 2), 2, 8),
        ((6, 2, 5), 3, 1),
        ((1, 1, 1, 1), 1, 1),
    ]
    made = [pack_sparse_conv(sparse_tensor(shape, 0.4), group=group, block=block) for shape, group, block in weights]
    made.append(pack_sparse_conv(sparse_tensor((20, 6, 3, 3), 0.3), k_block=10, panel_rows=7))
    return [each.tobytes() for each in made]


def sparse_int8() -> list[bytes]:
    made = []
    for k, n, unit, density, k_block, panel in ((45, 19, 1, 0.4, 16, 16), (54, 21, 4, 0.4, 0, 0), (1, 1, 1, 1.0, 0, 0)):
        weight, scales = block_sparse(k, n, unit, density), np.linspace(0.001, 0.01, n, dtype=np.float32)
        fixes = np.arange(n, dtype=np.int32) if unit == 4 else None
        made.append(pack_sparse_int8(weight, scales, fixes, unit=unit, k_block=k_block, panel=panel).tobytes())
    return made


SOUND: dict[str, Callable[[], list[bytes]]] = {
    "sparse_matmul": sparse_matmul,
    "low_bit_matmul": low_bit_matmul,
    "sparse_conv": sparse_conv,
    "sparse_int8": sparse_int8,
}
"""Packed weights of each operator, which are then damaged."""


def write_seeds(folder: Path, operator: str) -> list[Path]:
    """Write the packed weights of an operator, a file each."""
    folder.mkdir()
    made = []
    for i, data in enumerate(SOUND[operator]()):
        made.append(folder / f"seed{i}")
        made[-1].write_bytes(data)
    return made
