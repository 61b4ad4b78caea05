"""Whether the reply of an encoder can be used. If not, that is the encoder's fault, and another one may do better."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

from google.protobuf.message import DecodeError

from fsr.v1 import encoder_pb2, types_pb2

__all__ = ["UNREADABLE", "fault_in", "parsed"]

UNREADABLE = "sent a message that cannot be read"
_ITEM_BYTES = {
    types_pb2.DTYPE_FP32: 4,
    types_pb2.DTYPE_FP16: 2,
    types_pb2.DTYPE_BF16: 2,
    types_pb2.DTYPE_INT8: 1,
}


def parsed(data: bytes) -> encoder_pb2.EncodeResponse | None:
    """An encoder's reply; None if it cannot be read."""
    try:
        return encoder_pb2.EncodeResponse.FromString(data)
    except DecodeError:
        return None


def fault_in(reply: encoder_pb2.EncodeResponse | None, images: Sequence[types_pb2.Image]) -> str | None:
    """What is wrong with the reply to a request with these images; None if nothing is.

    `reply` is as `parsed` gave it.
    """
    if reply is None:
        return UNREADABLE
    if len(reply.images) != len(images):
        return f"sent {len(reply.images)} images for {len(images)}"
    for image in reply.images:
        kept, tensor = len(image.index), image.features
        if not (0 < kept <= image.source_tokens - image.merged_count and image.focus_count <= kept):
            return "sent numbers of tokens that contradict each other"
        size = prod(tensor.shape) * _ITEM_BYTES.get(tensor.dtype, 0)
        if not tensor.shape or tensor.shape[0] != kept + len(image.newlines) or len(tensor.data) != size:
            return "sent features that do not fit the tokens"
    return None
