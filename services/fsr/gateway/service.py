"""The gateway's gRPC service: each method decodes, calls and encodes."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing

import grpc

from fsr.common.errors import stream_errors, unary_errors
from fsr.gateway.admission import Admission
from fsr.gateway.pipeline import Pipeline
from fsr.gateway.requests.call import GrpcCall
from fsr.v1 import gateway_pb2 as pb
from fsr.v1 import gateway_pb2_grpc

__all__ = ["GatewayServicer"]


class GatewayServicer(gateway_pb2_grpc.GatewayServiceServicer):
    """One method for each rpc."""

    def __init__(self, pipeline: Pipeline, admission: Admission) -> None:
        self._pipeline, self._admission = pipeline, admission

    @unary_errors
    async def ListModels(
        self, request: pb.ListModelsRequest, context: grpc.aio.ServicerContext
    ) -> pb.ListModelsResponse:
        with self._admission.call("ListModels", GrpcCall(context)) as caller:
            return pb.ListModelsResponse(models=self._pipeline.models(caller))

    @stream_errors
    async def Compress(
        self, request: pb.CompressRequest, context: grpc.aio.ServicerContext
    ) -> AsyncGenerator[pb.CompressResponse, None]:
        """Yields one message, and has its slot until the caller has taken it: it may be large (see `SlowReaders`)."""
        call = GrpcCall(context)
        async with self._admission.request("Compress", call) as request_context:
            response = await self._pipeline.compress(request, request_context)
            call.report(request_context.record)  # now, because it travels with the message
            yield response

    @stream_errors
    async def Generate(
        self, request: pb.GenerateRequest, context: grpc.aio.ServicerContext
    ) -> AsyncGenerator[pb.GenerateResponse, None]:
        async with (
            self._admission.request("Generate", GrpcCall(context)) as request_context,
            aclosing(self._pipeline.generate(request, request_context)) as responses,
        ):
            async for response in responses:
                yield response
