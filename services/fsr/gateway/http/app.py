"""The ASGI application: every route of the HTTP interface."""

from __future__ import annotations

from importlib import metadata

from fastapi import FastAPI, Request
from fastapi.middleware.cors import CORSMiddleware
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from fsr.common.errors import NotReady, ServiceError
from fsr.gateway.admission import Admission
from fsr.gateway.callers.auth import ApiKeys
from fsr.gateway.http.chat import chat_router
from fsr.gateway.http.compress import compress_router
from fsr.gateway.http.connections.limits import Limits
from fsr.gateway.http.connections.request_ids import RequestIds
from fsr.gateway.http.docs import add_docs
from fsr.gateway.http.errors import error_response, refusal
from fsr.gateway.http.models import models_router
from fsr.gateway.http.page import page_router
from fsr.gateway.http.pictures.pictures import Pictures
from fsr.gateway.http.pictures.remote import RemotePictures
from fsr.gateway.http.schemas.openapi import ERRORS
from fsr.gateway.http.schemas.responses import Status
from fsr.gateway.options.settings import GatewaySettings
from fsr.gateway.pipeline import Pipeline
from fsr.gateway.telemetry.metrics import Metrics

__all__ = ["http_app"]


def http_app(
    pipeline: Pipeline, admission: Admission, keys: ApiKeys, metrics: Metrics, settings: GatewaySettings
) -> FastAPI:
    """The application. It shares its parts with gRPC."""
    app = FastAPI(
        title="Visual-token compression gateway",
        description="OpenAI's chat API for pictures, answered from a fraction of their visual tokens.",
        version=metadata.version("fsr-gateway"),
        openapi_url=None,
        redirect_slashes=False,
    )
    pictures = Pictures(settings, RemotePictures(settings))
    app.include_router(chat_router(pipeline, admission, pictures, settings))
    app.include_router(compress_router(pipeline, admission, pictures, settings))
    app.include_router(models_router(pipeline, admission))
    if settings.http_page:
        app.include_router(page_router(settings, keys))
    app.add_middleware(Limits, keys=keys, metrics=metrics, settings=settings)
    if settings.http_cors_origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=settings.http_cors_origins,
            allow_methods=["GET", "POST"],
            allow_headers=["*"],
            expose_headers=["x-request-id", "retry-after", "retry-after-ms"],
        )
    app.add_middleware(RequestIds, draining=admission.draining)

    @app.get("/health", response_model=Status)
    async def health() -> dict[str, str]:
        """The process lives."""
        return {"status": "ok"}

    @app.get("/ready", response_model=Status, responses={503: ERRORS[503]})
    async def ready() -> dict[str, str]:
        """Some model has an encoder and a decoder, and the gateway takes requests."""
        admission.draining.check()
        if not pipeline.ready():
            raise NotReady("model: no model has both an encoder and a decoder yet; try again", 1.0)
        return {"status": "ready"}

    @app.exception_handler(ServiceError)
    async def failed(request: Request, error: ServiceError) -> JSONResponse:
        return error_response(error)

    @app.exception_handler(HTTPException)
    async def refused(request: Request, error: HTTPException) -> JSONResponse:
        """Paths and methods that do not exist."""
        if error.status_code == 405:
            allowed = (error.headers or {}).get("Allow", "")
            return refusal(405, f"http: {request.method} is not allowed here; use {allowed}", error.headers)
        return refusal(error.status_code, "path: is no route of this service; see /docs", error.headers)

    add_docs(app, keys.required)
    return app
