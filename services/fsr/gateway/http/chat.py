"""POST /v1/chat/completions"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable
from contextlib import aclosing
from typing import Any, TypeVar

import structlog
from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse

from fsr.common.errors import Failed, ServiceError
from fsr.gateway.admission import Admission
from fsr.gateway.http.call import HttpCall
from fsr.gateway.http.chat_request import generate_request
from fsr.gateway.http.chat_response import ChatResponses
from fsr.gateway.http.errors import error_object
from fsr.gateway.http.schemas import ChatRequest
from fsr.gateway.pipeline import Pipeline
from fsr.gateway.request_record import RequestRecord
from fsr.v1 import gateway_pb2 as pb

__all__ = ["chat_router"]

log = structlog.get_logger()
_Result = TypeVar("_Result")


class CallerGone(Exception):
    """The caller has hung up; nobody reads a response."""


def chat_router(pipeline: Pipeline, admission: Admission) -> APIRouter:
    """The route of the chat API."""
    router = APIRouter()

    async def answer(
        request: Request, body: ChatRequest
    ) -> AsyncGenerator[tuple[RequestRecord, pb.GenerateResponse], None]:
        generate = generate_request(body)
        with admission.request("Generate", HttpCall(request)) as context:
            async with aclosing(pipeline.generate(generate, context)) as responses:
                async for response in responses:
                    yield context.record, response

    @router.post("/v1/chat/completions")
    async def chat_completions(body: ChatRequest, request: Request) -> Response:
        parts = answer(request, body)
        if body.stream:
            # The first part comes before the response begins, so that an early error still sets the status.
            record, first = await _while_connected(request, anext(parts))
            headers = {"x-request-id": record.request_id, "cache-control": "no-cache"}
            events = _events(body, record, first, parts)
            return StreamingResponse(events, media_type="text/event-stream", headers=headers)
        record, responses = await _while_connected(request, _collect(parts))
        whole = ChatResponses(record.request_id, body.model).whole(responses)
        return JSONResponse(whole, headers={"x-request-id": record.request_id})

    return router


async def _collect(
    parts: AsyncGenerator[tuple[RequestRecord, pb.GenerateResponse], None],
) -> tuple[RequestRecord, list[pb.GenerateResponse]]:
    responses = []
    async with aclosing(parts):
        async for record, response in parts:  # noqa: B007
            responses.append(response)
    return record, responses


async def _while_connected(request: Request, work: Awaitable[_Result]) -> _Result:
    """What `work` returns. Cancels it when the caller hangs up, and raises CallerGone."""
    task, gone = asyncio.ensure_future(work), asyncio.ensure_future(_hang_up(request))
    try:
        await asyncio.wait([task, gone], return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        raise CallerGone
    finally:
        for future in (task, gone):
            future.cancel()
        await asyncio.gather(task, gone, return_exceptions=True)


async def _hang_up(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def _events(
    body: ChatRequest,
    record: RequestRecord,
    first: pb.GenerateResponse,
    parts: AsyncGenerator[tuple[RequestRecord, pb.GenerateResponse], None],
) -> AsyncIterator[bytes]:
    made = ChatResponses(record.request_id, body.model)
    usage_asked = body.stream_options is not None and body.stream_options.include_usage
    async with aclosing(parts):
        try:
            yield _event(made.chunk(first, True, usage_asked))
            last = first
            async for _, last in parts:
                yield _event(made.chunk(last, False, usage_asked))
            if usage_asked:
                yield _event(made.usage_chunk(last.usage))
        except ServiceError as error:
            yield _event(error_object(error))
        except Exception:
            log.exception("unexpected", rpc="Generate")
            yield _event(error_object(Failed("Generate: failed unexpectedly; the service's log says more")))
    yield b"data: [DONE]\n\n"


def _event(data: dict[str, Any]) -> bytes:
    return b"data: " + json.dumps(data, separators=(",", ":")).encode() + b"\n\n"
