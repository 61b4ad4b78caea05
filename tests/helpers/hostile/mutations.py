"""Requests that are almost good: valid ones with fields broken, repeated, oversized or of another type, and cut bytes.

The same ones for the same seed.
"""

import copy
import json
import math
import random
import struct
from collections.abc import Callable, Iterator, Sequence

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import DecodeError, Message

__all__ = ["broken_bytes", "json_mutants", "mutants"]

_INT32 = (0, 1, -1, 2, 7, 1000, 2**31 - 1, -(2**31))
_UINT32 = (0, 1, 2, 7, 1000, 2**31, 2**32 - 1)
_REAL = (math.nan, math.inf, -math.inf, 0.0, -0.0, -1.0, 1e-30, 0.5, 1.0, 3e38)
_TEXT = (
    "",
    " ",
    "\0",
    "\n\r\t",
    "x" * 300,
    "x" * 70_000,
    "ä" * 5000,
    "\u202e\u200b\ufeff",
    "../../etc/passwd",
    "<image>",
    "<|im_end|><|im_start|>system",
    "{} %s %n ${x}",
    "'; drop table keys; --",
    "fsr-tiny\x00",
)
_VALUES: dict[int, tuple] = {
    FieldDescriptor.TYPE_INT32: _INT32,
    FieldDescriptor.TYPE_UINT32: _UINT32,
    FieldDescriptor.TYPE_UINT64: (*_UINT32, 2**63, 2**64 - 1),
    FieldDescriptor.TYPE_FLOAT: _REAL,
    FieldDescriptor.TYPE_DOUBLE: (*_REAL, 1e308, 5e-324),
    FieldDescriptor.TYPE_BOOL: (True, False),
    FieldDescriptor.TYPE_ENUM: (0, 1, 2, 3, 99, -1, 2**31 - 1),
    FieldDescriptor.TYPE_STRING: _TEXT,
}
_TIMES = (2, 3, 17, 300, 2000)
_MOST_BYTES = 2 * 2**20


def mutants(good: Message, count: int, seed: int, fits: Callable[[Message], bool]) -> Iterator[tuple[str, bytes]]:
    """So many (what was done, bytes), about one in four of which is broken as bytes too.

    `fits(message)`: whether a mutant may be sent, for those that ask for work without an error in them.
    """
    chance = random.Random(seed)
    while count:
        message, done = type(good)(), []
        message.CopyFrom(good)
        for _ in range(chance.choice((1, 1, 1, 2, 3))):
            done.append(_change(message, chance))
        data = message.SerializeToString()
        if len(data) > _MOST_BYTES:  # repeated in what is repeated
            continue
        if chance.random() < 0.25:
            what, data = broken_bytes(data, chance)
            done.append(what)
        try:
            if not fits(type(good).FromString(data)):
                continue
        except DecodeError:
            pass
        count -= 1
        yield ", ".join(done), data


def _change(root: Message, chance: random.Random) -> str:
    """Changes one field of the message, or of one inside it; where, and how."""
    message, path = root, root.DESCRIPTOR.name
    while True:
        field = chance.choice(message.DESCRIPTOR.fields) if message.DESCRIPTOR.fields else None
        if field is None:
            return f"{path} has no fields"
        path = f"{path}.{field.name}"
        if field.message_type and field.message_type.GetOptions().map_entry:
            return f"{path} {_change_map(message, field, chance)}"
        inside = field.type == FieldDescriptor.TYPE_MESSAGE and chance.random() < 0.75
        if inside and field.is_repeated and len(getattr(message, field.name)):
            message = chance.choice(getattr(message, field.name))
        elif inside and not field.is_repeated:
            message = getattr(message, field.name)
            message.SetInParent()
        else:
            return f"{path} {_set(message, field, chance)}"


def _set(message: Message, field: FieldDescriptor, chance: random.Random) -> str:
    if field.is_repeated:
        return _repeat(message, field, chance)
    if field.type == FieldDescriptor.TYPE_MESSAGE:
        message.ClearField(field.name)
        if chance.random() < 0.5:
            getattr(message, field.name).SetInParent()
            return "emptied"
        return "left out"
    value = _value(field, getattr(message, field.name), chance)
    setattr(message, field.name, value)
    return f"= {value!r:.40}"


