"""The decoder's gRPC face: decode, call, encode."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing

import grpc

from fsr.common.errors import stream_errors, unary_errors
from fsr.common.telemetry.spans import Tracer
from fsr.decoder.pipeline import DecodePipeline
from fsr.v1 import decoder_pb2 as pb
from fsr.v1 import decoder_pb2_grpc

__all__ = ["DecoderServicer"]


class DecoderServicer(decoder_pb2_grpc.DecoderServiceServicer):
    """One method for each rpc."""

    def __init__(self, pipeline: DecodePipeline, tracer: Tracer) -> None:
        self._pipeline, self._tracer = pipeline, tracer

    @unary_errors
    async def DescribeDecoder(
        self, request: pb.DescribeDecoderRequest, context: grpc.aio.ServicerContext
    ) -> pb.DescribeDecoderResponse:
        return self._pipeline.describe()

    @stream_errors
    async def Decode(
        self, request: pb.DecodeRequest, context: grpc.aio.ServicerContext
    ) -> AsyncGenerator[pb.DecodeResponse, None]:
        span = self._tracer.request("fsr.v1.DecoderService/Decode", lambda: context.invocation_metadata() or ())
        async with aclosing(self._pipeline.decode(request, span)) as responses:
            async for response in responses:
                yield response
