"""Who may call: API keys, sent as `authorization: Bearer KEY`. Health and reflection stay open."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import structlog
from google.protobuf.descriptor import ServiceDescriptor

from fsr.common.errors import Forbidden, ServiceError, Unauthenticated, status_of
from fsr.gateway.metrics import Metrics

__all__ = ["ANYBODY", "ApiKeys", "Authentication", "Caller", "authorization_in"]

log = structlog.get_logger()
_SCHEME = "bearer "


@dataclass(frozen=True)
class Caller:
    """The owner of a key. `models`: those that it may use, empty for all. `salt` keeps its cached prompts apart from
    those of other callers."""

    salt: str = ""
    models: frozenset[str] = frozenset()

    def may_use(self, model: str) -> bool:
        return not self.models or model in self.models

    def check_model(self, model: str) -> None:
        """Raises Forbidden if it may not use the model."""
        if not self.may_use(model):
            allowed = ", ".join(sorted(self.models))
            raise Forbidden(f"model: this key may not ask {model!r}; ask {allowed}, or have the key's line extended")


ANYBODY = Caller()
"""The caller of a gateway that asks for no keys."""


class ApiKeys:
    """The known keys, kept as hashes. Those of the file are read again when it changes."""

    def __init__(self, keys: list[str], file: Path | None) -> None:
        self._from_options = {_hash(key): _caller(key, ()) for key in keys}
        self._file, self._stamp = file, (0, 0)
        self._callers: dict[bytes, Caller] = dict(self._from_options)
        self.refresh()

    @property
    def required(self) -> bool:
        """Whether callers must send a key at all."""
        return bool(self._from_options) or self._file is not None

    def refresh(self) -> None:
        """Reads the file again if it has changed. If the file is gone or unreadable, the keys stay as they are."""
        if self._file is None:
            return
        try:
            status = self._file.stat()
            stamp = (status.st_mtime_ns, status.st_size)
            if stamp == self._stamp:
                return
            lines = self._file.read_text().splitlines()
        except (OSError, UnicodeDecodeError) as error:
            log.warning("keys not read again", file=str(self._file), reason=str(error))
            return
        words = [line.split() for line in lines if line.strip() and not line.lstrip().startswith("#")]
        self._callers = self._from_options | {_hash(key): _caller(key, models) for key, *models in words}
        self._stamp = stamp
        log.info("keys read", file=str(self._file), keys=len(words))

    def caller_of(self, authorization: str) -> Caller:
        """The caller by what a call sends as `authorization`, empty if it sends nothing.

        ANYBODY if no keys are required. Raises Unauthenticated.
        """
        if not self.required:
            return ANYBODY
        if not authorization:
            raise Unauthenticated("authorization: no API key; send 'authorization: Bearer KEY' as metadata or header")
        if not authorization.lower().startswith(_SCHEME):
            raise Unauthenticated("authorization: is not of the form 'Bearer KEY'; put that word before the key")
        digest, match = _hash(authorization[len(_SCHEME) :].strip()), None
        for known, caller in self._callers.items():  # all of them, so that the time taken reveals nothing
            if hmac.compare_digest(known, digest):
                match = caller
        if match is None:
            raise Unauthenticated("authorization: the API key is unknown; check it, or ask for a new one")
        return match


def authorization_in(metadata: Iterable[tuple[str, str | bytes]] | None) -> str:
    """The value of `authorization` in the metadata of a gRPC call, or an empty text."""
    return str(dict(metadata or ()).get("authorization", ""))


def _hash(key: str) -> bytes:
    return hashlib.sha256(key.encode()).digest()


def _caller(key: str, models: Iterable[str]) -> Caller:
    return Caller(hashlib.sha256(b"salt" + _hash(key)).hexdigest()[:16], frozenset(models))


class Authentication(grpc.aio.ServerInterceptor):
    """Refuses calls of `service` without a known key before their message is read, and counts them."""

    def __init__(self, keys: ApiKeys, service: ServiceDescriptor, metrics: Metrics) -> None:
        self._keys, self._metrics, self._prefix = keys, metrics, f"/{service.full_name}/"
        self._rpcs = set(service.methods_by_name)

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[grpc.RpcMethodHandler]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> grpc.RpcMethodHandler:
        if handler_call_details.method.startswith(self._prefix):
            try:
                self._keys.caller_of(authorization_in(handler_call_details.invocation_metadata))
            except ServiceError as error:
                log.info("refused", code=status_of(error).name, reason=str(error))
                rpc = handler_call_details.method.removeprefix(self._prefix)
                if rpc in self._rpcs:  # another name is the caller's data, and no label
                    self._metrics.requests.labels("grpc", rpc, status_of(error).name).inc()
                return _refusing(error)
        return await continuation(handler_call_details)


def _refusing(error: ServiceError) -> grpc.RpcMethodHandler:
    async def refuse(request: Any, context: grpc.aio.ServicerContext) -> Any:
        await context.abort(status_of(error), str(error))

    return grpc.unary_unary_rpc_method_handler(refuse)
