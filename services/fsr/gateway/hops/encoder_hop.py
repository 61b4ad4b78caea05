"""The hop to an encoder: a unary call, safe to repeat, to the encoder that is likeliest to know the image."""

from __future__ import annotations

import hashlib
import time
from functools import partial

import grpc

from fsr.common.errors import Expired
from fsr.common.wire.message_size import check_message_size
from fsr.gateway.hops.replies import UNREADABLE, fault_in, parsed
from fsr.gateway.hops.usage import count_images
from fsr.gateway.requests.request_context import RequestContext
from fsr.gateway.routing.attempts import Attempts, RetryPolicy
from fsr.gateway.routing.pools import Pools
from fsr.v1 import encoder_pb2, types_pb2

__all__ = ["EncoderHop"]

_ANSWER_SECONDS = 2.0  # an encoder that is late has so long to say so, before it counts as one that does not answer
_ROUNDED = 0.1  # seconds; gRPC may give up a little early
_END_BYTES = 2**14  # of a file, at its beginning and at its end


class EncoderHop:
    """Has the images of a request encoded and compressed."""

    def __init__(self, pools: Pools, policy: RetryPolicy) -> None:
        self._pools, self._policy = pools, policy

    async def encode(
        self, model: str, request: encoder_pb2.EncodeRequest, context: RequestContext, fingerprint: str = ""
    ) -> tuple[encoder_pb2.EncodeResponse, bytes]:
        """The response, and the bytes that it came in.

        `fingerprint`: of the checkpoint that is wanted, if some encoder has it; empty for any. Each attempt gets its
        own `timeout_seconds`.

        Raises ServiceError.
        """
        data = request.SerializeToString()
        check_message_size(len(data), "images: they and the text", "scale them down or send fewer")
        choose = partial(self._pools.pick_encoder, model, _digest(request.images[0]), fingerprint=fingerprint)
        attempts = Attempts(self._policy, choose, context, partial(self._pools.last_loss, "encoder", model))
        while True:
            replica = await attempts.next()
            context.record.encoders.append(replica.address)
            remaining, longest = context.deadline.remaining(), self._policy.settings.encode_seconds
            timed = encoder_pb2.EncodeRequest(timeout_seconds=min(remaining, longest))
            timeout = min(remaining, longest + _ANSWER_SECONDS)
            given_up = time.monotonic() + timeout - _ROUNDED
            attempt = data + timed.SerializeToString()  # of a field that comes twice, the last one counts
            with attempts.calling(replica) as half_open_call:
                try:
                    reply = await replica.encode(attempt, timeout=timeout, metadata=attempts.span.metadata)
                except grpc.aio.AioRpcError as error:
                    if error.code() == grpc.StatusCode.DEADLINE_EXCEEDED and time.monotonic() < given_up:
                        # The encoder says so itself: it lives, and another one would take as long.
                        replica.answered()
                        took = f"took longer than {timed.timeout_seconds:.3g} s to encode"
                        raise Expired(f"images: {took}; send fewer or smaller ones, or allow more time") from error
                    attempts.failed(replica, error, half_open_call)
                    continue
                replica.answered()
                encoded = parsed(reply)
                fault = fault_in(encoded, request.images)
                if encoded is None or fault is not None:
                    attempts.fault(replica, fault or UNREADABLE, half_open_call, gone=False)
                    continue
                attempts.succeeded(replica)
            count_images(self._policy.metrics, model, request.method.name, encoded)
            return encoded, reply


def _digest(image: types_pb2.Image) -> bytes:
    """What tells an image from most others: it decides which encoder is asked, and nothing else. So large files are not
    read in full."""
    digest = hashlib.sha256()
    for file in image.frames or [image.data]:
        digest.update(b"%d " % len(file))
        digest.update(file[:_END_BYTES])
        digest.update(file[-_END_BYTES:])
    return digest.digest()
