"""What Python's protobuf hides or refuses, kept byte for byte: unknown fields, strings that are not UTF-8."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from google.protobuf.unknown_fields import UnknownFieldSet

if TYPE_CHECKING:
    from collections.abc import Iterable

    from google.protobuf.message import Message

_VARINT, _FIXED64, _BYTES, _GROUP, _FIXED32 = 0, 1, 2, 3, 5


def copy_unknown(source: Message, target: Message) -> None:
    """Append the unknown fields of one message to another of the same type."""
    fields = UnknownFieldSet(source)
    if len(fields):
        target.MergeFromString(_encode(fields))


def set_text(message: Message, field: str, value: str | bytes) -> None:
    """Set a string field; to bytes that are not UTF-8 too, which ONNX files may hold and Python cannot assign."""
    if isinstance(value, str):
        setattr(message, field, value)
        return
    number = message.DESCRIPTOR.fields_by_name[field].number
    message.MergeFromString(_varint(number << 3 | _BYTES) + _varint(len(value)) + value)


def text_of(value: str | bytes) -> str:
    """Return a string field as text, with what is not UTF-8 replaced."""
    return value if isinstance(value, str) else value.decode("utf-8", "replace")


def properties(entries: Iterable[Any]) -> dict[str, str]:
    """Return key-value entries (``metadata_props``) as a dict."""
    return {text_of(entry.key): text_of(entry.value) for entry in entries}


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
