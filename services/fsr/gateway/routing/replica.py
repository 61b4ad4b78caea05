"""One encoder or decoder: its channel, what it serves, how loaded and how healthy it is."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Literal

import grpc
import structlog
from grpc_health.v1 import health_pb2, health_pb2_grpc

from fsr.common.transport import channel_options
from fsr.gateway.routing.circuit_breaker import Ejection, EjectionPolicy, Trial
from fsr.v1 import decoder_pb2, decoder_pb2_grpc, encoder_pb2, encoder_pb2_grpc, types_pb2

__all__ = ["Replica", "Role"]

log = structlog.get_logger()
Role = Literal["encoder", "decoder"]
_PATIENCE = 3  # probes in a row that may time out before a replica counts as gone
_DECODER = decoder_pb2.DESCRIPTOR.services_by_name["DecoderService"].full_name


@dataclass(eq=False)
class Replica:
    """One address. `model` is None until it has answered, and again once it no longer does."""

    role: Role
    address: str
    policy: EjectionPolicy
    keepalive_seconds: float
    model: types_pb2.ModelDescription | None = None
    methods: tuple[str, ...] = ()
    cost: types_pb2.CostModel = field(default_factory=types_pb2.CostModel)
    load: decoder_pb2.DecoderLoad = field(default_factory=decoder_pb2.DecoderLoad)
    outstanding: int = 0
    silent: int = 0
    told: frozenset[str] = frozenset()
    served: str = ""  # name of the model that it served last

    def __post_init__(self) -> None:
        # Serve's ingress, where the encoder lives, takes offence at pings; its calls are bounded in time instead.
        keepalive = self.keepalive_seconds if self.role == "decoder" else 0.0
        self.channel = grpc.aio.insecure_channel(self.address, options=channel_options(keepalive))
        self.encoder = encoder_pb2_grpc.EncoderServiceStub(self.channel)
        self.decoder = decoder_pb2_grpc.DecoderServiceStub(self.channel)
        self._health = health_pb2_grpc.HealthStub(self.channel)
        self.ejection = Ejection(self.policy)
        self._heard = 0.0
        self._checking: asyncio.Task[None] | None = None

    @property
    def directory(self) -> bool:
        """Whether it only leads to other addresses: Serve's proxy, where the replicas behind it have ports too."""
        return bool(self.told) and self.address not in self.told

    @property
    def fingerprint(self) -> str:
        """Of its checkpoint; empty while it does not answer."""
        return self.model.fingerprint if self.model is not None else ""

    def serves(self, model: str) -> bool:
        return self.model is not None and self.model.model == model

    @property
    def busyness(self) -> float:
        """Work at hand over the share of KV memory that is free: lower is better.

        Work is what this gateway has sent, or what the replica last reported where that is more: others send too.
        """
        work = max(self.outstanding, self.load.running + self.load.waiting)
        free = self.load.kv_bytes_free / self.load.kv_bytes_capacity if self.load.kv_bytes_capacity else 1.0
        return (work + 1) / max(free, 0.05)

    @contextmanager
    def working(self, may_try: bool = True) -> Iterator[Trial | None]:
        """For the length of one call to it; what became of the call must be said before it ends.

        Yields the trial where the call is one, which it `may_try` to be, to be shown with its failure.
        """
        self.outstanding += 1
        trial = self.ejection.chosen() if may_try else None
        try:
            yield trial
        finally:
            self.outstanding -= 1
            self.ejection.abandoned(trial)

    def heard(self) -> None:
        """It answered a call, so it lives, whatever has become of probes that were sent before."""
        self._heard, self.silent = time.monotonic(), 0

    async def probe(self, timeout: float) -> None:
        """Asks how it is and what it serves; one that drains, is unhealthy or does not answer serves nothing."""
        began = time.monotonic()
        try:
            if self.role == "encoder":
                told = await self.encoder.DescribeEncoder(encoder_pb2.DescribeEncoderRequest(), timeout=timeout)
                self.methods, self.told = tuple(told.methods), frozenset(told.addresses)
                self._up(told.model)
                return
            health = await self._health.Check(health_pb2.HealthCheckRequest(service=_DECODER), timeout=timeout)
            if health.status != health_pb2.HealthCheckResponse.SERVING:
                self.down("not serving")
                return
            described = await self.decoder.DescribeDecoder(decoder_pb2.DescribeDecoderRequest(), timeout=timeout)
            self.cost, self.load = described.cost, described.load
            self._up(described.model)
        except grpc.aio.AioRpcError as error:
            self._unanswered(error, began)

    def _up(self, model: types_pb2.ModelDescription) -> None:
        if self.model is None:
            log.info("replica up", role=self.role, address=self.address, model=model.model)
        self.model, self.served, self.silent = model, model.model, 0

    def _unanswered(self, error: grpc.aio.AioRpcError, began: float) -> None:
        code = error.code()
        late = code == grpc.StatusCode.DEADLINE_EXCEEDED
        if code == grpc.StatusCode.RESOURCE_EXHAUSTED or (late and self._heard >= began):
            self.silent = 0  # full, or busy: an encoder's probe waits in one queue with its calls
            return
        self.silent += 1
        # A busy machine answers late; a refused connection is certain.
        if not late or self.silent >= _PATIENCE:
            self.down(code.name)

    def suspect(self, timeout: float) -> None:
        """Takes it out of the choice and asks at once how it is, so that a blip costs it milliseconds."""
        self.down("failed a request")
        if self._checking is None or self._checking.done():
            self._checking = asyncio.create_task(self.probe(timeout))

    def down(self, reason: str) -> None:
        """Takes it out of the choice until a probe finds it well."""
        if self.model is not None:
            log.warning("replica down", role=self.role, address=self.address, reason=reason)
        self.model = None
