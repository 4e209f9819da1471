"""The packed form in which the SparseMatMul kernel reads a sparse matrix: one block of bytes, used in place.

The layout is documented in ``kernels/sparse_matmul/packed.h`` and ``contract.h``; the kernel checks every field of it.
In short: w of shape [K, N] is cut into blocks of ``k_block`` rows x ``panel_rows`` columns. Inside a block the columns
of w with equally many entries form a run, and the entries of a run are interleaved in groups of eight columns, the rest
in groups of four, two and one. An entry takes five bytes: its row within the block (uint8) and its value (float32).
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np

from graphopt.errors import KernelError

if TYPE_CHECKING:
    from numpy.typing import NDArray

_MAGIC: Final = b"GOSPMM\r\n"
_VERSION: Final = 1
_HEADER: Final = struct.Struct("<8s2I11Q4I")
_HEADER_BYTES: Final = 128
_ALIGNMENT: Final = 64
_GROUP_ROWS: Final = 8
_BLOCK: Final = np.dtype([("entry", "<u8"), ("run", "<u4"), ("row", "<u4")])
_RUN: Final = np.dtype([("entries", "<u2"), ("rows", "<u2")])

DEFAULT_K_BLOCK: Final = 128
DEFAULT_PANEL_ROWS: Final = 512
_REPACK: Final = "Pack the matrix again."


@dataclass(frozen=True, slots=True)
class _Sections:
    blocks: NDArray[np.void]
    runs: NDArray[np.void]
    rows: NDArray[np.uint16]
    indices: NDArray[np.uint8]
    values: NDArray[np.float32]

    def arrays(self) -> tuple[NDArray[np.generic], ...]:
        return (self.blocks, self.runs, self.rows, self.indices, self.values)


def pack_sparse(
    weight: NDArray[np.float32], *, k_block: int = DEFAULT_K_BLOCK, panel_rows: int = DEFAULT_PANEL_ROWS
) -> NDArray[np.uint8]:
    """Pack a matrix for SparseMatMul. Zeros of either sign are left out; NaN and infinities are entries.

    Args:
        weight: float32 of shape [K, N], both at least 1.
        k_block: Rows of a block, 1 to 256. The kernel keeps that many rows of the transposed activations in L1.
        panel_rows: Columns of a block, 1 to 4096. The kernel keeps their sums in L2.

    Returns:
        uint8 of shape [bytes], the same for the same arguments everywhere. About five bytes per entry.

    Raises:
        KernelError: The matrix is not float32 of rank 2 with at least one element, or a size is out of range.
    """
    if weight.dtype != np.float32 or weight.ndim != 2 or weight.size == 0:
        what = f"a weight of type {weight.dtype} and shape {list(weight.shape)} cannot be packed"
        raise KernelError(what, must="It must be float32 of shape [K, N] and not empty.")
    if not 1 <= k_block <= 256 or not 1 <= panel_rows <= 4096:
        what = f"blocks of {k_block} x {panel_rows} cannot be packed"
        raise KernelError(what, must="k_block must be 1 to 256 and panel_rows 1 to 4096.")
    panels = [_panel(weight[:, at : at + panel_rows], k_block) for at in range(0, weight.shape[1], panel_rows)]
    return _assemble(weight.shape, k_block, panel_rows, _joined(panels))


def packed_bytes(entries: int, k: int, n: int) -> int:
    """Return about how many bytes `pack_sparse` needs for a [k, n] matrix with so many entries, a little too high."""
    pairs = min(entries, n * -(-k // DEFAULT_K_BLOCK))
    blocks = -(-k // DEFAULT_K_BLOCK) * -(-n // DEFAULT_PANEL_ROWS)
    return entries * 5 + pairs * 2 + blocks * (16 + 4 * 48) + 1024


def unpack_sparse(packed: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Return the dense [K, N] matrix of packed bytes.

    Raises:
        KernelError: The bytes are not those of a packed matrix of this version.
    """
    data = packed.tobytes()
    if len(data) < _HEADER_BYTES or data[:8] != _MAGIC:
        raise KernelError("the bytes are not a packed matrix", do=_REPACK)
    fields = _HEADER.unpack_from(data)
    version, _, total, k, n, entries, runs, listed, *offsets, k_block, panel_rows, group, _ = fields[1:]
    hashed = struct.unpack_from("<Q", data, _HEADER.size)[0] == _fnv1a(data[: _HEADER.size])
    if version != _VERSION or total != len(data) or group != _GROUP_ROWS or not hashed:
        raise KernelError(f"a packed matrix of version {version} with {len(data)} bytes cannot be read", do=_REPACK)
    k_blocks, panels = -(-k // k_block), -(-n // panel_rows)
    blocks = np.frombuffer(data, _BLOCK, panels * k_blocks + 1, offsets[0])
    run = np.frombuffer(data, _RUN, runs, offsets[1])
    rows = np.frombuffer(data, "<u2", listed, offsets[2])
    indices = np.frombuffer(data, "u1", entries, offsets[3])
    values = np.frombuffer(data, "<f4", entries, offsets[4])

    block_of_row = np.repeat(np.arange(panels * k_blocks), _steps(blocks["row"]))
    run_of_row = np.repeat(np.arange(runs), run["rows"])
    row_starts = np.concatenate([[0], np.cumsum(run["rows"], dtype=np.int64)])[:-1]
    entry_starts = np.concatenate([[0], np.cumsum(run["rows"].astype(np.int64) * run["entries"])])[:-1]
    in_run = np.arange(listed) - row_starts[run_of_row]
    first, stride = _interleaved(
        in_run, run["rows"].astype(np.int64)[run_of_row], run["entries"].astype(np.int64)[run_of_row]
    )
    counts = run["entries"].astype(np.int64)[run_of_row]
    at = np.repeat(entry_starts[run_of_row] + first, counts) + _ranks(counts) * np.repeat(stride, counts)
    column = np.repeat(block_of_row // k_blocks * panel_rows + rows, counts)
    row = np.repeat(block_of_row % k_blocks * k_block, counts) + indices[at]
    dense = np.zeros((k, n), np.float32)
    dense[row, column] = values[at]
    return dense


def _panel(weight: NDArray[np.float32], k_block: int) -> _Sections:
    """The sections of one panel; its last block record is the end of its last block."""
    k_blocks = -(-weight.shape[0] // k_block)
    column, row = np.nonzero(weight.T)  # by column of w, then by row

    # A pair is a column of w within a K-block; its entries are consecutive here.
    pair_key = column * k_blocks + row // k_block
    starts = np.flatnonzero(np.diff(pair_key, prepend=-1))
    counts = np.diff(starts, append=len(pair_key))
    pair_column, pair_block = np.divmod(pair_key[starts], k_blocks)

    # Order of the file: by block, then the longest first, then by column.
    order = np.lexsort((pair_column, -counts, pair_block))
    sorted_block, sorted_counts = pair_block[order], counts[order]
    new_run = np.flatnonzero((np.diff(sorted_block, prepend=-1) != 0) | (np.diff(sorted_counts, prepend=-1) != 0))
    run_rows = np.diff(new_run, append=len(order))
    run_entries = sorted_counts[new_run]
    run_of_pair = np.repeat(np.arange(len(new_run)), run_rows)
    run_starts = np.concatenate([[0], np.cumsum(run_rows * run_entries)]).astype(np.int64)

    first, stride = _interleaved(
        np.arange(len(order)) - new_run[run_of_pair], run_rows[run_of_pair], run_entries[run_of_pair]
    )
    ranks = _ranks(sorted_counts)
    target = np.repeat(run_starts[run_of_pair] + first, sorted_counts) + ranks * np.repeat(stride, sorted_counts)
    source = np.repeat(starts[order], sorted_counts) + ranks
    indices = np.empty(len(row), np.uint8)
    indices[target] = (row % k_block).astype(np.uint8)[source]
    values = np.empty(len(row), "<f4")
    values[target] = weight[row[source], column[source]]

    blocks = np.zeros(k_blocks + 1, _BLOCK)
    edges = np.arange(k_blocks + 1)
    blocks["row"] = np.searchsorted(sorted_block, edges)
    blocks["run"] = np.searchsorted(sorted_block[new_run], edges)
    blocks["entry"] = run_starts[blocks["run"]]
    runs = np.zeros(len(new_run), _RUN)
    runs["entries"], runs["rows"] = run_entries, run_rows
    return _Sections(blocks, runs, pair_column[order].astype("<u2"), indices, values)


def _joined(panels: list[_Sections]) -> _Sections:
    blocks = [np.zeros(1, _BLOCK)]
    for panel in panels:
        begin = blocks[-1][-1]
        moved = panel.blocks[1:].copy()
        for field in ("entry", "run", "row"):
            moved[field] += begin[field]
        blocks.append(moved)
    joined = [np.concatenate([panel.arrays()[i] for panel in panels]) for i in range(1, 5)]
    return _Sections(np.concatenate(blocks), *joined)


def _interleaved(
    in_run: NDArray[np.int64], run_rows: NDArray[np.int64], run_entries: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Where, from the start of its run, each row has its first entry, and how far apart its entries lie."""
    rest = run_rows % _GROUP_ROWS
    start, size = in_run // _GROUP_ROWS * _GROUP_ROWS, np.full_like(in_run, _GROUP_ROWS)
    in_rest = in_run >= run_rows - rest
    begin = run_rows - rest
    for part in (4, 2, 1):
        here = in_rest & (rest & part != 0) & (in_run >= begin) & (in_run < begin + part)
        start, size = np.where(here, begin, start), np.where(here, part, size)
        begin = begin + (rest & part)
    return start * run_entries + in_run - start, size


def _steps(rising: NDArray[np.uint32]) -> NDArray[np.int64]:
    wide = rising.astype(np.int64)
    return wide[1:] - wide[:-1]


def _ranks(counts: NDArray[np.int64]) -> NDArray[np.int64]:
    """0, 1, ... counts[0]-1, 0, 1, ... counts[1]-1, and so on."""
    ends = np.cumsum(counts)
    return np.arange(ends[-1] if len(ends) else 0) - np.repeat(ends - counts, counts)


def _assemble(shape: tuple[int, ...], k_block: int, panel_rows: int, sections: _Sections) -> NDArray[np.uint8]:
    offsets: list[int] = []
    end = _HEADER_BYTES
    for array in sections.arrays():
        start = -(-end // _ALIGNMENT) * _ALIGNMENT
        offsets.append(start)
        end = start + array.nbytes
    sizes = (end, *shape, len(sections.values), len(sections.runs), len(sections.rows))
    header = _HEADER.pack(_MAGIC, _VERSION, _HEADER_BYTES, *sizes, *offsets, k_block, panel_rows, _GROUP_ROWS, 0)
    packed = np.zeros(end, np.uint8)
    packed[:_HEADER_BYTES] = np.frombuffer(header + struct.pack("<Q", _fnv1a(header)), np.uint8)
    for start, array in zip(offsets, sections.arrays(), strict=True):
        packed[start : start + array.nbytes] = np.frombuffer(array.tobytes(), np.uint8)
    return packed


def _fnv1a(data: bytes) -> int:
    value = 0xCBF29CE484222325
    for byte in data:
        value = (value ^ byte) * 0x100000001B3 % (1 << 64)
    return value
