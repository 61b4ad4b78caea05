"""GET /openapi.json, and GET /docs: Swagger UI over it. All of its files come from this server."""

from __future__ import annotations

import functools

from fastapi import APIRouter, FastAPI
from fastapi.responses import HTMLResponse, JSONResponse, Response
from starlette.staticfiles import StaticFiles

from fsr.gateway.http.schemas.openapi import openapi_schema

__all__ = ["add_docs"]

_FILES = "/docs/files"
# Swagger UI sets styles on elements, and draws its icons from data URIs.
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_PAGE = f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<title>HTTP interface of the gateway</title>
<link rel="stylesheet" href="{_FILES}/swagger-ui.css">
<link rel="icon" href="{_FILES}/favicon-32x32.png">
</head>
<body>
<div id="swagger-ui"></div>
<script src="{_FILES}/swagger-ui-bundle.js"></script>
<script src="/docs/start.js"></script>
</body>
</html>
"""
_START = """SwaggerUIBundle({ url: "/openapi.json", dom_id: "#swagger-ui", deepLinking: true });
"""


def add_docs(app: FastAPI, keys_required: bool) -> None:
    """Adds the page and its files."""
    router = APIRouter(include_in_schema=False)
    schema = functools.cache(functools.partial(openapi_schema, app, keys_required))

    @router.get("/openapi.json")
    async def openapi() -> Response:
        return JSONResponse(schema())

    @router.get("/docs")
    async def page() -> Response:
        return HTMLResponse(_PAGE, headers={"content-security-policy": _POLICY})

    @router.get("/docs/start.js")
    async def start() -> Response:
        return Response(_START, media_type="text/javascript")

    app.include_router(router)
    # fastapi-swagger is used for the files of Swagger UI that it carries.
    app.mount(_FILES, StaticFiles(packages=[("fastapi_swagger", "resources")]))
