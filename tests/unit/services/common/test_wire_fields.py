"""Messages from their bytes, with a bound on what is in them."""

import pytest
from google.protobuf.struct_pb2 import Struct
from hypothesis import given
from hypothesis import strategies as st

from fsr.common.errors import InvalidRequest
from fsr.common.wire.wire_fields import parse_message
from fsr.v1 import decoder_pb2, gateway_pb2, types_pb2


def request():
    """Every kind of field: numbers of both sizes, texts, lists, messages in messages, a map."""
    message = gateway_pb2.GenerateRequest(model="m" * 300, explain=True)
    turn = message.messages.add(role=types_pb2.ROLE_USER)
    turn.parts.add(image=0)
    turn.parts.add(text="why?")
    message.images.add(frames=[b"x" * 200, b"y"], frames_per_second=2.5)
    message.sampling.temperature = 0.5
    message.sampling.seed = 2**63
    message.method.options.update({"rho": 0.5, "deep": {"list": [1, "two", None, True, []]}})
    return message


def fields_of(message):
    """So many, by protobuf's own reflection."""
    count = 0
    for field, value in message.ListFields():
        if field.message_type is not None and field.message_type.GetOptions().map_entry:
            count += sum(2 + 1 + fields_of(inner) for inner in value.values())  # entry, key, value, and what is in it
            continue
        for one in value if field.is_repeated else [value]:
            count += 1 + (fields_of(one) if field.message_type is not None else 0)
    return count


def test_message_when_its_fields_are_just_within_the_bound_is_read():
    message = request()
    count = fields_of(message)
    assert parse_message(gateway_pb2.GenerateRequest, message.SerializeToString(), count) == message
    with pytest.raises(InvalidRequest, match=rf"^\w+: the request has more than {count - 1} fields"):
        parse_message(gateway_pb2.GenerateRequest, message.SerializeToString(), count - 1)


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"\x12\0" * 2**24, "messages: the request has more than 1000 fields with it; send fewer"),
        (b"\x0a\0" * 2**20, "model: the request has more"),
        (b"\xfa\x3e\0" * 2000, "request: the request has more"),  # a field that it does not have
        (b"\x2a\x80\x80\x40" + b"\x0a\0" * 2**19, "method: the request has more"),
    ],
    ids=["messages", "texts", "unknown", "method"],
)
def test_message_when_it_has_too_many_fields_is_refused_by_the_outermost(data, says):
    with pytest.raises(InvalidRequest) as caught:
        parse_message(gateway_pb2.GenerateRequest, data, 1000)
    assert str(caught.value).startswith(says)


def test_list_of_numbers_when_it_takes_megabytes_is_refused():
    for count in (1000, 9 * 2**20):
        data = decoder_pb2.DecodeRequest(emitted_token_ids=[1]).SerializeToString()[:1]
        size, length = count, b""
        while size:
            length += bytes([size & 0x7F | (0x80 if size > 0x7F else 0)])
            size >>= 7
        data += length + b"\1" * count
        if count == 1000:
            assert len(parse_message(decoder_pb2.DecodeRequest, data).emitted_token_ids) == count
        else:
            with pytest.raises(InvalidRequest, match=r"^emitted_token_ids: the request has more than 8388608 bytes of"):
                parse_message(decoder_pb2.DecodeRequest, data)


@pytest.mark.parametrize(
    "data",
    [b"\xff" * 20, b"\x12", b"\x12\x05", b"\x12\x05\x0a\x09abc", b"\x0a\x02\xff\xfe", b"\x7f", b"\x09\0", b"\x0f\x00"],
)
def test_message_when_its_bytes_are_none_is_refused_without_internals(data):
    with pytest.raises(InvalidRequest, match=r"^request: cannot be read as GenerateRequest; check the client"):
        parse_message(gateway_pb2.GenerateRequest, data)


@given(st.binary(max_size=200))
def test_bytes_when_protobuf_reads_them_are_read_as_it_reads_them(data):
    try:
        message = Struct.FromString(data)
    except Exception:
        with pytest.raises(InvalidRequest):
            parse_message(Struct, data)
    else:
        assert parse_message(Struct, data) == message
