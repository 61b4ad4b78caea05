"""A protobuf message from its bytes, with a bound on its fields: what a parser makes of them can be large.

Two bytes are an empty message in a list, and 40 bytes of memory or more once they are parsed. So the fields are counted
before. This is own code because protobuf's parsers bound the depth of a message and nothing else.
"""

from __future__ import annotations

from functools import cache
from typing import TypeVar

from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import DecodeError, Message

from fsr.common.errors import InvalidRequest

__all__ = ["FIXED64", "LENGTH", "MAX_FIELDS", "VARINT", "parse_message", "read_varint", "tag_of"]

MAX_FIELDS = 2**14  # of a message to a replica: far more than a gateway lets through
_MAX_PACKED_BYTES = 8 * 2**20  # of all lists of numbers, which take four to eight times as much once they are parsed
# How a field's value is written: https://protobuf.dev/programming-guides/encoding/#structure
VARINT, FIXED64, LENGTH, _GROUP_START, _GROUP_END, _FIXED32 = range(6)

_Message = TypeVar("_Message", bound=Message)


def parse_message(kind: type[_Message], data: bytes, max_fields: int = MAX_FIELDS) -> _Message:
    """The message in `data`. Raises InvalidRequest if there is none, or if it has more than `max_fields` fields, those
    of the messages in it too."""
    try:
        _check_fields(data, kind.DESCRIPTOR, max_fields)  # type: ignore[arg-type]  # the stubs know two Descriptors
        return kind.FromString(data)
    except (DecodeError, IndexError) as error:
        remedy = "check the client, and that it sends no message of another rpc"
        raise InvalidRequest(f"request: cannot be read as {kind.DESCRIPTOR.name}; {remedy}") from error


def _check_fields(data: bytes, kind: Descriptor, most: int) -> None:
    """Raises InvalidRequest, which names the outermost field, and IndexError where the bytes end too early."""
    to_visit = [("", kind, 0, len(data))]
    count = packed = 0
    while to_visit:
        outermost, kind, at, end = to_visit.pop()
        messages, numbers = _fields_of(kind)
        while at < end:
            tag, at = read_varint(data, at)
            number, wire_type = tag >> 3, tag & 7
            count += 1
            if count > most:
                field = outermost or _name(kind, number)
                raise InvalidRequest(f"{field}: the request has more than {most} fields with it; send fewer")
            if wire_type == LENGTH:
                length, at = read_varint(data, at)
                if number in messages:
                    to_visit.append((outermost or _name(kind, number), messages[number], at, at + length))
                elif number in numbers:
                    packed += length
                    if packed > _MAX_PACKED_BYTES:
                        field = outermost or _name(kind, number)
                        size = f"more than {_MAX_PACKED_BYTES} bytes of numbers"
                        raise InvalidRequest(f"{field}: the request has {size} with it; send fewer")
                at += length
            elif wire_type == VARINT:
                _, at = read_varint(data, at)
            elif wire_type in (_FIXED32, FIXED64):
                at += 4 if wire_type == _FIXED32 else 8
            elif wire_type not in (_GROUP_START, _GROUP_END):
                raise DecodeError(f"wire type {wire_type}")
        if at > end:
            raise DecodeError("a field is longer than its message")


def read_varint(data: bytes, at: int) -> tuple[int, int]:
    """The number at a position, and the position behind it."""
    byte = data[at]
    if byte < 0x80:
        return byte, at + 1
    value = byte & 0x7F
    for i in range(1, 10):
        byte = data[at + i]
        value |= (byte & 0x7F) << 7 * i
        if byte < 0x80:
            return value, at + i + 1
    raise DecodeError("a number of more than ten bytes")


def tag_of(number: int, wire_type: int) -> bytes:
    """What stands before a field's value. `number` is below 16, so it takes one byte."""
    return bytes([number << 3 | wire_type])


@cache
def _fields_of(kind: Descriptor) -> tuple[dict[int, Descriptor], frozenset[int]]:
    """By their numbers: the fields that are messages, and the lists of numbers."""
    fields = kind.fields_by_number
    messages = {number: field.message_type for number, field in fields.items() if field.message_type is not None}
    lists = {
        number
        for number, field in fields.items()
        if field.is_repeated and field.cpp_type not in (FieldDescriptor.CPPTYPE_MESSAGE, FieldDescriptor.CPPTYPE_STRING)
    }
    return messages, frozenset(lists)


def _name(kind: Descriptor, number: int) -> str:
    """Of a field; `request` for one that the message does not have."""
    field = kind.fields_by_number.get(number)
    return "request" if field is None else field.name
