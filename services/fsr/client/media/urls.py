"""Files of pictures in data URIs and behind http(s) URLs. The client fetches them, so a gateway needs no way out."""

from __future__ import annotations

import base64
import re
import time
import urllib.request
from http.client import HTTPException, HTTPMessage
from typing import IO, Any
from urllib.error import HTTPError, URLError
from urllib.parse import quote, unquote_to_bytes, urlsplit, urlunsplit

from fsr.client.errors import DeadlineExceeded, InvalidRequestError
from fsr.common.wire.transport import MESSAGE_BYTES

__all__ = ["fetched", "file_of_data_uri"]

_PATIENCE = 30.0  # seconds of silence on a connection
_PIECE = 2**16
_RESERVED = "/:?#[]@!$&'()*+,;=%~"  # characters that a URL may have as they are
_LONGEST = 200  # characters of a URL in a message
_HEADERS = {"User-Agent": "fsr-client", "Accept": "image/jpeg, image/png, image/webp, */*;q=0.1"}


def file_of_data_uri(uri: str, field: str) -> bytes:
    """The file in a data URI (RFC 2397), with or without base64. Raises InvalidRequestError, which names `field`."""
    header, comma, data = uri.partition(",")
    if not comma:
        raise InvalidRequestError(f"{field}: the data URI has no comma; write data:image/png;base64,...")
    content = unquote_to_bytes(data)
    if not re.search(r";\s*base64\s*$", header, re.IGNORECASE):
        return content
    try:
        return base64.b64decode(b"".join(content.split()), validate=True)
    except ValueError as error:
        raise InvalidRequestError(f"{field}: the data URI is no base64 ({error}); encode the whole file") from error


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Never from https to anything else."""

    def redirect_request(
        self, req: urllib.request.Request, fp: IO[bytes], code: int, msg: str, headers: HTTPMessage, newurl: str
    ) -> urllib.request.Request | None:
        scheme = urlsplit(newurl).scheme.lower()
        if scheme != "https" and (scheme != "http" or req.type == "https"):
            raise URLError(f"it redirects to {scheme}")
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def fetched(url: str, field: str, deadline: float) -> bytes:
    """The file at an http(s) URL, through the proxy that the environment names (`https_proxy`, `no_proxy`).

    Raises:
        InvalidRequestError: it cannot be fetched, is larger than a request, or is a page and no picture.
        DeadlineExceeded: this moment of `time.monotonic()` has passed.
    """
    shown = _without_secrets(url)
    if "@" in url.partition("://")[2].partition("/")[0]:
        raise InvalidRequestError(f"{field}: {shown} has a user name; fetch it yourself, and pass the file's bytes")
    try:
        request = urllib.request.Request(_quoted(url), headers=_HEADERS)
        opener = urllib.request.build_opener(_Redirects)
        with opener.open(request, timeout=_seconds(deadline, shown, field)) as response:
            return _content(response, shown, field, deadline)
    except HTTPError as error:
        with error:
            reason = f"{error.code} {error.reason}"
    except URLError as error:
        reason = str(error.reason)
    except (OSError, HTTPException, ValueError) as error:  # ValueError: no URL
        reason = str(error) or type(error).__name__
    _seconds(deadline, shown, field)
    raise InvalidRequestError(f"{field}: cannot fetch {shown} ({reason}); check the URL, or pass the file's bytes")


def _content(response: Any, shown: str, field: str, deadline: float) -> bytes:
    kind = response.headers.get_content_type()
    if kind.startswith("text/") or kind == "application/json":
        raise InvalidRequestError(f"{field}: {shown} is {kind} and no picture; use the URL of the file itself")
    content = bytearray()
    while piece := response.read1(_PIECE):  # whatever has come, so that a slow server meets the deadline
        content += piece
        if len(content) > MESSAGE_BYTES:
            raise InvalidRequestError(f"{field}: {shown} has more than {MESSAGE_BYTES} bytes; scale the picture down")
        _seconds(deadline, shown, field)
    if response.length:  # urllib does not tell that the connection broke off
        raise OSError(f"the last {response.length} bytes are missing")
    return bytes(content)


def _seconds(deadline: float, shown: str, field: str) -> float:
    """The time for the next piece. Raises DeadlineExceeded."""
    left = deadline - time.monotonic()
    if left <= 0:
        raise DeadlineExceeded(f"timeout: passed before {field} was fetched from {shown}; allow more time")
    return min(left, _PATIENCE)


def _quoted(url: str) -> str:
    """With every character that a URL cannot have written in percent, and the host as DNS knows it."""
    parts = urlsplit(url)
    host = parts.netloc if parts.netloc.isascii() else parts.netloc.encode("idna").decode()
    path, query = (quote(part, safe=_RESERVED) for part in (parts.path, parts.query))
    return urlunsplit((parts.scheme.lower(), host, path, query, ""))


def _without_secrets(url: str) -> str:
    """For messages: without a password, and without a query, which may be a signature."""
    try:
        parts = urlsplit(url)
    except ValueError:
        return "the URL"
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))[:_LONGEST]
