"""POST /v1/chat/completions"""

from __future__ import annotations

from contextlib import aclosing
from functools import partial

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response
from starlette.types import Send

from fsr.gateway.admission import Admission
from fsr.gateway.http.call import HttpCall
from fsr.gateway.http.connections.connected_response import ConnectedResponse, send_whole
from fsr.gateway.http.connections.event_stream import EventStream
from fsr.gateway.http.field_names import FieldNames
from fsr.gateway.http.messages.chat_request import chat_request, generate_request
from fsr.gateway.http.messages.chat_response import ChatResponses
from fsr.gateway.http.pictures.pictures import Pictures
from fsr.gateway.http.schemas.body import max_values, read_body
from fsr.gateway.http.schemas.openapi import CHAT_EXAMPLE, ERRORS, EVENTS, request_body
from fsr.gateway.http.schemas.requests import ChatRequest
from fsr.gateway.http.schemas.responses import ChatAnswer
from fsr.gateway.options.settings import GatewaySettings
from fsr.gateway.pipeline import Pipeline

__all__ = ["chat_router"]


class _Chat:
    """Answers chat requests by the gateway's pipeline."""

    def __init__(self, pipeline: Pipeline, admission: Admission, pictures: Pictures, settings: GatewaySettings) -> None:
        self._pipeline, self._admission, self._settings = pipeline, admission, settings
        self._pictures, self._max_values = pictures, max_values(settings)

    async def answer(self, request: Request, raw: bytearray, send: Send) -> None:
        """Sends the whole response to a request with this body, which it clears. Raises ServiceError before the
        response begins."""
        call, names, stream = HttpCall(request), FieldNames(), None
        try:
            async with self._admission.request("Generate", call) as context:
                call.admitted(context.record)
                try:
                    body = chat_request(raw, self._max_values)
                finally:
                    raw.clear()
                context = call.waits(body.fsr.timeout if body.fsr else None, context, self._settings)
                with context.span.timed("pictures"):
                    generate = await generate_request(body, self._pictures, names, context.deadline)
                body.messages.clear()  # as the raw bytes did, they hold the pictures in base64
                made, whole = ChatResponses(context.record, body), []
                stream = EventStream(send, request.state.abort, context.deadline) if body.stream else None
                with names.named():
                    async with aclosing(self._pipeline.generate(generate, context)) as pieces:
                        async for piece in pieces:
                            if stream is None:
                                whole.append(piece)
                            else:
                                await stream.event(made.chunk(piece))
                if stream is None:
                    await send_whole(JSONResponse(made.whole(whole)), send)
                    return
            if body.stream_options and body.stream_options.include_usage:
                await stream.event(made.usage_chunk(piece.usage))
            await stream.done()
        except Exception as error:
            if stream is None or not stream.started:
                raise
            await stream.fail(error)


def chat_router(pipeline: Pipeline, admission: Admission, pictures: Pictures, settings: GatewaySettings) -> APIRouter:
    """The route of the chat API."""
    router, chat = APIRouter(), _Chat(pipeline, admission, pictures, settings)

    @router.post(
        "/v1/chat/completions",
        response_model=None,
        responses={200: {"model": ChatAnswer, "content": EVENTS}, **ERRORS},
        openapi_extra=request_body(ChatRequest, answer=CHAT_EXAMPLE, stream=CHAT_EXAMPLE | {"stream": True}),
    )
    async def chat_completions(request: Request) -> Response:
        """Answers a conversation with pictures, as a whole or as a stream of events, each with a ChatChunk."""
        return ConnectedResponse(partial(chat.answer, request, await read_body(request)))

    return router
