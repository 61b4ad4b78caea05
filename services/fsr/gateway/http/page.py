"""GET / and the files that it loads: a page to try the gateway in a browser."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from fastapi import APIRouter, HTTPException, Request
from fastapi.responses import JSONResponse, Response

from fsr.gateway.callers.auth import ApiKeys
from fsr.gateway.options.settings import GatewaySettings

__all__ = ["FOLDER", "HEADERS", "page_router"]

FOLDER = Path(__file__).parent / "page"
# Not from the machine's own table of types, which differs from one to the next.
_MEDIA_TYPES = {
    ".css": "text/css; charset=utf-8",
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".json": "application/json",
    ".svg": "image/svg+xml",
    ".webp": "image/webp",
}
_POLICY = (
    "default-src 'none'",
    "script-src 'self'",
    "style-src 'self'",
    "img-src 'self' data: blob:",
    "connect-src 'self'",
    "base-uri 'none'",
    "form-action 'none'",
    "frame-ancestors 'none'",
)
#: Headers of every response here. The browser asks each time whether a file has changed, and the ETag answers it.
HEADERS = {
    "content-security-policy": "; ".join(_POLICY),
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cache-control": "no-cache",
}


@dataclass(frozen=True)
class _File:
    content: bytes
    media_type: str
    etag: str


def _files() -> dict[str, _File]:
    """Every file of the page by its path in the folder: about 350 kB, read once.

    Not Starlette's StaticFiles: its ETags are made of size and time of change, and a wheel may give all files one time.
    """
    found = {}
    for path in sorted(FOLDER.rglob("*")):
        if path.suffix in _MEDIA_TYPES:
            content = path.read_bytes()
            etag = f'"{hashlib.sha256(content).hexdigest()[:32]}"'
            found[path.relative_to(FOLDER).as_posix()] = _File(content, _MEDIA_TYPES[path.suffix], etag)
    return found


def page_router(settings: GatewaySettings, keys: ApiKeys) -> APIRouter:
    """`/`, and under `/page/` its files and what it must know of this gateway. Nothing of it needs a key."""
    router = APIRouter(include_in_schema=False)
    files = _files()

    @router.get("/page/config.json")
    async def config() -> Response:
        known = {
            "version": version("fsr-gateway"),
            "key_needed": keys.required,
            "grafana_url": settings.grafana_url,
            "max_image_bytes": settings.max_image_bytes,
            "max_images_bytes": settings.max_images_bytes,
            "max_frames": settings.max_frames,
        }
        return JSONResponse(known, headers=HEADERS)

    def response(path: str, request: Request) -> Response:
        if path not in files:
            raise HTTPException(404)
        file = files[path]
        headers = HEADERS | {"etag": file.etag}
        if file.etag in request.headers.get("if-none-match", ""):
            return Response(status_code=304, headers=headers)
        return Response(file.content, headers=headers, media_type=file.media_type)

    @router.api_route("/", methods=["GET", "HEAD"])
    async def index(request: Request) -> Response:
        return response("index.html", request)

    @router.api_route("/page/{path:path}", methods=["GET", "HEAD"])
    async def file_of_page(path: str, request: Request) -> Response:
        return response(path, request)

    return router