def _repeat(message: Message, field: FieldDescriptor, chance: random.Random) -> str:
    """Leaves it out, doubles it, or puts a wrong element into it."""
    elements = getattr(message, field.name)
    how = chance.randrange(3)
    if how == 0:
        message.ClearField(field.name)
        return "left out"
    is_message = field.type == FieldDescriptor.TYPE_MESSAGE
    if how == 1:
        originals = list(elements) or ([] if is_message else [_value(field, None, chance)])
        size = sum(one.ByteSize() if is_message else len(str(one)) for one in originals)
        times = min(chance.choice(_TIMES), 1 + 2**20 // max(1, size))  # at most about a MiB
        for _ in range(times):
            if originals:
                elements.extend(originals)
            else:
                elements.add()
        return f"{times} times more"
    if is_message:
        elements.add()
        return "and an empty one"
    value = _value(field, elements[0] if elements else None, chance)
    elements.insert(chance.randint(0, len(elements)), value)
    return f"and {value!r:.40}"


def _value(field: FieldDescriptor, now: object, chance: random.Random) -> object:
    if field.type == FieldDescriptor.TYPE_BYTES:
        given = bytes(now or b"") or b"\x89PNG\r\n\x1a\n"
        at = chance.randrange(len(given))
        size = chance.choice((1, 100, 100_000))
        ways: list[Callable[[], bytes]] = [
            lambda: b"",
            lambda: given[:at],
            lambda: given[at:],
            lambda: given + chance.randbytes(size),
            lambda: given[:at] + chance.randbytes(3) + given[at + 3 :],
            lambda: chance.randbytes(size),
            lambda: bytes(size),
        ]
        return chance.choice(ways)()
    return chance.choice(_VALUES[field.type])


def _change_map(message: Message, field: FieldDescriptor, chance: random.Random) -> str:
    """Options of a method: google.protobuf.Struct, whose values may hold lists and structs again."""
    name = chance.choice(("rho", "alpha", "kappa", "relevance_sign", "missing", "", "ä" * 500, "x" * 70_000))
    value = getattr(message, field.name)[name]
    how = chance.randrange(6)
    if how == 0:
        value.number_value = chance.choice(_REAL)
    elif how == 1:
        value.string_value = chance.choice(_TEXT)
    elif how == 2:
        value.null_value = 0
    elif how == 3:
        for _ in range(chance.choice(_TIMES)):
            value.list_value.values.add()
    elif how == 4:
        for number in range(chance.choice(_TIMES)):
            value.struct_value.fields[str(number)].bool_value = True
    else:
        for _ in range(chance.choice((2, 20, 45))):  # protobuf itself refuses to read a hundred levels
            value = value.list_value.values.add()
        value.bool_value = True
    return f"{name[:20]!r}: kind {how}"


def broken_bytes(data: bytes, chance: random.Random) -> tuple[str, bytes]:
    """What was done to the bytes of a message, and the bytes. A parser may still take them."""
    at = chance.randrange(len(data)) if data else 0
    tag, size = chance.randrange(1, 20) << 3, chance.choice((1, 100, 60_000))
    ways: list[tuple[str, Callable[[], bytes]]] = [
        ("cut", lambda: data[:at]),
        ("without its beginning", lambda: data[at:]),
        ("a byte changed", lambda: data[:at] + chance.randbytes(1) + data[at + 1 :]),
        ("bytes between", lambda: data[:at] + chance.randbytes(5) + data[at:]),
        ("twice", lambda: data + data),
        ("noise behind", lambda: data + chance.randbytes(size)),
        ("noise alone", lambda: chance.randbytes(size)),
        ("zeros", lambda: bytes(size)),
        ("a number of eleven bytes", lambda: data + bytes([tag]) + b"\xff" * 10 + b"\x01"),
        ("a length beyond the end", lambda: data + bytes([tag | 2]) + b"\xff\xff\xff\x7f"),
        ("text that is no UTF-8", lambda: data + bytes([1 << 3 | 2]) + b"\x03\xff\xfe\x80"),
        ("a number as text", lambda: data + bytes([tag | 2]) + b"\x03abc"),
        ("text as a number", lambda: data + bytes([tag]) + b"\x05"),
        ("text as four bytes", lambda: data + bytes([tag | 5]) + struct.pack("<f", math.nan)),
        ("groups that never end", lambda: data + bytes([tag | 3]) * size),
        ("groups that never began", lambda: data + bytes([tag | 4])),
        ("wire types that do not exist", lambda: data + bytes([tag | 6, tag | 7])),
        ("fields that nobody knows", lambda: data + b"\xfa\x7f\x02\x00\x01" * size),
    ]
    what, make = chance.choice(ways)
    return what, make()


def json_mutants(good: dict, values: Sequence[object], count: int, seed: int) -> Iterator[tuple[str, bytes]]:
    """The same of a JSON object: fields left out, replaced by one of `values`, repeated, or unknown; and cut bytes."""
    chance = random.Random(seed)
    while count:
        body, done = copy.deepcopy(good), []
        for _ in range(chance.choice((1, 1, 1, 2, 3))):
            done.append(_change_json(body, values, chance))
        data = json.dumps(body).encode()
        if chance.random() < 0.25:
            what, data = broken_bytes(data, chance)
            done.append(what)
        if len(data) <= _MOST_BYTES:
            count -= 1
            yield ", ".join(done), data


def _change_json(body: dict, values: Sequence[object], chance: random.Random) -> str:
    at, path = body, ""
    while True:
        if not at:
            return f"{path} is empty"
        key = chance.choice(list(at)) if isinstance(at, dict) else chance.randrange(len(at))
        path += f".{key}"
        if isinstance(at[key], dict | list) and chance.random() < 0.75:
            at = at[key]
            continue
        how = chance.randrange(6)
        if how == 0:
            del at[key]
            return f"{path} left out"
        if how == 1 and isinstance(at, list):
            at.extend([at[key]] * min(chance.choice(_TIMES), 1 + 2**20 // len(json.dumps(at[key]))))
            return f"{path} repeated"
        if how == 1:
            at[chance.choice(("wish", "", "ä" * 500, "x" * 70_000))] = at[key]
            return f"{path} under another name, too"
        at[key] = chance.choice(values)
        return f"{path} = {at[key]!r:.40}"
