"""Weights in external data files: mapped when they are read, streamed when they are written.

A model is untrusted input: nothing outside its folder is opened, and every description is checked against the file.
"""

from __future__ import annotations

import mmap
import os
import stat
import weakref
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import TYPE_CHECKING

import numpy as np

from graphopt.errors import ExternalDataError, ExternalDataEscapeError
from graphopt.graph import dtypes
from graphopt.graph.weights import CHUNK_BYTES, Array, Weight, check_dims, from_buffer

if TYPE_CHECKING:
    from collections.abc import Iterator

    from onnx import TensorProto


_MAP_BYTES = 1 << 20  # smaller weights are read: a mapping holds a file descriptor as long as its array lives


class DataFile:
    """One open external data file.

    It stays open as long as a weight needs it: a model that is saved over its own files keeps reading the old ones.
    """

    def __init__(self, path: Path, where: str) -> None:
        self.path = path
        try:
            # O_NONBLOCK: opening a pipe must not hang.
            self.fd = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0))
        except FileNotFoundError as error:
            raise ExternalDataError(
                f"external data file '{path.name}' does not exist",
                where=where,
                must=f"It must be in '{path.parent}'",
                do="Copy it beside the model.",
            ) from error
        except OSError as error:
            raise ExternalDataError(
                f"external data file '{path}' cannot be read: {error.strerror}", where=where
            ) from error
        weakref.finalize(self, os.close, self.fd)
        if not stat.S_ISREG(os.fstat(self.fd).st_mode):
            raise ExternalDataError(f"'{path.name}' is not a regular file", where=where, must="Data must be in a file")

    @property
    def size_bytes(self) -> int:
        """Present size of the file."""
        return os.fstat(self.fd).st_size


class ExternalWeight(Weight):
    """Values in an external data file; mapped into memory while they are read, streamed when they are written."""

    __slots__ = ("file", "length", "offset", "proto")

    def __init__(self, proto: TensorProto, file: DataFile, offset: int, length: int) -> None:
        super().__init__(proto.data_type, proto.dims)
        self.proto = proto
        self.file = file
        self.offset = offset
        self.length = length

    def _check_size(self) -> None:
        if self.offset + self.length > self.file.size_bytes:
            raise ExternalDataError(
                f"external data file '{self.file.path}' became shorter than {self.offset + self.length} bytes",
                where=f"tensor '{self.proto.name}'",
                must="The file must not change while the model is open",
            )

    def _decode(self) -> Array:
        if self.length == 0:
            return np.zeros(self.shape, self.dtype)
        self._check_size()
        if self.length < _MAP_BYTES:
            return from_buffer(b"".join(self.chunks()), self.onnx_dtype, self.shape)
        start = self.offset // mmap.ALLOCATIONGRANULARITY * mmap.ALLOCATIONGRANULARITY
        lead = self.offset - start
        try:
            mapped = mmap.mmap(self.file.fd, self.length + lead, offset=start, access=mmap.ACCESS_READ)
        except OSError:  # too many open files, or a file system without mapping
            return from_buffer(b"".join(self.chunks()), self.onnx_dtype, self.shape)
        return from_buffer(memoryview(mapped)[lead : lead + self.length], self.onnx_dtype, self.shape)

    def chunks(self) -> Iterator[bytes | memoryview]:
        """Yield the bytes of the file, without mapping it."""
        self._check_size()
        position, end = self.offset, self.offset + self.length
        while position < end:
            piece = os.pread(self.file.fd, min(CHUNK_BYTES, end - position), position)
            if not piece:
                self._check_size()
                raise ExternalDataError(f"external data file '{self.file.path}' cannot be read to its end")
            position += len(piece)
            yield piece


class DataFolder:
    """The folder of a model and the data files opened in it. Nothing outside the folder is ever opened."""

    def __init__(self, folder: Path | None) -> None:
        self.folder = folder
        self._files: dict[Path, DataFile] = {}

    def weight(self, proto: TensorProto) -> ExternalWeight:
        """Return the weight that an external TensorProto describes.

        Raises:
            ExternalDataError: The file is missing or too short, or offset or length make no sense.
            ExternalDataEscapeError: The file lies outside the folder.
        """
        where = f"tensor '{proto.name}'"
        entries = {entry.key: entry.value for entry in proto.external_data}
        if not all(isinstance(text, str) for pair in entries.items() for text in pair):
            raise ExternalDataError("the description of its external data is not UTF-8", where=where)
        location = entries.get("location", "")
        shape = check_dims(proto.dims, proto.name)
        needed = dtypes.packed_size_bytes(proto.data_type, shape)
        if dtypes.bits(proto.data_type) == 0:
            raise ExternalDataError(
                f"element type {proto.data_type} cannot be stored outside the model", where=where, must="Keep it inside"
            )
        file = self._open(location, where)
        offset = _whole_number(entries, "offset", 0, where)
        length = _whole_number(entries, "length", needed, where)
        if length != needed:
            raise ExternalDataError(
                f"length {length} does not fit dimensions {list(shape)}", where=where, must=f"They need {needed} bytes"
            )
        if offset + length > file.size_bytes:
            raise ExternalDataError(
                f"external data file '{location}' has {file.size_bytes} bytes, the tensor ends at {offset + length}",
                where=where,
                must="The file must hold the whole tensor",
                do="Copy the file again.",
            )
        return ExternalWeight(proto, file, offset, length)

    def _open(self, location: str, where: str) -> DataFile:
        if not location:
            raise ExternalDataError("its external data has no location", where=where, must="It must name a file")
        if self.folder is None:
            raise ExternalDataError(
                f"it keeps its data in '{location}', but the model was not read from a file",
                where=where,
                must="External data is found relative to the model's file",
                do="Pass the path of the model, or base=FOLDER.",
            )
        path = self._inside(location, where)
        if path not in self._files:
            self._files[path] = DataFile(path, where)
        return self._files[path]

    def _inside(self, location: str, where: str) -> Path:
        escape = ExternalDataEscapeError(
            f"it keeps its data in '{location}', outside the model's folder",
            where=where,
            must="External data must stay inside the folder of the model",
            do="Move the file beside the model and correct its location.",
        )
        if "\0" in location:
            raise ExternalDataError(f"location {location!r} is not a file name", where=where)
        for flavour in (PurePosixPath(location), PureWindowsPath(location)):
            if flavour.is_absolute() or flavour.drive or ".." in flavour.parts or location.startswith(("/", "\\")):
                raise escape
        assert self.folder is not None
        base = self.folder.resolve()
        path = (base / location).resolve()
        if not path.is_relative_to(base):
            raise escape
        return path


def _whole_number(entries: dict[str, str], key: str, default: int, where: str) -> int:
    text = entries.get(key)
    if text is None:
        return default
    if not (text.isascii() and text.isdigit()) or len(text) > 18:
        raise ExternalDataError(f"external data {key} '{text}' is not a size", where=where, must="It counts bytes")
    return int(text)
