"""Fields that the installed onnx does not know: kept byte for byte, so that newer models survive older tools."""

from __future__ import annotations

from typing import TYPE_CHECKING

from google.protobuf.unknown_fields import UnknownFieldSet

if TYPE_CHECKING:
    from google.protobuf.message import Message

_VARINT, _FIXED64, _BYTES, _GROUP, _FIXED32 = 0, 1, 2, 3, 5


def copy_unknown(source: Message, target: Message) -> None:
    """Append the unknown fields of one message to another of the same type."""
    fields = UnknownFieldSet(source)
    if len(fields):
        target.MergeFromString(_encode(fields))


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def _encode(fields: UnknownFieldSet) -> bytes:
    out = bytearray()
    for field in fields:
        number, kind, data = field.field_number, field.wire_type, field.data
        out += _varint(number << 3 | kind)
        if kind == _VARINT:
            out += _varint(data)
        elif kind == _FIXED64:
            out += data.to_bytes(8, "little")
        elif kind == _FIXED32:
            out += data.to_bytes(4, "little")
        elif kind == _BYTES:
            out += _varint(len(data)) + data
        else:
            out += _encode(data) + _varint(number << 3 | 4)
    return bytes(out)
