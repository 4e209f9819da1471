"""The packed form in which the SparseConv kernel reads a sparse convolution weight: one block of bytes, used in place.

The layout is documented in ``kernels/sparse_conv/packed.h`` and ``contract.h``; the kernel checks every field of it.
In short: for each group of the convolution w is a matrix of rows x K, K = input channels * kernel elements; a row is
one output channel or a block of 4 or 8. It is cut into parts of ``panel_rows`` rows x ``k_block`` columns. In a part
the rows with equally many entries form a run; rows of single channels are interleaved in groups of eight, the rest in
groups of four, two and one. An entry takes two bytes (its column within the part) and four per channel of the block.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np

from graphopt.errors import KernelError
from graphopt.solve.blob import BlobFormat
from graphopt.solve.sparse_sections import GROUP_ROWS, PART, ROW, RunForm, Sections, entries_of_runs, pack_runs

if TYPE_CHECKING:
    from numpy.typing import NDArray

# channels, groups, inputs, height, width, entries, runs, rows listed, five offsets;
# block, k_block, panel_rows, GROUP_ROWS
_FORMAT: Final = BlobFormat(b"GOSPCV\r\n", 1, "13Q4I40x", "convolution weight")
_RUNS: Final = RunForm(np.dtype([("entries", "<u4"), ("rows", "<u4")]), np.dtype("<u2"), every_row=True)
_MAX_INDEX: Final = 1 << 16
_MAX_ROWS: Final = _MAX_INDEX - 1
_RANKS: Final = (3, 4)

BLOCKS: Final = (1, 4, 8)
"""Output channels of a row."""
_TILE_COLUMNS: Final = 192
"""Columns of a part for rows of single channels: so many rows of a tile of activations stay near to L1, while sums are
seldom put aside."""
_PANEL_ROWS: Final = {1: 128, 4: 32, 8: 16}
_PLANE_UNIT: Final = 16
_COLLIDING_PLANES: Final = 256
"""Floats: planes at multiples of this distance would compete for few sets of the caches."""


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
    panels = (panel for each in range(group) for panel in _panels(weight, group, each, block, panel_rows))
    sections = pack_runs(panels, k_block, _RUNS)
    sizes = (channels, group, weight.shape[1], *(1, *weight.shape[2:])[-2:])
    counts = (len(sections.indices), len(sections.runs), len(sections.rows))
    return _FORMAT.write(sections.arrays(), (*sizes, *counts), (block, k_block, panel_rows, GROUP_ROWS))


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
    return entries * (2 + 4 * block) + listed * 2 + runs * _RUNS.run.itemsize + 1024


def block_entries(weight: NDArray[np.float32], *, group: int = 1, block: int = 1) -> int:
    """Return how many entries of `block` channels the packed weight has."""
    return int(np.count_nonzero(_by_rows(weight, group, block).any(axis=3)))


def read_sizes(packed: NDArray[np.uint8]) -> PackedSizes:
    """Return what the header of packed bytes says.

    Raises:
        KernelError: The bytes are not those of a packed convolution weight of this version.
    """
    fields = _fields(packed)
    channels, group, inputs, height, width, entries = fields[:6]
    return PackedSizes((channels, inputs, height, width), group, fields[13], entries)


def unpack_sparse_conv(packed: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Return the dense weight [M, C / group, kH, kW] of packed bytes.

    Raises:
        KernelError: The bytes are not those of a packed convolution weight of this version.
    """
    data = packed.tobytes()
    fields = _fields(packed)
    channels, group, inputs, height, width, entries, runs, listed = fields[:8]
    offsets = fields[8:13]
    block, k_block, panel_rows = fields[13:16]
    columns, rows = inputs * height * width, _rows(channels // group, block)
    k_blocks, panels = -(-columns // k_block), -(-rows // panel_rows)
    sections = Sections(
        np.frombuffer(data, PART, group * panels * k_blocks + 1, offsets[0]),
        np.frombuffer(data, _RUNS.run, runs, offsets[1]),
        np.frombuffer(data, ROW, listed, offsets[2]),
        np.frombuffer(data, _RUNS.index, entries, offsets[3]),
        np.frombuffer(data, "<f4", entries * block, offsets[4]),
    )
    found = entries_of_runs(sections, interleaved=block == 1)
    panel, part = np.divmod(found.part, k_blocks)
    of_row = panel % panels * panel_rows + found.row
    dense = np.zeros((group, rows, columns, block), np.float32)
    values = sections.values.reshape(entries, block)[found.value]
    dense[panel // panels, of_row, part * k_block + found.column] = values
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


def _fields(packed: NDArray[np.uint8]) -> tuple[int, ...]:
    """The header's numbers."""
    fields = _FORMAT.read(packed)
    if fields[-1] != GROUP_ROWS:
        raise _FORMAT.unreadable(packed)
    return fields
