"""Files: atomic replacement, and weights streamed into an external data file."""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import onnx
from onnx import TensorProto

from graphopt.errors import OutputExistsError, WriteError
from graphopt.graph import dtypes
from graphopt.graph.external import ExternalWeight
from graphopt.graph.messages import tensor_head, tensor_inline
from graphopt.graph.read import LIMIT_BYTES
from graphopt.graph.weights import SparseWeight
from graphopt.graph.write import adopt_constants, build, serialise, too_large

if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import BinaryIO

    from graphopt.graph.model import Model
    from graphopt.graph.tensors import Constant

AUTO_LIMIT_BYTES = 1_500_000_000
SMALL_BYTES = 1024  # stays in the model
_ALIGN = 64
_LARGE_BYTES = 1 << 20
_CHECKSUM = "checksum"
_LARGE_ALIGN = 4096  # a page: may be mapped into memory as it is


def save(model: Model, path: str | Path, *, external: str | None, force: bool) -> None:
    """Write a model; see graphopt.graph.write.write_model."""
    target = Path(path)
    if not force and target.exists():
        raise OutputExistsError(f"'{target}' exists", do="Choose another name, or force.")
    adopt_constants(model)
    constants = [c for g in model.graphs() for c in g.initializers]
    size = sum(c.nbytes for c in constants)
    if external == "auto":
        outside = size > AUTO_LIMIT_BYTES or any(isinstance(c.weight, ExternalWeight) for c in constants)
        external = f"{target.name}.data" if outside else None
    if external is None and size > LIMIT_BYTES:
        raise too_large(size)
    if external is not None and (
        Path(external).name != external or external in {"", ".", ".."} or external == target.name
    ):
        raise WriteError(
            f"'{external}' cannot be the data file", where=str(target), must="It is a file name beside the model"
        )
    try:
        _write(model, target, external)
    except OSError as error:
        raise WriteError(
            f"it cannot be written: {error.strerror or error}",
            where=str(target),
            must="Nothing was changed",
            do="Check the free space and the permissions of the folder.",
        ) from error


def _write(model: Model, target: Path, external: str | None) -> None:
    with Staging() as staging:
        if external is None:
            data = serialise(build(model, tensor_inline))
        else:
            with staging.file(target.parent / external) as stream:
                writer = _DataWriter(stream, external)
                writer.hashed = any(_has_checksum(c) for g in model.graphs() for c in g.initializers)
                proto = build(model, writer.tensor)
                writer.complete(proto)
            data = serialise(proto)
        with staging.file(target) as stream:
            view = memoryview(data)
            for start in range(0, len(view), 8 << 20):
                stream.write(view[start : start + (8 << 20)])


def _has_checksum(constant: Constant) -> bool:
    weight = constant.weight
    return isinstance(weight, ExternalWeight) and any(e.key == _CHECKSUM for e in weight.proto.external_data)


class Staging:
    """Several files that appear together: written under other names, renamed when all are complete.

    If anything raises, KeyboardInterrupt included, the folder is as it was before.
    """

    def __init__(self) -> None:
        self._staged: list[tuple[Path, Path]] = []

    def __enter__(self) -> Staging:
        return self

    @contextlib.contextmanager
    def file(self, target: Path) -> Iterator[BinaryIO]:
        """Open a file that becomes ``target`` in the end."""
        handle, name = tempfile.mkstemp(prefix=f".{target.name}.", suffix=".part", dir=target.parent)
        self._staged.append((Path(name), target))
        with os.fdopen(handle, "wb") as stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())

    def __exit__(self, kind: type[BaseException] | None, value: object, traceback: object) -> None:
        if kind is not None:
            self._discard()
            return
        try:
            self._publish()
        except BaseException:
            self._discard()
            raise

    def _publish(self) -> None:
        backups: list[tuple[Path, Path | None]] = []
        mask = os.umask(0)
        os.umask(mask)
        try:
            for staged, target in self._staged:
                backup = None
                if target.exists():
                    staged.chmod(target.stat().st_mode & 0o7777)
                    backup = staged.with_suffix(".old")
                    _duplicate(target, backup)
                else:
                    staged.chmod(0o666 & ~mask)
                backups.append((target, backup))
                staged.replace(target)
        except BaseException:
            for (staged, target), (_, backup) in zip(self._staged, backups, strict=False):
                if backup is not None and backup.exists():
                    backup.replace(target)
                elif backup is None and not staged.exists():
                    target.unlink(missing_ok=True)
            raise
        for _, backup in backups:
            if backup is not None:
                backup.unlink()
        for folder in {target.parent for _, target in self._staged}:
            _sync_folder(folder)

    def _discard(self) -> None:
        for staged, _ in self._staged:
            for leftover in (staged, staged.with_suffix(".old")):
                leftover.unlink(missing_ok=True)


def _duplicate(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError:  # a file system without hard links
        shutil.copy2(source, target)


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


class _DataWriter:
    """Streams weights into the data file and describes them."""

    def __init__(self, stream: BinaryIO, location: str) -> None:
        self.stream = stream
        self.location = location
        self.position = 0
        self.digest = hashlib.sha1(usedforsecurity=False)  # what ONNX calls the checksum of a data file
        self.hashed = False

    def tensor(self, constant: Constant) -> onnx.TensorProto | onnx.SparseTensorProto:
        """Return the message of an initializer, its values written to the data file if they are large."""
        weight = constant.weight
        if weight.onnx_dtype == dtypes.STRING or weight.nbytes < SMALL_BYTES or isinstance(weight, SparseWeight):
            return tensor_inline(constant)
        align = _LARGE_ALIGN if weight.nbytes >= _LARGE_BYTES else _ALIGN
        self._write(bytes(-self.position % align))
        offset = self.position
        for chunk in weight.chunks():
            self._write(chunk)
        proto = tensor_head(constant)
        proto.data_location = TensorProto.EXTERNAL
        entries = {"location": self.location, "offset": str(offset), "length": str(self.position - offset)}
        for key, value in entries.items():
            proto.external_data.add(key=key, value=value)
        if _has_checksum(constant):
            proto.external_data.add(key=_CHECKSUM)
        return proto

    def _write(self, data: Any) -> None:
        self.stream.write(data)
        if self.hashed:
            self.digest.update(data)
        self.position += len(data)

    def complete(self, proto: onnx.ModelProto) -> None:
        """Put the checksum of the whole file where tensors had one before, in bodies too."""
        if not self.hashed:
            return
        graphs = [proto.graph]
        while graphs:
            graph = graphs.pop()
            for tensor in graph.initializer:
                for entry in tensor.external_data:
                    if entry.key == _CHECKSUM:
                        entry.value = self.digest.hexdigest()
            graphs.extend(a.g for node in graph.node for a in node.attribute if a.HasField("g"))
