"""The hop to an encoder: unary, safe to repeat, sent where the image is likeliest to be known."""

from __future__ import annotations

import hashlib
from functools import partial

import grpc

from fsr.gateway.deadline import Deadline
from fsr.gateway.request_record import Trail
from fsr.gateway.routing.attempts import Attempts, Retrying
from fsr.gateway.routing.pools import Pools
from fsr.gateway.usage import count_images
from fsr.v1 import encoder_pb2

__all__ = ["Encoding"]


class Encoding:
    """Encodes and compresses the images of a request."""

    def __init__(self, pools: Pools, shared: Retrying) -> None:
        self._pools, self._shared = pools, shared

    async def encode(
        self, model: str, request: encoder_pb2.EncodeRequest, deadline: Deadline, trail: Trail
    ) -> encoder_pb2.EncodeResponse:
        """Raises ServiceError."""
        first = request.images[0]
        digest = hashlib.sha256(first.data or b"".join(first.frames)).digest()
        attempts = Attempts(self._shared, partial(self._pools.encoder, model, digest), deadline, trail)
        while True:
            replica = await attempts.next()
            trail.encoders.append(replica.address)
            request.timeout_seconds = min(deadline.left(), self._shared.settings.encode_seconds)
            with attempts.calling(replica) as trial:
                try:
                    encoded = await replica.encoder.Encode(request, timeout=request.timeout_seconds)
                except grpc.aio.AioRpcError as error:
                    attempts.failed(replica, error, trial)
                    continue
                replica.heard()
                attempts.succeeded(replica)
            count_images(self._shared.metrics, model, request.method.name, encoded)
            return encoded
