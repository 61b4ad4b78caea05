"""Who may call: API keys, sent as `authorization: Bearer KEY`. Health and reflection stay open."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import grpc
import structlog
from google.protobuf.descriptor import ServiceDescriptor

from fsr.common.errors import Forbidden, ServiceError, Unauthenticated, set_status, status_of
from fsr.gateway.callers.keys_file import Key, KeysFile, KeysFileError, digest_of, parse_keys_file
from fsr.gateway.options.policy import Policy, resolve
from fsr.gateway.telemetry.metrics import Metrics

__all__ = ["ANYBODY", "ApiKeys", "Authentication", "Caller", "authorization_in"]

log = structlog.get_logger()
_SCHEME = "bearer "
_EMPTY = Policy()  # sets no field: what it has are the defaults


@dataclass(frozen=True, kw_only=True)
class Caller:
    """The owner of a key. `salt` keeps its cached prompts apart from those of other callers; `name` is for the logs.

    `weight` and `max_requests` are its part of the gateway's slots; 0 requests stand for the service's own number.

    `models`: those that it may use, empty for all. `policies`: those of models that have one of their own; `policy` is
    that of all others.
    """

    salt: str = ""
    name: str = ""
    weight: float = 1.0
    max_requests: int = 0
    models: frozenset[str] = frozenset()
    policy: Policy = _EMPTY
    policies: Mapping[str, Policy] = field(default_factory=dict)

    def may_use(self, model: str) -> bool:
        return not self.models or model in self.models

    def check_model(self, model: str) -> None:
        """Raises Forbidden if it may not use the model."""
        if not self.may_use(model):
            allowed = ", ".join(sorted(self.models))
            raise Forbidden(f"model: this key may not ask {model!r}; ask {allowed}, or have the key's entry extended")

    def policy_for(self, model: str) -> Policy:
        """What applies to its requests for a model."""
        return self.policies.get(model, self.policy)


ANYBODY = Caller()
"""The caller of a gateway that asks for no keys and has no policy."""


class ApiKeys:
    """The known keys, kept as hashes. Those of the file are read again when its content changes."""

    def __init__(self, keys: Sequence[str], file: Path | None, policy: Policy = ANYBODY.policy) -> None:
        """`policy` is the service's. Raises KeysFileError."""
        self._policy, self._file = policy, file
        self._option_keys = [Key.model_construct(sha256=digest_of(key).hex()) for key in keys]
        self._digest, self._problem = b"", ""
        self._callers = _callers(KeysFile.model_construct(keys=self._option_keys), policy)
        self._anybody = Caller(policy=policy)
        if file is not None:
            self._read(file)

    @property
    def required(self) -> bool:
        """Whether callers must send a key at all."""
        return bool(self._option_keys) or self._file is not None

    def refresh(self) -> None:
        """Reads the file again if its content has changed. A file that cannot be used changes nothing: the error is
        logged once, and keys and policies stay as they are."""
        if self._file is None:
            return
        try:
            self._read(self._file)
            self._problem = ""
        except KeysFileError as error:
            if str(error) != self._problem:
                log.error("keys not read again; the old ones stay", file=str(self._file), reason=str(error))
            self._problem = str(error)

    def _read(self, path: Path) -> None:
        try:
            content = path.read_bytes()
        except OSError as error:
            raise KeysFileError(f"cannot be read ({error.strerror}); check path and permissions") from error
        digest = hashlib.sha256(content).digest()
        if digest == self._digest:
            return
        file = parse_keys_file(path, content)
        in_file = {key.digest for key in file.keys}
        others = [key for key in self._option_keys if key.digest not in in_file]
        # Those of the file come first: messages count them from 0.
        callers = _callers(file.model_copy(update={"keys": [*file.keys, *others]}), self._policy)
        self._callers, self._digest = callers, digest
        log.info("keys read", file=str(path), keys=len(file.keys), policies=len(file.policies))
        plain = sum(key.key is not None for key in file.keys)
        if plain:
            remedy = "put its hash in place of each: fsr keys --existing"
            log.warning("keys in plain text", file=str(path), keys=plain, remedy=remedy)

    def caller_of(self, authorization: str) -> Caller:
        """The caller by what a call sends as `authorization`, empty if it sends nothing.

        If no keys are required, it is anybody, with the service's policy. Raises Unauthenticated.
        """
        if not self.required:
            return self._anybody
        if not authorization:
            raise Unauthenticated("authorization: no API key; send 'authorization: Bearer KEY' as metadata or header")
        if not authorization.lower().startswith(_SCHEME):
            raise Unauthenticated("authorization: is not of the form 'Bearer KEY'; put that word before the key")
        digest, match = digest_of(authorization[len(_SCHEME) :].strip()), None
        for known, caller in self._callers.items():  # all of them, so that the time taken reveals nothing
            if hmac.compare_digest(known, digest):
                match = caller
        if match is None:
            raise Unauthenticated("authorization: the API key is unknown; check it, or ask for a new one")
        return match


def _callers(file: KeysFile, service: Policy) -> dict[bytes, Caller]:
    """The owner of each key by the key's hash. Raises KeysFileError if a policy contradicts itself or another one."""
    of_models = {model: _resolve(f"policies.{model}", service, policy) for model, policy in file.policies.items()}
    callers = {}
    for i, key in enumerate(file.keys):
        policies = {
            model: _resolve(
                f"keys[{i}].policies.{model}" if model in key.policies else f"keys[{i}].policy on model {model}",
                service,
                file.policies.get(model, _EMPTY),
                key.policy,
                key.policies.get(model, _EMPTY),
            )
            for model in of_models.keys() | key.policies.keys()
            if not key.models or model in key.models
        }
        callers[key.digest] = Caller(
            salt=hashlib.sha256(b"salt" + key.digest).hexdigest()[:16],
            name=key.name,
            weight=key.weight,
            max_requests=key.max_requests or 0,
            models=frozenset(key.models),
            policy=_resolve(f"keys[{i}].policy", service, key.policy),
            policies=policies,
        )
    return callers


def _resolve(place: str, *policies: Policy) -> Policy:
    try:
        return resolve(*policies)
    except ValueError as error:
        raise KeysFileError(f"{place}: {error}") from error


def authorization_in(metadata: Iterable[tuple[str, str | bytes]] | None) -> str:
    """The value of `authorization` in the metadata of a gRPC call, or an empty text."""
    return str(dict(metadata or ()).get("authorization", ""))


class Authentication(grpc.aio.ServerInterceptor):
    """Refuses calls of `service` without a known key, and counts them. Their message is not read."""

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
    """Ends a call of any kind. gRPC reads the message of a unary handler first, but not those of a streaming one."""

    async def refuse(requests: object, context: grpc.aio.ServicerContext) -> None:
        set_status(context, error)

    return grpc.stream_stream_rpc_method_handler(refuse)
