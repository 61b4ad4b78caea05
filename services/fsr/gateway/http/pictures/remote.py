"""Pictures by http(s) URL, from the hosts that the operator allows: bounded in number, size, time and redirects."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Mapping
from contextlib import aclosing

import httpcore2
import structlog

from fsr.common.errors import Expired, InvalidRequest
from fsr.gateway.http.pictures.network import NotPublic, PublicNetwork
from fsr.gateway.options.allowed_hosts import AllowedHosts, BadUrl, RemoteUrl
from fsr.gateway.options.settings import GatewaySettings
from fsr.gateway.requests.deadline import Deadline

__all__ = ["RemotePictures"]

log = structlog.get_logger()

_AT_ONCE = 4  # connections for one request
_MAX_REDIRECTS = 3
_REDIRECTS = {301, 302, 303, 307, 308}
_INSTEAD = "send the picture as a data URI, data:image/png;base64,..."
_HEADERS = [
    ("Accept", "image/jpeg, image/png, image/webp"),
    ("Accept-Encoding", "identity"),  # a small file that unpacks to a huge one would pass a bound on its size
    ("User-Agent", "fsr-gateway"),
]
_FAULTS = (httpcore2.NetworkError, httpcore2.TimeoutException, httpcore2.ProtocolError, OSError, ValueError)


class _Refused(Exception):
    """The picture cannot be fetched; the message says why and what to do."""


class RemotePictures:
    """Fetches the pictures of requests. Their callers are known and admitted already."""

    def __init__(self, settings: GatewaySettings, network: PublicNetwork | None = None) -> None:
        self._settings = settings
        self._hosts = AllowedHosts(settings.http_image_hosts)
        self._network = network or PublicNetwork(self._hosts, settings.http_image_networks)
        self._tls = httpcore2.default_ssl_context() if self._hosts else None

    async def fetch(self, urls: Mapping[str, str], deadline: Deadline) -> dict[str, bytes]:
        """The files of `urls`, by field of the request. A URL that several fields have is fetched once.

        Raises InvalidRequest, which names the field, and Expired.
        """
        if not urls:
            return {}
        if not self._hosts:
            off = "this gateway fetches no pictures (its option --http-image-hosts is not set)"
            raise InvalidRequest(f"{next(iter(urls))}: {off}; {_INSTEAD}")
        fields: dict[str, str] = {}
        for field, url in urls.items():
            fields.setdefault(url, field)
        transfer = _Transfer(self._settings, self._hosts, deadline)
        async with httpcore2.AsyncConnectionPool(
            ssl_context=self._tls, max_connections=_AT_ONCE, network_backend=self._network
        ) as pool:
            try:
                async with asyncio.TaskGroup() as group:
                    tasks = {url: group.create_task(transfer.file(pool, url, field)) for url, field in fields.items()}
            except BaseExceptionGroup as errors:
                raise errors.exceptions[0] from None
        return {field: tasks[url].result() for field, url in urls.items()}


class _Transfer:
    """The fetches of one request, which share its time and its bytes."""

    def __init__(self, settings: GatewaySettings, hosts: AllowedHosts, deadline: Deadline) -> None:
        self._settings, self._hosts, self._deadline = settings, hosts, deadline
        seconds = min(settings.http_image_seconds, deadline.seconds_left)
        self._end = asyncio.get_running_loop().time() + seconds
        self._bytes = 0

    async def file(self, pool: httpcore2.AsyncConnectionPool, url: str, field: str) -> bytes:
        """Raises InvalidRequest and Expired."""
        try:
            async with asyncio.timeout_at(self._end):
                return await self._follow(pool, url)
        except TimeoutError:
            if self._deadline.passed:
                raise Expired("fsr.timeout: passed before the pictures were fetched; allow more time") from None
            reason = f"is not here after {self._settings.http_image_seconds:g} s; {_INSTEAD}"
        except (_Refused, BadUrl) as error:
            reason = str(error)
        except NotPublic:
            reason = f"has a host whose address is not public; {_INSTEAD}"
        except _FAULTS as error:
            log.info("picture not fetched", field=field, reason=repr(error))
            untrusted = any(isinstance(one, ssl.SSLCertVerificationError) for one in error.args)
            fault = "whose certificate is not trusted" if untrusted else "that does not answer properly"
            reason = f"has a host {fault}; check the URL, or {_INSTEAD}"
        raise InvalidRequest(f"{field}: {reason}")

    async def _follow(self, pool: httpcore2.AsyncConnectionPool, text: str) -> bytes:
        url = RemoteUrl.parse(text)
        for _ in range(_MAX_REDIRECTS + 1):
            if not self._hosts.admit(url.host, url.port):
                remedy = f"have it added to --http-image-hosts, or {_INSTEAD}"
                raise _Refused(f"has a host that is not allowed here, {url.authority}; {remedy}")
            location, data = await self._get(pool, url)
            if location is None:
                return data
            target = url.redirected(location)
            if url.scheme == "https" and target.scheme != "https":
                raise _Refused(f"is redirected from https to http; {_INSTEAD}")
            url = target
        raise _Refused(f"is redirected more than {_MAX_REDIRECTS} times; use the URL at the end, or {_INSTEAD}")

    async def _get(self, pool: httpcore2.AsyncConnectionPool, url: RemoteUrl) -> tuple[str | None, bytes]:
        """Where the response redirects to, or None and the file."""
        request = httpcore2.URL(scheme=url.scheme, host=url.host, port=url.port, target=url.target)
        headers = [("Host", url.authority), *_HEADERS]
        async with pool.stream("GET", request, headers=headers) as response:
            received = {name.lower(): value.decode("latin-1") for name, value in response.headers}
            if response.status in _REDIRECTS and b"location" in received:
                return received[b"location"], b""
            if response.status != 200:
                raise _Refused(f"is answered with status {response.status}; check the URL, or {_INSTEAD}")
            if received.get(b"content-encoding", "identity").lower() != "identity":
                raise _Refused(f"comes with a compression that was not asked for; {_INSTEAD}")
            media_type = received.get(b"content-type", "image/*").partition(";")[0].strip().lower()
            if not media_type.startswith("image/") and media_type != "application/octet-stream":
                raise _Refused(f"is no picture but {media_type[:40]!r}; give the URL of the file itself")
            return None, await self._read(response, received.get(b"content-length", "0"))

    async def _read(self, response: httpcore2.Response, announced: str) -> bytes:
        most, file = self._settings.max_image_bytes, bytearray()
        too_large = f"has more than {most} bytes; scale the picture down"
        if int(announced) > most:
            raise _Refused(too_large)
        async with aclosing(response.aiter_stream()) as chunks:
            async for chunk in chunks:
                file += chunk
                self._bytes += len(chunk)
                if len(file) > most:
                    raise _Refused(too_large)
                if self._bytes > self._settings.max_images_bytes:
                    together = f"the request's pictures have more than {self._settings.max_images_bytes} bytes together"
                    raise _Refused(f"{together}; scale them down or send fewer")
        if not file:
            raise _Refused(f"is empty; check the URL, or {_INSTEAD}")
        return bytes(file)
