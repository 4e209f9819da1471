"""The packed form in which the SparseMatMul kernel reads a sparse matrix: one block of bytes, used in place.

The layout is documented in ``kernels/sparse_matmul/packed.h`` and ``contract.h``; the kernel checks every field of it.
There are two kinds of forms. The unstructured one stores single weights, five bytes each. The block forms store blocks
of 4, 8 or 16 consecutive outputs that share an input, with two bytes beside their values.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np

from graphopt.errors import KernelError
from graphopt.solve.blob import BlobFormat
from graphopt.solve.sparse_sections import (
    PART,
    ROW,
    STRIP,
    STRIP_INDEX,
    RunForm,
    Sections,
    blocks_with_entries,
    entries_of_runs,
    pack_runs,
    pack_strips,
    unpack_strips,
)

if TYPE_CHECKING:
    from numpy.typing import NDArray

# k, n, entries, runs, rows listed, five offsets; k_block, panel_rows, block_rows, nothing
_FORMAT: Final = BlobFormat(b"GOSPMM\r\n", 2, "10Q4I", "matrix")
_RUNS: Final = RunForm(np.dtype([("entries", "<u2"), ("rows", "<u2")]), np.dtype("u1"), every_row=False)
_HEADERS_BYTES: Final = 1024  # the header and what aligns the sections, at most

BLOCK_ROWS: Final = (1, 4, 8, 16)
"""Heights of the blocks of all forms: consecutive outputs that share an input; 1 is the unstructured form."""
DEFAULT_K_BLOCK: Final = 128
DEFAULT_PANEL_ROWS: Final = 512
_STRIP_K_BLOCK: Final = 65536
_STRIP_PANEL_ROWS: Final = 256
_TALLEST: Final = BLOCK_ROWS[-1]


@dataclass(frozen=True, slots=True)
class SparseForm:
    """What one form makes of a matrix.

    Attributes:
        block_rows: One of `BLOCK_ROWS`.
        stored: Weights that are stored, the zeros of blocks among them.
        bytes: About how many bytes the packed matrix takes, a little too high.
    """

    block_rows: int
    stored: int
    bytes: int


def sparse_forms(weight: NDArray[np.float32]) -> tuple[SparseForm, ...]:
    """Return what the forms make of a matrix, the one that takes the fewest bytes first; of equals the taller.

    Args:
        weight: float32 of shape [K, N].
    """
    forms = (_form(weight, block_rows) for block_rows in BLOCK_ROWS)
    return tuple(sorted(forms, key=lambda form: (form.bytes, -form.block_rows)))


def pack_sparse(
    weight: NDArray[np.float32],
    *,
    block_rows: int | None = None,
    k_block: int | None = None,
    panel_rows: int | None = None,
) -> NDArray[np.uint8]:
    """Pack a matrix for SparseMatMul. Zeros of either sign are left out; NaN and infinities are entries.

    Args:
        weight: float32 of shape [K, N], both at least 1.
        block_rows: Height of the blocks, one of `BLOCK_ROWS`; by default that of the form that takes the fewest bytes.
        k_block: Rows of a block, 1 to 256 (128 by default): the kernel keeps that many rows of the transposed
            activations in L1. For the block forms 1 to 65536 (all of them by default).
        panel_rows: Columns of a block, 1 to 4096 (up to 512 by default): the kernel keeps their sums in L2. For the
            block forms a multiple of 16 (up to 256 by default), the columns of one task.

    Returns:
        uint8 of shape [bytes], the same for the same arguments everywhere.

    Raises:
        KernelError: The matrix is not float32 of rank 2 with at least one element, or a size is out of range.
    """
    if weight.dtype != np.float32 or weight.ndim != 2 or weight.size == 0:
        what = f"a weight of type {weight.dtype} and shape {list(weight.shape)} cannot be packed"
        raise KernelError(what, must="It must be float32 of shape [K, N] and not empty.")
    height = sparse_forms(weight)[0].block_rows if block_rows is None else block_rows
    if height not in BLOCK_ROWS:
        what = f"blocks of {height} rows cannot be packed"
        raise KernelError(what, must=f"block_rows must be one of {', '.join(map(str, BLOCK_ROWS))}.")
    deep, wide = (DEFAULT_K_BLOCK, DEFAULT_PANEL_ROWS) if height == 1 else (_STRIP_K_BLOCK, _STRIP_PANEL_ROWS)
    wide = _even(weight.shape[1], wide)
    deep, wide = deep if k_block is None else k_block, wide if panel_rows is None else panel_rows
    most, step = (256, 1) if height == 1 else (_STRIP_K_BLOCK, _TALLEST)
    if not 1 <= deep <= most or not 1 <= wide <= 4096 or wide % step:
        what = f"blocks of {deep} x {wide} cannot be packed"
        multiple = "" if step == 1 else f" and a multiple of {step}"
        raise KernelError(what, must=f"k_block must be 1 to {most} and panel_rows 1 to 4096{multiple}.")
    if height > 1:
        sections = pack_strips(weight, height, deep)
    else:
        panels = (weight[:, at : at + wide].T[:, :, None] for at in range(0, weight.shape[1], wide))
        sections = pack_runs(panels, deep, _RUNS)
    counts = (len(sections.indices), len(sections.runs), len(sections.rows))
    return _FORMAT.write(sections.arrays(), (*weight.shape, *counts), (deep, wide, height, 0))


def unpack_sparse(packed: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Return the dense [K, N] matrix of packed bytes.

    Raises:
        KernelError: The bytes are not those of a packed matrix of this version.
    """
    data = packed.tobytes()
    k, n, entries, runs, listed, *offsets, k_block, panel_rows, height, _ = _FORMAT.read(packed)
    if height not in BLOCK_ROWS:
        raise _FORMAT.unreadable(packed)
    k_blocks, across = -(-k // k_block), -(-n // (panel_rows if height == 1 else height))
    sections = Sections(
        np.frombuffer(data, PART if height == 1 else STRIP, across * k_blocks + 1, offsets[0]),
        np.frombuffer(data, _RUNS.run, runs, offsets[1]),
        np.frombuffer(data, ROW, listed, offsets[2]),
        np.frombuffer(data, _RUNS.index if height == 1 else STRIP_INDEX, entries, offsets[3]),
        np.frombuffer(data, "<f4", entries * height, offsets[4]),
    )
    if height > 1:
        return unpack_strips(sections, (k, n), height, k_block)
    found = entries_of_runs(sections, interleaved=True)
    panel, part = np.divmod(found.part, k_blocks)
    dense = np.zeros((k, n), np.float32)
    dense[part * k_block + found.column, panel * panel_rows + found.row] = sections.values[found.value]
    return dense


def packed_form(packed: NDArray[np.uint8]) -> SparseForm:
    """Return the form of packed bytes, by their header alone.

    Raises:
        KernelError: The bytes are not those of a packed matrix of this version.
    """
    _, _, entries, *_, height, _ = _FORMAT.read(packed)
    return SparseForm(height, entries * height, len(packed))


def _even(n: int, most: int) -> int:
    """The columns of a panel, at most so many, with which all panels have about equally many."""
    panels = -(-n // most)
    return -(-n // (panels * _TALLEST)) * _TALLEST


def _form(weight: NDArray[np.float32], block_rows: int) -> SparseForm:
    k, n = weight.shape
    if block_rows > 1:
        entries = int(np.count_nonzero(blocks_with_entries(weight, block_rows)))
        starts = -(-n // block_rows) * -(-k // _STRIP_K_BLOCK)
        stored, beside = entries * block_rows, entries * STRIP_INDEX.itemsize + starts * STRIP.itemsize
    else:
        stored = int(np.count_nonzero(weight))
        k_blocks = -(-k // DEFAULT_K_BLOCK)
        pairs = min(stored, n * k_blocks)  # columns of w within a K-block
        blocks = k_blocks * -(-n // DEFAULT_PANEL_ROWS)
        runs = min(blocks * 48, pairs)
        beside = stored + pairs * 2 + runs * _RUNS.run.itemsize + blocks * PART.itemsize
    return SparseForm(block_rows, stored, stored * 4 + beside + _HEADERS_BYTES)
