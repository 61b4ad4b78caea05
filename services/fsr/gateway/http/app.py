"""The ASGI application: every route of the HTTP interface."""

from __future__ import annotations

import structlog
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response

from fsr.common.errors import Failed, InvalidRequest, NotReady, ServiceError
from fsr.gateway.admission import Admission
from fsr.gateway.http.call import HttpCall
from fsr.gateway.http.chat import CallerGone, chat_router
from fsr.gateway.http.errors import error_response
from fsr.gateway.pipeline import Pipeline

__all__ = ["http_app"]

log = structlog.get_logger()


def http_app(pipeline: Pipeline, admission: Admission) -> FastAPI:
    """The application. It shares pipeline and admission with gRPC."""
    app = FastAPI(title="Visual-token compression gateway", redoc_url=None)
    app.include_router(chat_router(pipeline, admission))

    @app.get("/health")
    async def health() -> dict[str, str]:
        """The process lives."""
        return {"status": "ok"}

    @app.get("/ready")
    async def ready() -> dict[str, str]:
        """Some model has an encoder and a decoder, and the gateway takes requests."""
        admission.draining.check()
        if not pipeline.ready():
            raise NotReady("model: no model has both an encoder and a decoder yet; try again", 1.0)
        return {"status": "ready"}

    @app.get("/v1/models")
    async def models(request: Request) -> dict[str, object]:
        with admission.call("ListModels", HttpCall(request)) as caller:
            listed = [
                {"id": model.model, "object": "model", "created": 0, "owned_by": "fsr"}
                for model in pipeline.models(caller)
            ]
        return {"object": "list", "data": listed}

    @app.exception_handler(ServiceError)
    async def failed(request: Request, error: ServiceError) -> JSONResponse:
        return error_response(error, _request_id(request))

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> JSONResponse:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"][1:])
        return error_response(InvalidRequest(f"{field}: {first['msg']}"), _request_id(request))

    @app.exception_handler(CallerGone)
    async def gone(request: Request, error: CallerGone) -> Response:
        return Response(status_code=499)  # nginx's status for it; nobody reads it

    @app.exception_handler(Exception)
    async def unexpected(request: Request, error: Exception) -> JSONResponse:
        return error_response(Failed("request: failed unexpectedly; the service's log says more"), _request_id(request))

    return app


def _request_id(request: Request) -> dict[str, str]:
    request_id = getattr(request.state, "request_id", None)
    return {} if request_id is None else {"x-request-id": request_id}
