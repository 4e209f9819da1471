"""The packed form in which the SparseConv kernel reads a sparse convolution weight: one block of bytes, used in place.

The layout is documented in ``kernels/sparse_conv/packed.h`` and ``contract.h``; the kernel checks every field of it.
In short: for each group of the convolution w is a matrix of rows x K, K = input channels * kernel elements; a row is
one output channel or a block of 4 or 8. It is cut into parts of ``panel_rows`` rows x ``k_block`` columns. In a part
the rows with equally many entries form a run; rows of single channels are interleaved in groups of eight, the rest in
groups of four, two and one. An entry takes two bytes (its column within the part) and four per channel of the block.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np

from graphopt.errors import KernelError

if TYPE_CHECKING:
    from numpy.typing import NDArray

_MAGIC: Final = b"GOSPCV\r\n"
_VERSION: Final = 1
_HEADER: Final = struct.Struct("<8s2I14Q4I40x")
_ALIGNMENT: Final = 64
_GROUP_ROWS: Final = 8
_MAX_INDEX: Final = 1 << 16
_MAX_ROWS: Final = _MAX_INDEX - 1
_RANKS: Final = (3, 4)
_PART: Final = np.dtype([("entry", "<u8"), ("run", "<u4"), ("row", "<u4")])
_RUN: Final = np.dtype([("entries", "<u4"), ("rows", "<u4")])

BLOCKS: Final = (1, 4, 8)
"""Output channels of a row."""
_TILE_COLUMNS: Final = 192
"""Columns of a part for rows of single channels: so many rows of a tile of activations stay near to L1, while sums are
seldom put aside."""
_PANEL_ROWS: Final = {1: 128, 4: 32, 8: 16}
_PLANE_UNIT: Final = 16
_COLLIDING_PLANES: Final = 256
"""Floats: planes at multiples of this distance would compete for few sets of the caches."""
_REPACK: Final = "Pack the weight again."


@dataclass(frozen=True, slots=True)
class PackedSizes:
    """What the header of a packed weight says.

    Attributes:
        shape: Of the dense weight, as ONNX Conv has it, with two kernel sizes.
        group: Groups of the convolution.
        block: Output channels of a row.
        entries: Rows of a block that are stored, over all parts.
    """

    shape: tuple[int, int, int, int]
    group: int
    block: int
    entries: int


@dataclass(frozen=True, slots=True)
class _Sections:
    parts: NDArray[np.void]
    runs: NDArray[np.void]
    listed: NDArray[np.uint16]
    indices: NDArray[np.uint16]
    values: NDArray[np.float32]

    def arrays(self) -> tuple[NDArray[np.generic], ...]:
        return (self.parts, self.runs, self.listed, self.indices, self.values)


def pack_sparse_conv(
    weight: NDArray[np.float32], *, group: int = 1, block: int = 1, k_block: int = 0, panel_rows: int = 0
) -> NDArray[np.uint8]:
    """Pack a convolution weight for SparseConv. Zeros of either sign are left out; NaN and infinities are entries.

    Args:
        weight: float32 of shape [M, C / group, kH, kW] or [M, C / group, kW], no size 0.
        group: Groups of the convolution; divides M.
        block: Output channels of a row: 1, 4 or 8. A row has an entry where any of them has.
        k_block: Columns of a part, 1 to 65536; 0 chooses.
        panel_rows: Rows of a part, 1 to 65535; 0 chooses.

    Returns:
        uint8 of shape [bytes], the same for the same arguments everywhere.

    Raises:
        KernelError: The weight has another type or rank or is empty, or an option is out of range.
    """
    if weight.dtype != np.float32 or weight.ndim not in _RANKS or weight.size == 0:
        what = f"a weight of type {weight.dtype} and shape {list(weight.shape)} cannot be packed"
        raise KernelError(what, must="It must be float32 of shape [M, C, kH, kW] or [M, C, kW] and not empty.")
    channels = weight.shape[0]
    if group < 1 or channels % group:
        raise KernelError(f"{channels} output channels cannot be packed in {group} groups", must="Groups divide them.")
    if block not in BLOCKS or not 0 <= k_block <= _MAX_INDEX or not 0 <= panel_rows <= _MAX_ROWS:
        what = f"rows of {block} channels in parts of {panel_rows} x {k_block} cannot be packed"
        raise KernelError(what, must="A block is 1, 4 or 8, k_block at most 65536 and panel_rows at most 65535.")
    columns = weight[0].size
    k_block = min(k_block or _columns_of_part(columns, block), columns)
    panel_rows = min(panel_rows or _PANEL_ROWS[block], _rows(channels // group, block))
    sections = [
        _panel(panel, k_block) for each in range(group) for panel in _panels(weight, group, each, block, panel_rows)
    ]
    kernel = (1, *weight.shape[2:])[-2:]
    sizes = (channels, group, weight.shape[1], *kernel)
    return _assemble(sizes, (block, k_block, panel_rows, _GROUP_ROWS), _joined(sections))


def padded_plane(positions: int) -> int:
    """Return how many floats a plane of so many positions has in the kernel's padded layout."""
    whole = -(-positions // _PLANE_UNIT) * _PLANE_UNIT
    return whole + _PLANE_UNIT if whole and whole % _COLLIDING_PLANES == 0 else whole


def packed_conv_bytes(weight: NDArray[np.float32], *, group: int = 1, block: int = 1) -> int:
    """Return how many bytes `pack_sparse_conv` needs for a weight, up to a few hundred."""
    rows = _by_rows(weight, group, block)
    entries = int(np.count_nonzero(rows.any(axis=3)))
    columns = int(rows.shape[2])
    parts = -(-columns // _columns_of_part(columns, block))
    listed = group * int(rows.shape[1]) * parts
    runs = min(listed, parts * group * -(-int(rows.shape[1]) // _PANEL_ROWS[block]) * 24)
    return entries * (2 + 4 * block) + listed * 2 + runs * _RUN.itemsize + 1024


def block_entries(weight: NDArray[np.float32], *, group: int = 1, block: int = 1) -> int:
    """Return how many entries of `block` channels the packed weight has."""
    return int(np.count_nonzero(_by_rows(weight, group, block).any(axis=3)))


def read_sizes(packed: NDArray[np.uint8]) -> PackedSizes:
    """Return what the header of packed bytes says.

    Raises:
        KernelError: The bytes are not those of a packed convolution weight of this version.
    """
    fields = _fields(packed.tobytes())
    channels, group, inputs, height, width, entries = fields[2:8]
    return PackedSizes((channels, inputs, height, width), group, fields[15], entries)


def unpack_sparse_conv(packed: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Return the dense weight [M, C / group, kH, kW] of packed bytes.

    Raises:
        KernelError: The bytes are not those of a packed convolution weight of this version.
    """
    data = packed.tobytes()
    fields = _fields(data)
    channels, group, inputs, height, width, entries, runs, listed = fields[2:10]
    offsets = fields[10:15]
    block, k_block, panel_rows = fields[15:18]
    columns, rows = inputs * height * width, _rows(channels // group, block)
    k_blocks, panels = -(-columns // k_block), -(-rows // panel_rows)
    parts = np.frombuffer(data, _PART, group * panels * k_blocks + 1, offsets[0])
    run = np.frombuffer(data, _RUN, runs, offsets[1])
    row = np.frombuffer(data, "<u2", listed, offsets[2])
    indices = np.frombuffer(data, "<u2", entries, offsets[3])
    values = np.frombuffer(data, "<f4", entries * block, offsets[4]).reshape(entries, block)

    part_of_row = np.repeat(np.arange(group * panels * k_blocks), _steps(parts["row"]))
    run_of_row = np.repeat(np.arange(runs), run["rows"])
    counts = run["entries"].astype(np.int64)[run_of_row]
    row_starts = np.concatenate([[0], np.cumsum(run["rows"], dtype=np.int64)])[:-1]
    entry_starts = np.concatenate([[0], np.cumsum(run["rows"].astype(np.int64) * run["entries"])])[:-1]
    in_run = np.arange(listed) - row_starts[run_of_row]
    first, stride = _places(in_run, run["rows"].astype(np.int64)[run_of_row], counts, interleaved=block == 1)
    at = np.repeat(entry_starts[run_of_row] + first, counts) + _ranks(counts) * np.repeat(stride, counts)
    panel, part = np.divmod(part_of_row, k_blocks)
    groups, panel = np.divmod(panel, panels)
    dense = np.zeros((group, rows, columns, block), np.float32)
    dense[
        np.repeat(groups, counts),
        np.repeat(panel * panel_rows + row, counts),
        np.repeat(part * k_block, counts) + indices[at],
    ] = values[at]
    of_group = dense.transpose(0, 1, 3, 2).reshape(group, rows * block, columns)[:, : channels // group]
    return np.ascontiguousarray(of_group.reshape(channels, inputs, height, width))


def _rows(channels: int, block: int) -> int:
    return -(-channels // block)


def _columns_of_part(columns: int, block: int) -> int:
    """Parts of equal width for single channels; blocks read activations so rarely that they need not stay in L1."""
    widest = _MAX_INDEX if block > 1 else _TILE_COLUMNS
    return -(-columns // -(-columns // widest))


def _by_rows(weight: NDArray[np.float32], group: int, block: int) -> NDArray[np.float32]:
    """[group, rows, columns, block]; channels that are missing in the last row are zero."""
    of_group = weight.reshape(group, weight.shape[0] // group, -1)
    missing = -of_group.shape[1] % block
    if missing:
        of_group = np.pad(of_group, ((0, 0), (0, missing), (0, 0)))
    return of_group.reshape(group, -1, block, of_group.shape[2]).transpose(0, 1, 3, 2)


def _panels(
    weight: NDArray[np.float32], group: int, each: int, block: int, panel_rows: int
) -> list[NDArray[np.float32]]:
    """The panels [rows, columns, block] of one group."""
    channels = weight.shape[0] // group
    rows = _by_rows(weight[each * channels : (each + 1) * channels], 1, block)[0]
    return [rows[at : at + panel_rows] for at in range(0, len(rows), panel_rows)]


def _panel(rows: NDArray[np.float32], k_block: int) -> _Sections:
    """The sections of one panel; its last part record is the end of its last part."""
    count, columns, block = rows.shape
    k_blocks = -(-columns // k_block)
    row, column = np.nonzero(rows.any(axis=2))  # by row, then by column

    # A pair is a row within a K-block, with entries or without; its entries are consecutive here.
    pair_of_entry = row * k_blocks + column // k_block
    counts = np.bincount(pair_of_entry, minlength=count * k_blocks)
    starts = np.cumsum(counts) - counts
    pair_row, pair_block = np.divmod(np.arange(count * k_blocks), k_blocks)

    # Order of the file: by part, then the longest first, then by row.
    order = np.lexsort((pair_row, -counts, pair_block))
    sorted_block, sorted_counts = pair_block[order], counts[order]
    new_run = np.flatnonzero((np.diff(sorted_block, prepend=-1) != 0) | (np.diff(sorted_counts, prepend=-1) != 0))
    run_rows = np.diff(new_run, append=len(order))
    run_entries = sorted_counts[new_run]
    run_of_pair = np.repeat(np.arange(len(new_run)), run_rows)
    run_starts = np.concatenate([[0], np.cumsum(run_rows * run_entries)]).astype(np.int64)

    in_run = np.arange(len(order)) - new_run[run_of_pair]
    first, stride = _places(in_run, run_rows[run_of_pair], sorted_counts, interleaved=block == 1)
    ranks = _ranks(sorted_counts)
    target = np.repeat(run_starts[run_of_pair] + first, sorted_counts) + ranks * np.repeat(stride, sorted_counts)
    source = np.repeat(starts[order], sorted_counts) + ranks
    indices = np.empty(len(row), "<u2")
    indices[target] = (column % k_block)[source]
    values = np.empty((len(row), block), "<f4")
    values[target] = rows[row[source], column[source]]

    parts = np.zeros(k_blocks + 1, _PART)
    edges = np.arange(k_blocks + 1)
    parts["row"] = np.searchsorted(sorted_block, edges)
    parts["run"] = np.searchsorted(sorted_block[new_run], edges)
    parts["entry"] = run_starts[parts["run"]]
    runs = np.zeros(len(new_run), _RUN)
    runs["entries"], runs["rows"] = run_entries, run_rows
    return _Sections(parts, runs, pair_row[order].astype("<u2"), indices, values.reshape(-1))


def _joined(panels: list[_Sections]) -> _Sections:
    parts = [np.zeros(1, _PART)]
    for panel in panels:
        begin = parts[-1][-1]
        moved = panel.parts[1:].copy()
        for field in ("entry", "run", "row"):
            moved[field] += begin[field]
        parts.append(moved)
    joined = [np.concatenate([panel.arrays()[i] for panel in panels]) for i in range(1, 5)]
    return _Sections(np.concatenate(parts), *joined)


def _places(
    in_run: NDArray[np.int64], run_rows: NDArray[np.int64], entries: NDArray[np.int64], *, interleaved: bool
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Where, from the start of its run, each row has its first entry, and how far apart its entries lie."""
    if not interleaved:
        return in_run * entries, np.ones_like(in_run)
    rest = run_rows % _GROUP_ROWS
    start, size = in_run // _GROUP_ROWS * _GROUP_ROWS, np.full_like(in_run, _GROUP_ROWS)
    begin = run_rows - rest
    in_rest = in_run >= begin
    for part in (4, 2, 1):
        here = in_rest & (rest & part != 0) & (in_run >= begin) & (in_run < begin + part)
        start, size = np.where(here, begin, start), np.where(here, part, size)
        begin = begin + (rest & part)
    return start * entries + in_run - start, size


def _steps(rising: NDArray[np.uint32]) -> NDArray[np.int64]:
    wide = rising.astype(np.int64)
    return wide[1:] - wide[:-1]


def _ranks(counts: NDArray[np.int64]) -> NDArray[np.int64]:
    """0, 1, ... counts[0]-1, 0, 1, ... counts[1]-1, and so on."""
    ends = np.cumsum(counts)
    return np.arange(ends[-1] if len(ends) else 0) - np.repeat(ends - counts, counts)


def _assemble(sizes: tuple[int, ...], blocking: tuple[int, ...], sections: _Sections) -> NDArray[np.uint8]:
    header_bytes = _HEADER.size + 8
    offsets: list[int] = []
    end = header_bytes
    for array in sections.arrays():
        start = -(-end // _ALIGNMENT) * _ALIGNMENT
        offsets.append(start)
        end = start + array.nbytes
    counts = (len(sections.indices), len(sections.runs), len(sections.listed))
    header = _HEADER.pack(_MAGIC, _VERSION, header_bytes, end, *sizes, *counts, *offsets, *blocking)
    packed = np.zeros(end, np.uint8)
    packed[:header_bytes] = np.frombuffer(header + struct.pack("<Q", _fnv1a(header)), np.uint8)
    for start, array in zip(offsets, sections.arrays(), strict=True):
        packed[start : start + array.nbytes] = np.frombuffer(array.tobytes(), np.uint8)
    return packed


def _fields(data: bytes) -> tuple[int, ...]:
    """The header's numbers from the format version on, without the header's own size."""
    header_bytes = _HEADER.size + 8
    if len(data) < header_bytes or data[:8] != _MAGIC:
        raise KernelError("the bytes are not a packed convolution weight", do=_REPACK)
    version, _, *fields = _HEADER.unpack_from(data)[1:]
    hashed = struct.unpack_from("<Q", data, _HEADER.size)[0] == _fnv1a(data[: _HEADER.size])
    if version != _VERSION or fields[0] != len(data) or fields[-1] != _GROUP_ROWS or not hashed:
        what = f"a packed convolution weight of version {version} with {len(data)} bytes cannot be read"
        raise KernelError(what, do=_REPACK)
    return (version, *fields)


def _fnv1a(data: bytes) -> int:
    value = 0xCBF29CE484222325
    for byte in data:
        value = (value ^ byte) * 0x100000001B3 % (1 << 64)
    return value
