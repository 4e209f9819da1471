"""One member array of an .npz file, read row by row: memory holds one row, however large the file is."""

from __future__ import annotations

import zipfile
import zlib
from typing import IO, TYPE_CHECKING, Any

import numpy as np

from graphopt.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_SKIP_BYTES = 1 << 20


class StoredArray:
    """An array inside an .npz file: its type and shape are known, its rows are read when asked for.

    Attributes:
        name: Name of the array.
        dtype: Element type; never ``object``, since nothing is unpickled.
        shape: Size per axis.
    """

    def __init__(self, path: Path, member: str) -> None:
        self.path = path
        self.member = member
        self.name = member.removesuffix(".npy")
        with zipfile.ZipFile(path) as archive, archive.open(member) as stream:
            self.shape, self._fortran, self.dtype = _header(stream, self._where())
            stored = archive.getinfo(member).file_size - stream.tell()
        if self.dtype.hasobject:
            raise DataError(
                "the array holds Python objects",
                where=self._where(),
                must="Feeds are plain numbers, booleans or fixed-width strings.",
                do="Save it with an explicit dtype; nothing is ever unpickled.",
            )  # fmt: skip
        needed = self.dtype.itemsize * int(np.prod(self.shape, dtype=object))
        if stored != needed:
            raise DataError(
                f"the array of shape {list(self.shape)} needs {needed} bytes and the file has {stored}",
                where=self._where(),
                do="Write the file again.",
            )

    def whole(self) -> np.ndarray[Any, Any]:
        """Return the whole array."""
        with self._open() as stream:
            return self._shaped(self._read(stream, self.dtype.itemsize * int(np.prod(self.shape))), self.shape)

    def blocks(self, starts: Iterator[tuple[int, int]]) -> Iterator[np.ndarray[Any, Any]]:
        """Yield the rows ``first .. first + count`` of the first axis for each (first, count), which must ascend.

        A Fortran-ordered array has no contiguous rows and is held whole.
        """
        if self._fortran:
            array = self.whole()
            for first, count in starts:
                yield array[first : first + count]
            return
        row = self.dtype.itemsize * int(np.prod(self.shape[1:]))
        with self._open() as stream:
            position = 0
            for first, count in starts:
                skip = (first - position) * row
                while skip > 0:
                    skip -= len(self._read(stream, min(skip, _SKIP_BYTES)))
                yield self._shaped(self._read(stream, count * row), (count, *self.shape[1:]))
                position = first + count

    def _where(self) -> str:
        return f"{self.path}, array '{self.name}'"

    def _open(self) -> _Member:
        return _Member(self.path, self.member, self._where())

    def _read(self, stream: IO[bytes], size: int) -> bytes:
        try:
            data = stream.read(size)
        except (OSError, EOFError, zipfile.BadZipFile, zlib.error) as error:
            raise DataError(f"the file is damaged: {error}", where=self._where(), do="Write the file again.") from error
        if len(data) != size:
            raise DataError("the file ends too early", where=self._where(), do="Write the file again.")
        return data

    def _shaped(self, data: bytes, shape: tuple[int, ...]) -> np.ndarray[Any, Any]:
        return np.frombuffer(data, self.dtype).reshape(shape, order="F" if self._fortran else "C")


class _Member:
    """The payload of one member, as a context manager that closes the archive too."""

    def __init__(self, path: Path, member: str, where: str) -> None:
        self._archive = zipfile.ZipFile(path)
        self._stream = self._archive.open(member)
        _header(self._stream, where)

    def __enter__(self) -> IO[bytes]:
        return self._stream

    def __exit__(self, *_: object) -> None:
        self._stream.close()
        self._archive.close()


def open_npz(path: Path) -> dict[str, StoredArray]:
    """Return the arrays of an .npz file by name, reading only their headers.

    Raises:
        DataError: The file is missing, is no .npz, is damaged, or holds pickled objects.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            members = [name for name in archive.namelist() if name.endswith(".npy")]
        return {array.name: array for array in (StoredArray(path, member) for member in members)}
    except FileNotFoundError as error:
        raise DataError("there is no such file", where=str(path), do="Check the path.") from error
    except (zipfile.BadZipFile, OSError, EOFError, RuntimeError, NotImplementedError, zlib.error) as error:
        raise DataError(
            f"the file cannot be read: {error}",
            where=str(path),
            must="Feeds are an .npz file as numpy.savez writes it.",
        ) from error


def _header(stream: IO[bytes], where: str) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    try:
        version = np.lib.format.read_magic(stream)
        if version == (1, 0):
            return np.lib.format.read_array_header_1_0(stream)
        if version == (2, 0):
            return np.lib.format.read_array_header_2_0(stream)
    except (ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise DataError(
            f"the array has no readable header: {error}", where=where, do="Write the file again."
        ) from error
    raise DataError(f"the array is in format {version}", where=where, must="Formats 1.0 and 2.0 of .npy are read.")
