"""Packed weights as bytes: what all their formats have alike, as ``kernels/base/blob.h`` reads it.

A header, then sections, each at a multiple of 64 bytes; all numbers are little-endian. A header begins with eight bytes
that name the format, its version (uint32), its own size (uint32) and that of all bytes (uint64). Fields of the format
follow, among them the offsets of the sections one after another. It ends with its FNV-1a hash of 64 bits.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from graphopt.errors import KernelError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

_ALIGNMENT: Final = 64
_COMMON: Final = struct.Struct("<8s2IQ")
_HASH: Final = struct.Struct("<Q")


@dataclass(frozen=True, slots=True)
class BlobFormat:
    """One format of packed weights.

    Attributes:
        magic: The eight bytes that it begins with.
        version: Of the format.
        fields: Those behind the common ones, as `struct` writes them, padding included.
        holds: What is packed, for messages: two words at most, the last one a noun.
    """

    magic: bytes
    version: int
    fields: str
    holds: str

    @property
    def header_bytes(self) -> int:
        """The size of the header."""
        return _COMMON.size + self._fields.size + _HASH.size

    @property
    def _fields(self) -> struct.Struct:
        return struct.Struct(f"<{self.fields}")

    def write(
        self, sections: Sequence[NDArray[Any]], before: Sequence[float], after: Sequence[float] = ()
    ) -> NDArray[np.uint8]:
        """Return sections behind their header.

        Args:
            sections: Arrays of little-endian numbers.
            before: Fields in front of the offsets of the sections.
            after: Fields behind those.
        """
        offsets: list[int] = []
        end = self.header_bytes
        for array in sections:
            start = -(-end // _ALIGNMENT) * _ALIGNMENT
            offsets.append(start)
            end = start + array.nbytes
        common = _COMMON.pack(self.magic, self.version, self.header_bytes, end)
        header = common + self._fields.pack(*before, *offsets, *after)
        packed = np.zeros(end, np.uint8)
        packed[: self.header_bytes] = np.frombuffer(header + _HASH.pack(_fnv1a(header)), np.uint8)
        for start, array in zip(offsets, sections, strict=True):
            packed[start : start + array.nbytes] = np.frombuffer(array.tobytes(), np.uint8)
        return packed

    def read(self, packed: NDArray[np.uint8]) -> tuple[Any, ...]:
        """Return the fields behind the common ones.

        Raises:
            KernelError: The bytes are not those of this format and version.
        """
        header = packed[: self.header_bytes].tobytes()
        if len(header) < self.header_bytes or not header.startswith(self.magic):
            raise KernelError(f"the bytes are not a packed {self.holds}", do=self._remedy)
        _, version, _, total = _COMMON.unpack_from(header)
        hashed, (value,) = header[: -_HASH.size], _HASH.unpack(header[-_HASH.size :])
        if version != self.version or total != packed.nbytes or value != _fnv1a(hashed):
            raise self.unreadable(packed)
        return self._fields.unpack_from(header, _COMMON.size)

    def unreadable(self, packed: NDArray[np.uint8]) -> KernelError:
        """Return the error that says that bytes of this format hold what this version of it does not have."""
        version = _COMMON.unpack_from(packed[: _COMMON.size].tobytes())[1]
        what = f"a packed {self.holds} of version {version} with {packed.nbytes} bytes cannot be read"
        return KernelError(what, do=self._remedy)

    @property
    def _remedy(self) -> str:
        return f"Pack the {self.holds.split()[-1]} again."


def _fnv1a(data: bytes) -> int:
    value = 0xCBF29CE484222325
    for byte in data:
        value = (value ^ byte) * 0x100000001B3 % (1 << 64)
    return value
