"""The sections of a packed sparse matrix; `graphopt.solve.pack_sparse` puts a header before them.

Runs, of single weights: w of shape [K, N] is cut into blocks of ``k_block`` rows x ``panel_rows`` columns. In a block
the columns of w with equally many entries form a run, and the entries of a run are interleaved in groups of eight
columns, the rest in groups of four, two and one. An entry takes five bytes: its row within the block (uint8) and its
value (float32).

Strips, of blocks: ``block_rows`` columns of w go together, and an entry is a row of w in which one of them is not zero:
its place within the K-block (uint16) and their values (float32).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

GROUP_ROWS: Final = 8
BLOCK: Final = np.dtype([("entry", "<u8"), ("run", "<u4"), ("row", "<u4")])
RUN: Final = np.dtype([("entries", "<u2"), ("rows", "<u2")])
STRIP: Final = np.dtype("<u8")
STRIP_INDEX: Final = np.dtype("<u2")


@dataclass(frozen=True, slots=True)
class Sections:
    """What follows the header, in this order; strips have no runs and no rows."""

    blocks: NDArray[Any]
    runs: NDArray[np.void]
    rows: NDArray[np.uint16]
    indices: NDArray[Any]
    values: NDArray[np.float32]

    def arrays(self) -> tuple[NDArray[np.generic], ...]:
        """Return the sections in their order."""
        return (self.blocks, self.runs, self.rows, self.indices, self.values)


def pack_runs(weight: NDArray[np.float32], k_block: int, panel_rows: int) -> Sections:
    """Return the sections of the unstructured form.

    Args:
        weight: float32 of shape [K, N].
        k_block: Rows of a block, 1 to 256.
        panel_rows: Columns of a block.
    """
    return _joined([_panel(weight[:, at : at + panel_rows], k_block) for at in range(0, weight.shape[1], panel_rows)])


def unpack_runs(sections: Sections, shape: tuple[int, int], k_block: int, panel_rows: int) -> NDArray[np.float32]:
    """Return the dense matrix of the unstructured form."""
    blocks, run, rows = sections.blocks, sections.runs, sections.rows
    k_blocks = -(-shape[0] // k_block)
    block_of_row = np.repeat(np.arange(len(blocks) - 1), _steps(blocks["row"]))
    run_of_row = np.repeat(np.arange(len(run)), run["rows"])
    row_starts = np.concatenate([[0], np.cumsum(run["rows"], dtype=np.int64)])[:-1]
    entry_starts = np.concatenate([[0], np.cumsum(run["rows"].astype(np.int64) * run["entries"])])[:-1]
    in_run = np.arange(len(rows)) - row_starts[run_of_row]
    counts = run["entries"].astype(np.int64)[run_of_row]
    first, stride = _interleaved(in_run, run["rows"].astype(np.int64)[run_of_row], counts)
    at = np.repeat(entry_starts[run_of_row] + first, counts) + _ranks(counts) * np.repeat(stride, counts)
    column = np.repeat(block_of_row // k_blocks * panel_rows + rows, counts)
    row = np.repeat(block_of_row % k_blocks * k_block, counts) + sections.indices[at]
    dense = np.zeros(shape, np.float32)
    dense[row, column] = sections.values[at]
    return dense


def blocks_with_entries(weight: NDArray[np.float32], block_rows: int) -> NDArray[np.bool_]:
    """Return which blocks of so many columns x one row hold anything but zeros, of shape [strips, K]."""
    strips = -(-weight.shape[1] // block_rows)
    padded = np.zeros((strips * block_rows, weight.shape[0]), np.bool_)
    padded[: weight.shape[1]] = weight.T != 0
    found: NDArray[np.bool_] = np.any(padded.reshape(strips, block_rows, -1), axis=1)
    return found


def pack_strips(weight: NDArray[np.float32], block_rows: int, k_block: int) -> Sections:
    """Return the sections of the form of blocks.

    Args:
        weight: float32 of shape [K, N].
        block_rows: Columns of w that share an index.
        k_block: Rows of a K-block, 1 to 65536.
    """
    k, n = weight.shape
    strip, row = np.nonzero(blocks_with_entries(weight, block_rows))
    strips, k_blocks = -(-n // block_rows), -(-k // k_block)
    starts = np.searchsorted(strip * k_blocks + row // k_block, np.arange(strips * k_blocks + 1))
    padded = np.zeros((strips * block_rows, k), np.float32)
    padded[:n] = weight.T
    values = padded.reshape(strips, block_rows, k)[strip, :, row]
    indices = (row % k_block).astype(STRIP_INDEX)
    nothing = np.zeros(0, RUN), np.zeros(0, np.uint16)
    return Sections(starts.astype(STRIP), *nothing, indices, values.astype("<f4").reshape(-1))


def unpack_strips(sections: Sections, shape: tuple[int, int], block_rows: int, k_block: int) -> NDArray[np.float32]:
    """Return the dense matrix of the form of blocks."""
    k, n = shape
    k_blocks = -(-k // k_block)
    block = np.repeat(np.arange(len(sections.blocks) - 1), _steps(sections.blocks))
    row = block % k_blocks * k_block + sections.indices
    dense = np.zeros((-(-n // block_rows), block_rows, k), np.float32)
    dense[block // k_blocks, :, row] = sections.values.reshape(-1, block_rows)
    return np.ascontiguousarray(dense.reshape(-1, k)[:n].T)


def _panel(weight: NDArray[np.float32], k_block: int) -> Sections:
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

    blocks = np.zeros(k_blocks + 1, BLOCK)
    edges = np.arange(k_blocks + 1)
    blocks["row"] = np.searchsorted(sorted_block, edges)
    blocks["run"] = np.searchsorted(sorted_block[new_run], edges)
    blocks["entry"] = run_starts[blocks["run"]]
    runs = np.zeros(len(new_run), RUN)
    runs["entries"], runs["rows"] = run_entries, run_rows
    return Sections(blocks, runs, pair_column[order].astype("<u2"), indices, values)


def _joined(panels: list[Sections]) -> Sections:
    blocks = [np.zeros(1, BLOCK)]
    for panel in panels:
        begin = blocks[-1][-1]
        moved = panel.blocks[1:].copy()
        for field in ("entry", "run", "row"):
            moved[field] += begin[field]
        blocks.append(moved)
    joined = [np.concatenate([panel.arrays()[i] for panel in panels]) for i in range(1, 5)]
    return Sections(np.concatenate(blocks), *joined)


def _interleaved(
    in_run: NDArray[np.int64], run_rows: NDArray[np.int64], run_entries: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Where, from the start of its run, each row has its first entry, and how far apart its entries lie."""
    rest = run_rows % GROUP_ROWS
    start, size = in_run // GROUP_ROWS * GROUP_ROWS, np.full_like(in_run, GROUP_ROWS)
    in_rest = in_run >= run_rows - rest
    begin = run_rows - rest
    for part in (4, 2, 1):
        here = in_rest & (rest & part != 0) & (in_run >= begin) & (in_run < begin + part)
        start, size = np.where(here, begin, start), np.where(here, part, size)
        begin = begin + (rest & part)
    return start * run_entries + in_run - start, size


def _steps(rising: NDArray[Any]) -> NDArray[np.int64]:
    wide: NDArray[np.int64] = rising.astype(np.int64)
    return wide[1:] - wide[:-1]


def _ranks(counts: NDArray[np.int64]) -> NDArray[np.int64]:
    """0, 1, ... counts[0]-1, 0, 1, ... counts[1]-1, and so on."""
    ends = np.cumsum(counts)
    return np.arange(ends[-1] if len(ends) else 0) - np.repeat(ends - counts, counts)
