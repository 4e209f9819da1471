"""The sections of a packed sparse matrix; `graphopt.solve.blob` puts a header before them.

Runs: a matrix of rows x columns is cut into parts of ``panel_rows`` rows x ``k_block`` columns. In a part the rows with
equally many entries form a run. A row is one output, or several that share each input; an entry is a column in which
one of them is not zero: its place within the part, and a value (float32) per output. Entries of single outputs are
interleaved in groups of eight rows, the rest in groups of four, two and one.

Strips, of blocks: ``block_rows`` columns of w go together, and an entry is a row of w in which one of them is not zero:
its place within the K-block (uint16) and their values (float32).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterable

    from numpy.typing import NDArray

GROUP_ROWS: Final = 8
PART: Final = np.dtype([("entry", "<u8"), ("run", "<u4"), ("row", "<u4")])
"""Where a part begins; one more is the end of the last."""
ROW: Final = np.dtype("<u2")
STRIP: Final = np.dtype("<u8")
STRIP_INDEX: Final = np.dtype("<u2")


@dataclass(frozen=True, slots=True)
class RunForm:
    """How runs are written.

    Attributes:
        run: Of a run: entries of each of its rows, and rows.
        index: Of the place of an entry within its part.
        every_row: Whether rows without an entry are listed too.
    """

    run: np.dtype[np.void]
    index: np.dtype[Any]
    every_row: bool


@dataclass(frozen=True, slots=True)
class Sections:
    """What follows the header, in this order; strips have no runs and no rows."""

    parts: NDArray[Any]
    runs: NDArray[np.void]
    rows: NDArray[np.uint16]
    indices: NDArray[Any]
    values: NDArray[np.float32]

    def arrays(self) -> tuple[NDArray[Any], ...]:
        """Return the sections in their order."""
        return (self.parts, self.runs, self.rows, self.indices, self.values)


def pack_runs(panels: Iterable[NDArray[np.float32]], k_block: int, form: RunForm) -> Sections:
    """Return the sections of panels one after another.

    Args:
        panels: float32 of shape [rows, columns, outputs of a row].
        k_block: Columns of a part.
        form: How they are written.
    """
    return _joined([_panel(panel, k_block, form) for panel in panels])


@dataclass(frozen=True, slots=True)
class Entries:
    """Where the entries of packed runs lie.

    Attributes:
        part: The part of each, in the order of the file.
        row: Its row within the panel.
        column: Its column within the part.
        value: The place of its value or values.
    """

    part: NDArray[np.int64]
    row: NDArray[np.uint16]
    column: NDArray[Any]
    value: NDArray[np.int64]


def entries_of_runs(sections: Sections, *, interleaved: bool) -> Entries:
    """Return where the entries of packed runs lie.

    Args:
        sections: As `pack_runs` gives them.
        interleaved: Whether rows have one output.
    """
    parts, run, rows = sections.parts, sections.runs, sections.rows
    lengths = run["rows"].astype(np.int64)
    run_of_row = np.repeat(np.arange(len(run)), lengths)
    counts = run["entries"].astype(np.int64)[run_of_row]
    in_run = np.arange(len(rows)) - _starts(lengths)[run_of_row]
    first, stride = _places(in_run, lengths[run_of_row], counts, interleaved=interleaved)
    entry_starts = _starts(lengths * run["entries"])
    at = np.repeat(entry_starts[run_of_row] + first, counts) + _ranks(counts) * np.repeat(stride, counts)
    part_of_row = np.repeat(np.arange(len(parts) - 1), _steps(parts["row"]))
    return Entries(np.repeat(part_of_row, counts), np.repeat(rows, counts), sections.indices[at], at)


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
    nothing = np.zeros(0, np.void), np.zeros(0, ROW)
    return Sections(starts.astype(STRIP), *nothing, indices, values.astype("<f4").reshape(-1))


def unpack_strips(sections: Sections, shape: tuple[int, int], block_rows: int, k_block: int) -> NDArray[np.float32]:
    """Return the dense matrix of the form of blocks."""
    k, n = shape
    k_blocks = -(-k // k_block)
    block = np.repeat(np.arange(len(sections.parts) - 1), _steps(sections.parts))
    row = block % k_blocks * k_block + sections.indices
    dense = np.zeros((-(-n // block_rows), block_rows, k), np.float32)
    dense[block // k_blocks, :, row] = sections.values.reshape(-1, block_rows)
    return np.ascontiguousarray(dense.reshape(-1, k)[:n].T)


def _panel(rows: NDArray[np.float32], k_block: int, form: RunForm) -> Sections:
    """The sections of one panel; its last part record is the end of its last part."""
    count, columns, outputs = rows.shape
    k_blocks = -(-columns // k_block)
    row, column = np.nonzero(rows.any(axis=2))  # by row, then by column

    # A pair is a row within a part; its entries are consecutive here.
    pair_of_entry = row * k_blocks + column // k_block
    counts = np.bincount(pair_of_entry, minlength=count * k_blocks)
    starts = _starts(counts)
    listed = np.arange(len(counts)) if form.every_row else np.flatnonzero(counts)
    counts, starts = counts[listed], starts[listed]
    pair_row, pair_part = np.divmod(listed, k_blocks)

    # Order of the file: by part, then the longest first, then by row.
    order = np.lexsort((pair_row, -counts, pair_part))
    sorted_part, sorted_counts = pair_part[order], counts[order]
    new_run = np.flatnonzero((np.diff(sorted_part, prepend=-1) != 0) | (np.diff(sorted_counts, prepend=-1) != 0))
    run_rows = np.diff(new_run, append=len(order))
    run_entries = sorted_counts[new_run]
    run_of_pair = np.repeat(np.arange(len(new_run)), run_rows)
    run_starts = np.concatenate([[0], np.cumsum(run_rows * run_entries)]).astype(np.int64)

    in_run = np.arange(len(order)) - new_run[run_of_pair]
    first, stride = _places(in_run, run_rows[run_of_pair], sorted_counts, interleaved=outputs == 1)
    ranks = _ranks(sorted_counts)
    target = np.repeat(run_starts[run_of_pair] + first, sorted_counts) + ranks * np.repeat(stride, sorted_counts)
    source = np.repeat(starts[order], sorted_counts) + ranks
    indices = np.empty(len(row), form.index)
    indices[target] = (column % k_block)[source]
    values = np.empty((len(row), outputs), "<f4")
    values[target] = rows[row[source], column[source]]

    parts = np.zeros(k_blocks + 1, PART)
    edges = np.arange(k_blocks + 1)
    parts["row"] = np.searchsorted(sorted_part, edges)
    parts["run"] = np.searchsorted(sorted_part[new_run], edges)
    parts["entry"] = run_starts[parts["run"]]
    runs = np.zeros(len(new_run), form.run)
    runs["entries"], runs["rows"] = run_entries, run_rows
    return Sections(parts, runs, pair_row[order].astype(ROW), indices, values.reshape(-1))


def _joined(panels: list[Sections]) -> Sections:
    parts = [np.zeros(1, PART)]
    for panel in panels:
        begin = parts[-1][-1]
        moved = panel.parts[1:].copy()
        for field in ("entry", "run", "row"):
            moved[field] += begin[field]
        parts.append(moved)
    joined = [np.concatenate([panel.arrays()[i] for panel in panels]) for i in range(1, 5)]
    return Sections(np.concatenate(parts), *joined)


def _places(
    in_run: NDArray[np.int64], run_rows: NDArray[np.int64], entries: NDArray[np.int64], *, interleaved: bool
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Where, from the start of its run, each row has its first entry, and how far apart its entries lie."""
    if not interleaved:
        return in_run * entries, np.ones_like(in_run)
    rest = run_rows % GROUP_ROWS
    start, size = in_run // GROUP_ROWS * GROUP_ROWS, np.full_like(in_run, GROUP_ROWS)
    begin = run_rows - rest
    in_rest = in_run >= begin
    for part in (4, 2, 1):
        here = in_rest & (rest & part != 0) & (in_run >= begin) & (in_run < begin + part)
        start, size = np.where(here, begin, start), np.where(here, part, size)
        begin = begin + (rest & part)
    return start * entries + in_run - start, size


def _starts(lengths: NDArray[Any]) -> NDArray[np.int64]:
    """Where each begins that many follow each other."""
    starts: NDArray[np.int64] = np.cumsum(lengths, dtype=np.int64) - lengths
    return starts


def _steps(rising: NDArray[Any]) -> NDArray[np.int64]:
    wide: NDArray[np.int64] = rising.astype(np.int64)
    return wide[1:] - wide[:-1]


def _ranks(counts: NDArray[np.int64]) -> NDArray[np.int64]:
    """0, 1, ... counts[0]-1, 0, 1, ... counts[1]-1, and so on."""
    return np.arange(counts.sum()) - np.repeat(_starts(counts), counts)
