"""The bound on the size of a gRPC message, checked before it is sent.

gRPC itself reports a message over its limit as RESOURCE_EXHAUSTED, the code of a full service, which is worth a retry.
"""

from __future__ import annotations

from fsr.common.errors import InvalidRequest
from fsr.common.wire.transport import MESSAGE_BYTES

__all__ = ["check_message_size", "check_tokens_size"]


def check_message_size(size: int, content: str, remedy: str) -> None:
    """Raises InvalidRequest if a message of `size` bytes is larger than a peer accepts; `content` names the field that
    fills it."""
    if size > MESSAGE_BYTES:
        raise InvalidRequest(f"{content} take {size} bytes, more than {MESSAGE_BYTES}; {remedy}")


def check_tokens_size(size: int) -> None:
    """The same for a message that carries the kept visual tokens."""
    check_message_size(size, "budget: the kept tokens", "keep fewer or set wire_dtype to bf16 or int8")
