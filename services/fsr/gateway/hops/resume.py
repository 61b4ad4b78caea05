"""Answers that go on where a broken stream ended: its caller sends the ids that came, as a gateway does to a decoder.

The images are encoded once more. The kept tokens are the same, so the answer is, too, if the checkpoint is the same.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from fsr.common.errors import InvalidRequest, Mismatch
from fsr.common.requests.names import check_name
from fsr.gateway.routing.pools import Pools
from fsr.v1 import gateway_pb2

__all__ = ["check_checkpoint", "check_encoded", "check_resume", "emitted_as_resume"]

_EMITTED, _RESUME = "emitted_token_ids", "resume.token_ids"


def check_resume(request: gateway_pb2.GenerateRequest) -> None:
    """Raises InvalidRequest. What depends on the model, a decoder checks."""
    check_name("resume.fingerprint", request.resume.fingerprint)
    count, most = len(request.resume.token_ids), request.sampling.max_tokens
    if 0 < most < count:
        raise InvalidRequest(
            f"{_RESUME}: {count} are more than sampling.max_tokens, {most}; send the request as it was"
        )


def check_checkpoint(pools: Pools, model: str, resume: gateway_pb2.Resume) -> None:
    """Raises Mismatch if the decoders that answer all have another checkpoint than the answer began with."""
    held = {decoder.fingerprint for decoder in pools.serving("decoder", model)}
    if held and resume.fingerprint and resume.fingerprint not in held:
        raise _other_checkpoint(model, resume)


def check_encoded(model: str, resume: gateway_pb2.Resume, fingerprint: str) -> None:
    """Raises Mismatch if the images were encoded with another checkpoint than the answer began with."""
    if resume.fingerprint not in ("", fingerprint):
        raise _other_checkpoint(model, resume)


def _other_checkpoint(model: str, resume: gateway_pb2.Resume) -> Mismatch:
    reason = f"no replica of {model} has the checkpoint {resume.fingerprint[:12]} any more"
    return Mismatch(f"resume.fingerprint: {reason}; ask again without resume")


@contextmanager
def emitted_as_resume() -> Iterator[None]:
    """Within this block a decoder's error about the emitted tokens names what they were in the caller's request."""
    try:
        yield
    except InvalidRequest as error:
        if not str(error).startswith(_EMITTED):
            raise
        raise InvalidRequest(_RESUME + str(error).removeprefix(_EMITTED)) from error
