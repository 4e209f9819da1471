"""The compiled hot loop of exact OBS: which weights go one after another, and what each costs.

The library is built when graphopt is installed and lies beside the kernels; its sources are ``kernels/obs``.
"""

from __future__ import annotations

import ctypes
import os
import sys
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

import graphopt
from graphopt.errors import KernelError

if TYPE_CHECKING:
    from numpy.typing import NDArray

_NAMES = {"win32": "graphopt_solvers.dll", "darwin": "libgraphopt_solvers.dylib"}
_REBUILD = "Run `make kernels` in a checkout, or reinstall graphopt."
_MESSAGE_BYTES = 512


def solver_library() -> Path:
    """Return the path of the library of solvers that belongs to this installation.

    Raises:
        KernelError: The library is not there.
    """
    name = _NAMES.get(sys.platform, "libgraphopt_solvers.so")
    places = [Path(root) / "lib" / name for root in graphopt.__path__]
    for place in places:
        if place.exists():
            return place
    raise KernelError(
        "the library of solvers is missing",
        where=", ".join(map(str, places)),
        must="It is built when graphopt is installed.",
        do=_REBUILD,
    )


def call_path(
    weight: NDArray[np.float64],
    inverse: NDArray[np.float64],
    *,
    group_rows: int,
    block: int,
    keep: int,
    of: int,
    steps: int,
    threads: int,
    library: Path | None = None,
) -> tuple[NDArray[np.int32], NDArray[np.float64]]:
    """Return the order in which blocks go and what each costs, [ceil(R / group_rows), steps] each.

    Args:
        weight: W, [R, C].
        inverse: Inverse of H, [C, C], positive definite.
        group_rows: Rows that lose their blocks together.
        block: Columns of a block; the last one may be narrower.
        keep: Of `of` blocks side by side so many stay at least.
        of: 0 where any block may go.
        steps: Blocks that go in each group of rows.
        threads: Threads that share the groups of rows; the result does not depend on it.
        library: The library to call; that of this installation by default.

    Raises:
        KernelError: The library is missing, does not load, or refuses the sizes.
    """
    rows, columns = weight.shape
    if inverse.shape != (columns, columns):
        raise KernelError(f"the inverse has the shape {inverse.shape}", must=f"It must be ({columns}, {columns}).")
    given, inverted = np.ascontiguousarray(weight, np.float64), np.ascontiguousarray(inverse, np.float64)
    groups = -(-rows // max(1, group_rows))
    order, losses = np.empty((groups, steps), np.int32), np.empty((groups, steps))
    message = ctypes.create_string_buffer(_MESSAGE_BYTES)
    sizes = (rows, columns, group_rows, block, keep, of, steps, max(1, threads))
    pointers = (order.ctypes.data, losses.ctypes.data)
    entry = _entry(os.fspath(library or solver_library()))
    if entry(given.ctypes.data, inverted.ctypes.data, *sizes, *pointers, message, _MESSAGE_BYTES):
        raise KernelError(f"the solver refused a [{rows}, {columns}] matrix: {message.value.decode()}")
    return order, losses


@cache
def _entry(path: str) -> Any:
    try:
        entry = ctypes.CDLL(path).graphopt_obs_path
    except (OSError, AttributeError) as cause:
        what = f"the library of solvers does not load ({cause})"
        raise KernelError(what, where=path, must="It must be built for this platform.", do=_REBUILD) from cause
    entry.restype = ctypes.c_int
    pointer, size = ctypes.c_void_p, ctypes.c_uint64
    entry.argtypes = [pointer, pointer, *[size] * 8, pointer, pointer, ctypes.c_char_p, ctypes.c_size_t]
    return entry
