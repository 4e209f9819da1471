"""Holds activations: in memory as far as that goes, in a temporary file beyond."""

from __future__ import annotations

import shutil
import tempfile
from dataclasses import dataclass
from typing import IO, TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class Spilled:
    """An array that waits in a file.

    Attributes:
        dtype: Its element type.
        shape: Its shape.
    """

    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    file: IO[bytes]
    offset: int

    @property
    def nbytes(self) -> int:
        """Bytes of the array."""
        return int(np.prod(self.shape, dtype=np.int64)) * self.dtype.itemsize

    def load(self) -> NDArray[Any]:
        """Return the array."""
        self.file.seek(self.offset)
        return np.frombuffer(bytearray(self.file.read(self.nbytes)), self.dtype).reshape(self.shape)


class Store:
    """Takes arrays and accounts for what it holds.

    Args:
        memory: Bytes held in memory.
        disk: Bytes held in temporary files; half of what is free there if that is less.
    """

    def __init__(self, memory: int, disk: int) -> None:
        self._memory = memory
        self._disk = disk
        self._file: IO[bytes] | None = None

    def turn(self) -> None:
        """Begin a new file; the old one goes when no array in it is held any more."""
        self._file = None

    def put(self, array: NDArray[Any]) -> NDArray[Any] | Spilled | None:
        """Return what stands for the array from now on, or None where there is no room."""
        if array.nbytes <= self._memory:
            self._memory -= array.nbytes
            return array
        if array.dtype.hasobject or array.nbytes > self._disk:
            return None
        try:
            return self._spill(array)
        except OSError:  # no room or no folder for temporary files: whoever asks must do without
            return None

    def drop(self, held: NDArray[Any] | Spilled) -> None:
        """Account for an array that is no longer held."""
        if isinstance(held, Spilled):
            self._disk += held.nbytes
        elif isinstance(held, np.ndarray):
            self._memory += held.nbytes

    def _spill(self, array: NDArray[Any]) -> Spilled | None:
        if self._file is None:
            self._file = tempfile.TemporaryFile()  # noqa: SIM115 - lives as long as arrays in it are held
        if shutil.disk_usage(tempfile.gettempdir()).free < 2 * array.nbytes:
            return None
        offset = self._file.seek(0, 2)
        self._file.write(np.ascontiguousarray(array).tobytes())
        self._disk -= array.nbytes
        return Spilled(array.dtype, array.shape, self._file, offset)
