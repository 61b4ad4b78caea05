"""Images from an encoder's response into a decoder's request: the same bytes, neither parsed nor written once more.

Kept tokens may be megabytes. Protobuf copies a message that is put into another one by writing and parsing it, and
writes it once more for its size and once for the call; here all of that is one copy, which puts the request together.
"""

from __future__ import annotations

from fsr.common.wire.wire_fields import FIXED64, LENGTH, VARINT, read_varint, tag_of
from fsr.v1 import decoder_pb2, encoder_pb2

__all__ = ["relayed_images"]

_IN = encoder_pb2.EncodeResponse.DESCRIPTOR.fields_by_name["images"].number
_OUT = tag_of(decoder_pb2.DecodeRequest.DESCRIPTOR.fields_by_name["images"].number, LENGTH)


def relayed_images(response: bytes) -> list[bytes | memoryview]:
    """The field `images` of a DecodeRequest, in parts that follow each other, from the bytes of an EncodeResponse.

    `response` must be one that protobuf has parsed.
    """
    parts: list[bytes | memoryview] = []
    view, at = memoryview(response), 0
    while at < len(response):
        tag, at = read_varint(response, at)
        length_at = at
        if tag & 7 == LENGTH:
            length, at = read_varint(response, at)
            at += length
        elif tag & 7 == VARINT:
            _, at = read_varint(response, at)
        else:  # a number of 8 or 4 bytes: EncodeResponse has no groups
            at += 8 if tag & 7 == FIXED64 else 4
        if tag == _IN << 3 | LENGTH:
            parts += [_OUT, view[length_at:at]]
    return parts
