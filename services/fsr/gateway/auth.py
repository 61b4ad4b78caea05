"""Who may call: API keys, shown as `authorization: Bearer KEY`. Health and reflection stay open."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Awaitable, Callable
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import structlog
from google.protobuf.descriptor import ServiceDescriptor

from fsr.common.errors import Forbidden, ServiceError, Unauthenticated, status_of
from fsr.gateway.metrics import Metrics

__all__ = ["ApiKeys", "Authentication", "Caller", "caller"]

log = structlog.get_logger()
_SCHEME = "bearer "


@dataclass(frozen=True)
class Caller:
    """Whose key was shown. `models` empty means all; `salt` keeps its cached prompts apart from other callers'."""

    salt: str = ""
    models: frozenset[str] = frozenset()

    def may_ask(self, model: str) -> bool:
        return not self.models or model in self.models

    def check(self, model: str) -> None:
        """Raises Forbidden."""
        if not self.may_ask(model):
            allowed = ", ".join(sorted(self.models))
            raise Forbidden(f"model: this key may not ask {model!r}; ask {allowed}, or have the key's line extended")


_ANYBODY = Caller()
_caller: ContextVar[Caller] = ContextVar("caller", default=_ANYBODY)


def caller() -> Caller:
    """Who made the request that is being answered; anybody where no keys are asked for."""
    return _caller.get()


class ApiKeys:
    """The known keys, kept as hashes; those of the file are read again when it changes."""

    def __init__(self, keys: list[str], file: Path | None) -> None:
        self._fixed = {self._hash(key): self._caller_of(key, ()) for key in keys}
        self._file, self._stamp = file, (0, 0)
        self._known: dict[bytes, Caller] = dict(self._fixed)
        self.refresh()

    @property
    def wanted(self) -> bool:
        """Whether callers must show a key at all."""
        return bool(self._fixed) or self._file is not None

    def refresh(self) -> None:
        """Reads the file again if it has changed; one that is gone or unreadable leaves the keys as they are."""
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
        self._known = self._fixed | {self._hash(key): self._caller_of(key, models) for key, *models in words}
        self._stamp = stamp
        log.info("keys read", file=str(self._file), keys=len(words))

    def find(self, authorization: str | None) -> Caller:
        """Raises Unauthenticated."""
        if not authorization:
            raise Unauthenticated("authorization: no API key; send the metadata 'authorization: Bearer KEY'")
        if not authorization.lower().startswith(_SCHEME):
            raise Unauthenticated("authorization: is not of the form 'Bearer KEY'; put that word before the key")
        shown, found = self._hash(authorization[len(_SCHEME) :].strip()), None
        for known, who in self._known.items():  # all of them, so that time tells nothing
            if hmac.compare_digest(known, shown):
                found = who
        if found is None:
            raise Unauthenticated("authorization: the API key is unknown; check it, or ask for a new one")
        return found

    @staticmethod
    def _hash(key: str) -> bytes:
        return hashlib.sha256(key.encode()).digest()

    @classmethod
    def _caller_of(cls, key: str, models: Any) -> Caller:
        return Caller(hashlib.sha256(b"salt" + cls._hash(key)).hexdigest()[:16], frozenset(models))


class Authentication(grpc.aio.ServerInterceptor):
    """Refuses calls of `service` without a known key, before their message is read, and counts them."""

    def __init__(self, keys: ApiKeys, service: ServiceDescriptor, metrics: Metrics) -> None:
        self._keys, self._metrics, self._prefix = keys, metrics, f"/{service.full_name}/"
        self._rpcs = set(service.methods_by_name)

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[grpc.RpcMethodHandler]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> grpc.RpcMethodHandler:
        if self._keys.wanted and handler_call_details.method.startswith(self._prefix):
            shown = dict(handler_call_details.invocation_metadata or ()).get("authorization")
            try:
                _caller.set(self._keys.find(None if shown is None else str(shown)))
            except ServiceError as error:
                log.info("refused", code=status_of(error).name, reason=str(error))
                rpc = handler_call_details.method.removeprefix(self._prefix)
                if rpc in self._rpcs:  # any other name is a caller's data
                    self._metrics.requests.labels(rpc, status_of(error).name).inc()
                return _refusing(error)
        return await continuation(handler_call_details)


def _refusing(error: ServiceError) -> grpc.RpcMethodHandler:
    async def refuse(request: Any, context: grpc.aio.ServicerContext) -> Any:
        await context.abort(status_of(error), str(error))

    return grpc.unary_unary_rpc_method_handler(refuse)
