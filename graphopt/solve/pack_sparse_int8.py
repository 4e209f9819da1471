"""The packed form in which the sparse int8 kernels read a weight: one block of bytes, used in place.

The layout is documented in ``kernels/sparse_int8/packed.h`` and ``contract.h``; the kernel checks every field of it.
In short: w of shape [K, N] is cut into panels of outputs (columns of w) and K-blocks of rows. Rows go in fours, and
what is stored are the fours with a weight that is not zero: for one output (blocks of 1 x 4) or for four outputs that
lie side by side (4 x 4). A four of one output takes six bytes, a four of four outputs eighteen.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np

from graphopt.errors import KernelError
from graphopt.solve.blob import BlobFormat

if TYPE_CHECKING:
    from numpy.typing import NDArray

# k, n, unit, k_block, panel, nothing; steps, seven offsets, groups
_FORMAT: Final = BlobFormat(b"GOSPI8\r\n", 1, "6I9Q", "int8 weight")
_BLOCK: Final = np.dtype([("step", "<u8"), ("group", "<u8")])

MAX_K: Final = 65536
MAX_N: Final = 1 << 24
UNITS: Final = (1, 4)


@dataclass(frozen=True, slots=True, eq=False)
class Int8Weight:
    """What the packed bytes hold.

    Attributes:
        values: int8 of shape [K, N].
        scales: float32 of shape [N].
        fixes: int32 of shape [N]: what is added to the sum of each output, on the grid of the sums.
        unit: Outputs that share their fours of rows: 1 or 4.
    """

    values: NDArray[np.int8]
    scales: NDArray[np.float32]
    fixes: NDArray[np.int32]
    unit: int


def pack_sparse_int8(
    values: NDArray[np.int8],
    scales: NDArray[np.float32],
    fixes: NDArray[np.int32] | None = None,
    *,
    unit: int = 1,
    k_block: int = 0,
    panel: int = 0,
) -> NDArray[np.uint8]:
    """Pack an integer weight for SparseInt8MatMul or SparseInt8Conv.

    Args:
        values: int8 of shape [K, N], K at most 65536; fours of rows that are all zero are left out.
        scales: float32 of shape [N], finite and not negative; of shape [] for one scale of all.
        fixes: int32 of shape [N]: a bias on the grid of the sums, or None.
        unit: Outputs whose fours are stored together: 1 for blocks of 1 x 4, 4 for blocks of 4 x 4.
        k_block: Rows of a block, a multiple of 4; the kernel keeps so many rows of the activations in L1. 0 takes the
            default of the unit.
        panel: Outputs of a panel, a multiple of 16 up to 1024; 0 takes the default.

    Returns:
        uint8 of shape [bytes], the same for the same arguments everywhere.

    Raises:
        KernelError: A type, shape or size is not as above.
    """
    scales = np.ascontiguousarray(np.broadcast_to(scales, values.shape[-1:])) if scales.ndim == 0 else scales
    fixes = np.zeros(values.shape[-1:], np.int32) if fixes is None else fixes
    _check(values, scales, fixes, unit)
    k, n = values.shape
    k_block = k_block or default_k_block(k, unit)
    panel = panel or default_panel(n, unit)
    if not 4 <= k_block <= MAX_K or k_block % 4 or not 16 <= panel <= 1024 or panel % 16:
        what = f"blocks of {k_block} x {panel} cannot be packed"
        raise KernelError(what, must="k_block must be a multiple of 4 up to 65536, panel one of 16 up to 1024.")
    padded = np.zeros((-(-k // 4) * 4, -(-n // 4) * 4), np.int8)
    padded[:k, :n] = values
    blocks, groups, indices, steps = _blocks(padded, n, unit, k_block, panel)
    width = padded.shape[1]
    sections = (
        np.pad(scales, (0, width - n)).astype("<f4"),
        np.pad(fixes, (0, width - n)).astype("<i4"),
        padded.sum(axis=0, dtype="<i4"),
        blocks,
        groups,
        indices,
        steps,
    )
    return _FORMAT.write(sections, (k, n, unit, k_block, panel, 0, len(steps)), (len(groups),))


def pack_sparse_int8_conv(
    values: NDArray[np.int8],
    scales: NDArray[np.float32],
    fixes: NDArray[np.int32] | None = None,
    *,
    group: int = 1,
    unit: int = 1,
    channels_last: bool = False,
) -> NDArray[np.uint8]:
    """Pack the integer weight of a convolution for SparseInt8Conv.

    Args:
        values: int8 of shape [N, channels / group, height, width].
        scales: float32 of shape [N] or [].
        fixes: int32 of shape [N] or None.
        group: Groups of channels; N is a multiple of it.
        unit: Outputs whose fours are stored together: 1 or 4.
        channels_last: Fours are of channels at one place of the window, instead of (channel, row, column) in order.

    Raises:
        KernelError: As `pack_sparse_int8`; or N is not a multiple of the groups.
    """
    n = values.shape[0] if values.ndim else 0
    if values.ndim != 4 or group < 1 or n % group:
        what = f"a weight of shape {list(values.shape)} in {group} groups cannot be packed"
        raise KernelError(what, must="It must have the shape [N, channels, height, width], N a multiple of the groups.")
    matrix = conv_matrix(values, channels_last=channels_last)
    scales = np.broadcast_to(scales, (n,)) if scales.ndim == 0 else scales
    if group == 1:
        return pack_sparse_int8(matrix, np.ascontiguousarray(scales), fixes, unit=unit)
    fixes = np.zeros(n, np.int32) if fixes is None else fixes
    _check(matrix, scales, fixes, unit)
    # Every group begins a panel of its own.
    each = n // group
    panel = default_panel(each, unit)
    begins = np.arange(group) * (-(-each // panel) * panel)
    places = (begins[:, None] + np.arange(each)).reshape(-1)
    width = int(places[-1]) + 1
    wide = np.zeros((matrix.shape[0], width), np.int8)
    wide[:, places] = matrix
    wide_scales, wide_fixes = np.zeros(width, np.float32), np.zeros(width, np.int32)
    wide_scales[places], wide_fixes[places] = scales, fixes
    return pack_sparse_int8(wide, wide_scales, wide_fixes, unit=unit, panel=panel)


def conv_matrix(values: NDArray[np.int8], *, channels_last: bool) -> NDArray[np.int8]:
    """Return the weight of a convolution [N, channels, height, width] as [K, N]."""
    ordered = values.transpose(0, 2, 3, 1) if channels_last else values
    return np.ascontiguousarray(ordered.reshape(values.shape[0], -1).T)


def default_k_block(k: int, unit: int) -> int:
    """Return into how many rows at most `pack_sparse_int8` cuts a weight of K rows."""
    most = 768 if unit == 1 else 4096
    blocks = -(-k // most)
    return -(-k // (4 * blocks)) * 4


def default_panel(n: int, unit: int) -> int:
    """Return how many outputs a panel of a weight of N outputs has."""
    del unit
    return min(256, -(-n // 16) * 16)


def stored_share(values: NDArray[np.int8], unit: int) -> float:
    """Return the share of the weights that the packed form stores, those that are zero in a stored block included."""
    k, n = values.shape
    filled = int(np.count_nonzero(_filled(values, unit)))
    places = int(-(-k // 4) * 4 * -(-n // unit) * unit)
    return filled * 4 * unit / places


def packed_bytes(values: NDArray[np.int8], unit: int) -> int:
    """Return about how many bytes `pack_sparse_int8` needs, a little too high."""
    n = int(values.shape[1])
    filled = int(np.count_nonzero(_filled(values, unit)))
    return filled * (4 * unit + 2) * 21 // 20 + 16 * n + 4096


def _filled(values: NDArray[np.int8], unit: int) -> NDArray[np.bool_]:
    k, n = values.shape
    padded = np.zeros((-(-k // 4) * 4, -(-n // unit) * unit), bool)
    padded[:k, :n] = values != 0
    return np.asarray(padded.reshape(padded.shape[0] // 4, 4, -1, unit).any(axis=(1, 3)))


def _check(values: NDArray[np.int8], scales: NDArray[np.float32], fixes: NDArray[np.int32], unit: int) -> None:
    if values.dtype != np.int8 or values.ndim != 2 or values.size == 0 or values.shape[0] > MAX_K:
        what = f"a weight of type {values.dtype} and shape {list(values.shape)} cannot be packed"
        raise KernelError(what, must=f"It must be int8 of shape [K, N], not empty, with K up to {MAX_K}.")
    n = values.shape[1]
    if scales.dtype != np.float32 or scales.shape != (n,) or not np.isfinite(scales).all() or (scales < 0).any():
        what = f"scales of type {scales.dtype} and shape {list(scales.shape)} cannot be packed"
        raise KernelError(what, must=f"They must be float32 of shape [{n}], finite and not negative.")
    if fixes.dtype != np.int32 or fixes.shape != (n,):
        what = f"a bias of type {fixes.dtype} and shape {list(fixes.shape)} cannot be packed"
        raise KernelError(what, must=f"It must be int32 of shape [{n}].")
    if unit not in UNITS:
        raise KernelError(f"units of {unit} outputs cannot be packed", must="A unit has 1 or 4 outputs.")


def _blocks(
    padded: NDArray[np.int8], n: int, unit: int, k_block: int, panel: int
) -> tuple[NDArray[np.void], NDArray[np.uint16], NDArray[np.uint16], NDArray[np.int8]]:
    """The sections of blocks, groups, indices and values. Weights come as [four, unit, output, k]."""
    group = 4 // unit
    filled = _filled(padded[:, : -(-n // unit) * unit], unit)
    fours = padded.reshape(padded.shape[0] // 4, 4, -1, unit).transpose(0, 2, 3, 1)
    records: list[NDArray[np.uint16]] = []
    indices: list[NDArray[np.uint16]] = []
    values: list[NDArray[np.int8]] = []
    starts = [(0, 0)]
    step = listed = 0
    for first in range(0, filled.shape[1], panel // unit):
        for top in range(0, filled.shape[0], k_block // 4):
            part = filled[top : top + k_block // 4, first : first + panel // unit]
            members, lengths = _grouped(part.sum(axis=0), group, everything=top == 0, missing=panel // unit)
            index, value = _steps(
                part, fours[top : top + k_block // 4, first : first + panel // unit], members, lengths
            )
            records.append(np.concatenate([lengths[:, None], members], axis=1).astype(np.uint16))
            indices.append(index)
            values.append(value)
            step, listed = step + int(lengths.sum()), listed + len(lengths)
            starts.append((step, listed))
    blocks = np.array(starts, _BLOCK)
    return blocks, np.concatenate(records), np.concatenate(indices), np.concatenate(values)


def _grouped(
    counts: NDArray[np.int64], group: int, *, everything: bool, missing: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Units that go together, [groups, group], the longest first, and how many steps each group has."""
    order = np.argsort(-counts, kind="stable")
    if not everything:
        order = order[counts[order] > 0]
    members = np.full((-(-len(order) // group), group), missing, np.int64)
    members.reshape(-1)[: len(order)] = order
    known = np.append(counts, np.zeros(missing + 1 - len(counts), np.int64))
    return members, known[members].max(axis=1, initial=0)


def _steps(
    filled: NDArray[np.bool_], fours: NDArray[np.int8], members: NDArray[np.int64], lengths: NDArray[np.int64]
) -> tuple[NDArray[np.uint16], NDArray[np.int8]]:
    """Indices and values of the groups one after another, interleaved step by step."""
    group, unit = members.shape[1], fours.shape[2]
    total = int(lengths.sum())
    indices = np.zeros((total, group), "<u2")
    values = np.zeros((total, group, unit, 4), np.int8)
    starts = np.concatenate([[0], np.cumsum(lengths)])[:-1]
    place = np.full(filled.shape[1], -1, np.int64)  # of a unit among all members
    flat = members.reshape(-1)
    real = np.flatnonzero(flat < filled.shape[1])
    place[flat[real]] = real
    unit_of, four_of = np.nonzero(filled.T)
    rank = np.arange(len(unit_of)) - np.searchsorted(unit_of, unit_of)
    at = starts[place[unit_of] // group] + rank if len(unit_of) else rank
    indices[at, place[unit_of] % group] = four_of
    values[at, place[unit_of] % group] = fours[four_of, unit_of]
    return indices, values


def unpack_sparse_int8(packed: NDArray[np.uint8]) -> Int8Weight:
    """Return the weight of packed bytes.

    Raises:
        KernelError: The bytes are not those of a packed weight of this version.
    """
    data = packed.tobytes()
    k, n, unit, k_block, panel, _, steps, *offsets, groups = _FORMAT.read(packed)
    group, k_blocks = 4 // unit, -(-k // k_block)
    blocks = np.frombuffer(data, _BLOCK, -(-n // panel) * k_blocks + 1, offsets[3])
    records = np.frombuffer(data, "<u2", groups * (1 + group), offsets[4]).reshape(groups, 1 + group).astype(np.int64)
    indices = np.frombuffer(data, "<u2", steps * group, offsets[5]).reshape(steps, group).astype(np.int64)
    values = np.frombuffer(data, np.int8, steps * 16, offsets[6]).reshape(steps, group, unit, 4)

    edges = blocks["group"].astype(np.int64)
    block_of_group = np.repeat(np.arange(len(blocks) - 1), edges[1:] - edges[:-1])
    group_of_step = np.repeat(np.arange(groups), records[:, 0])
    block = block_of_group[group_of_step][:, None]
    unit_of = records[group_of_step, 1:]
    output = block // k_blocks * panel + unit_of * unit
    four = block % k_blocks * (k_block // 4) + indices
    dense = np.zeros((-(-k // 4) * 4, -(-n // panel) * panel + unit), np.int8)
    present = (unit_of < panel // unit) & (values != 0).any(axis=(2, 3))
    rows = four[present][:, None, None] * 4 + np.arange(4)
    columns = output[present][:, None, None] + np.arange(unit)[:, None]
    dense[rows, columns] = values[present]
    scales = np.frombuffer(data, "<f4", n, offsets[0])
    fixes = np.frombuffer(data, "<i4", n, offsets[1])
    return Int8Weight(np.ascontiguousarray(dense[:k, :n]), scales.copy(), fixes.copy(), unit)
