"""The gateway's gRPC face: decode, call, encode."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing

import grpc

from fsr.common.errors import stream_errors, unary_errors
from fsr.gateway.admission import Admission
from fsr.gateway.pipeline import Requests
from fsr.v1 import gateway_pb2 as pb
from fsr.v1 import gateway_pb2_grpc

__all__ = ["GatewayServicer"]


class GatewayServicer(gateway_pb2_grpc.GatewayServiceServicer):
    """One method an rpc."""

    def __init__(self, requests: Requests, admission: Admission) -> None:
        self._requests, self._admission = requests, admission

    @unary_errors
    async def ListModels(
        self, request: pb.ListModelsRequest, context: grpc.aio.ServicerContext
    ) -> pb.ListModelsResponse:
        with self._admission.counting("ListModels", context):
            return pb.ListModelsResponse(models=self._requests.models())

    @unary_errors
    async def Compress(self, request: pb.CompressRequest, context: grpc.aio.ServicerContext) -> pb.CompressResponse:
        with self._admission.request("Compress", context) as (trail, deadline):
            return await self._requests.compress(request, deadline, trail)

    @stream_errors
    async def Generate(
        self, request: pb.GenerateRequest, context: grpc.aio.ServicerContext
    ) -> AsyncGenerator[pb.GenerateResponse, None]:
        with self._admission.request("Generate", context) as (trail, deadline):
            async with aclosing(self._requests.generate(request, deadline, trail)) as responses:
                async for response in responses:
                    yield response
