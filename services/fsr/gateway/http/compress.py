"""POST /v1/compress"""

from __future__ import annotations

import json
from functools import partial
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response
from starlette.types import Send

from fsr.gateway.admission import Admission
from fsr.gateway.http.call import HttpCall
from fsr.gateway.http.connections.connected_response import ConnectedResponse, send_whole
from fsr.gateway.http.field_names import FieldNames
from fsr.gateway.http.messages.facts import applied_facts, image_facts, image_sizes
from fsr.gateway.http.messages.options import budget_message, method_message, wire_dtype
from fsr.gateway.http.messages.safetensors_file import compressed_images_file
from fsr.gateway.http.pictures.pictures import Pictures
from fsr.gateway.http.schemas.body import max_values, parse_json, read_body, validated
from fsr.gateway.http.schemas.openapi import COMPRESS_EXAMPLE, ERRORS, request_body
from fsr.gateway.http.schemas.requests import CompressionOptions, CompressRequest, ImagePart, ImageUrl, VisualPart
from fsr.gateway.http.schemas.responses import Compression
from fsr.gateway.options.settings import GatewaySettings
from fsr.gateway.pipeline import Pipeline
from fsr.gateway.requests.deadline import Deadline
from fsr.v1 import gateway_pb2 as pb

__all__ = ["SAFETENSORS", "compress_router"]

SAFETENSORS = "application/x-safetensors"


class _Compress:
    """Compresses pictures by the gateway's pipeline."""

    def __init__(self, pipeline: Pipeline, admission: Admission, pictures: Pictures, settings: GatewaySettings) -> None:
        self._pipeline, self._admission, self._settings = pipeline, admission, settings
        self._pictures, self._max_values = pictures, max_values(settings)

    async def answer(self, request: Request, raw: bytearray, send: Send) -> None:
        """Sends the whole response to a request with this body, which it clears. Raises ServiceError."""
        call, names = HttpCall(request), FieldNames()
        async with self._admission.request("Compress", call) as context:
            call.admitted(context.record)
            try:
                body = validated(CompressRequest, parse_json(raw, self._max_values))
            finally:
                raw.clear()
            options = body.fsr or CompressionOptions()
            context = call.waits(options.timeout, context, self._settings)
            with context.span.timed("pictures"):
                compress = await self._request(body, options, names, context.deadline)
            body.images.clear()  # they hold the pictures in base64
            with names.named():
                compressed = await self._pipeline.compress(compress, context)
            record = context.record
            facts = {"model": record.model, "request_id": record.request_id, "fingerprint": compressed.fingerprint}
            response = _file(compressed, facts) if _wants_file(body, request) else _json(compressed, facts, body)
            await send_whole(response, send)

    async def _request(
        self, body: CompressRequest, options: CompressionOptions, names: FieldNames, deadline: Deadline
    ) -> pb.CompressRequest:
        parts: list[tuple[VisualPart, str]] = []
        for i, image in enumerate(body.images):
            if isinstance(image, str):
                part = ImagePart(type="image_url", image_url=ImageUrl(url=image))
                parts.append((part, f"images[{i}]"))
            else:
                kind = "image_url.url" if isinstance(image, ImagePart) else "video_url"
                parts.append((image, f"images[{i}].{kind}"))
        names.images = [field for _, field in parts]
        return pb.CompressRequest(
            model=body.model or "",
            instruction=body.instruction,
            budget=budget_message(options),
            method=method_message(options, names),
            wire_dtype=wire_dtype(options),
            explain=bool(options.explain),
            images=await self._pictures.images(parts, deadline),
        )


def compress_router(
    pipeline: Pipeline, admission: Admission, pictures: Pictures, settings: GatewaySettings
) -> APIRouter:
    """The route of compression alone."""
    router, compress = APIRouter(), _Compress(pipeline, admission, pictures, settings)

    @router.post(
        "/v1/compress",
        response_model=None,
        responses={200: {"model": Compression, "content": {SAFETENSORS: {}}}, **ERRORS},
        openapi_extra=request_body(CompressRequest, json=COMPRESS_EXAMPLE),
    )
    async def compress_images(request: Request) -> Response:
        """The kept visual tokens of pictures, for applications that run their own language model."""
        return ConnectedResponse(partial(compress.answer, request, await read_body(request)))

    return router


def _wants_file(body: CompressRequest, request: Request) -> bool:
    if body.format is not None:
        return body.format == "safetensors"
    return SAFETENSORS in request.headers.get("accept", "").lower()


def _json(compressed: pb.CompressResponse, facts: dict[str, Any], body: CompressRequest) -> Response:
    images = [image_facts(image, features=bool(body.features)) for image in compressed.images]
    return JSONResponse({"object": "compression", **facts, **applied_facts(compressed), "images": images})


def _file(compressed: pb.CompressResponse, facts: dict[str, Any]) -> Response:
    sizes = [image_sizes(image) for image in compressed.images]
    applied = applied_facts(compressed)
    metadata = facts | {name: json.dumps(value) for name, value in (applied | {"images": sizes}).items()}
    return Response(compressed_images_file(compressed.images, metadata), media_type=SAFETENSORS)
