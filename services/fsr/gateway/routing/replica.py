"""One encoder or decoder: its channel, what it serves, how busy and how healthy it is."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import grpc
import structlog
from grpc_health.v1 import health_pb2, health_pb2_grpc

from fsr.common.wire.transport import channel_options
from fsr.gateway.routing.circuit_breaker import BreakerPolicy, CircuitBreaker, HalfOpenCall
from fsr.v1 import decoder_pb2, decoder_pb2_grpc, encoder_pb2, encoder_pb2_grpc, types_pb2

__all__ = ["Replica", "Role"]

log = structlog.get_logger()
Role = Literal["encoder", "decoder"]
_RECONNECT_SECONDS = 0.3  # the longest pause between two attempts to reach a replica that is gone
_PROBE_PAUSE = 0.1  # seconds between two probes of a replica that has just failed
_MAX_LATE_PROBES = 3  # after so many probes in a row without an answer in time, a replica is down
_MAX_REASONS = 8
_UNREADABLE = "its description cannot be read"
_ENCODER = encoder_pb2.DESCRIPTOR.services_by_name["EncoderService"].full_name
_DECODER = decoder_pb2.DESCRIPTOR.services_by_name["DecoderService"].full_name


@dataclass(eq=False, kw_only=True)
class Replica:
    """One address. `model` is None while it is down: before its first answer, and when it stops to answer."""

    role: Role
    address: str
    policy: BreakerPolicy
    keepalive_seconds: float
    credentials: grpc.ChannelCredentials | None = None  # None: without TLS
    tls_name: str = ""  # name in its certificate
    clock: Callable[[], float] = time.monotonic
    model: types_pb2.ModelDescription | None = None
    last_model: str = ""  # name of the model that it served last
    last_fingerprint: str = ""  # of the checkpoint that it served last
    methods: tuple[str, ...] = ()
    advertised: frozenset[str] = frozenset()  # addresses of all encoders of its application, as it reports them
    cost: types_pb2.CostModel = field(default_factory=types_pb2.CostModel)
    load: decoder_pb2.DecoderLoad = field(default_factory=decoder_pb2.DecoderLoad)
    outstanding: int = 0  # calls of this gateway that it has not answered yet

    def __post_init__(self) -> None:
        # Serve's ingress closes connections that ping it; calls to encoders are bounded in time instead.
        keepalive = self.keepalive_seconds if self.role == "decoder" else 0.0
        options = channel_options(keepalive, tls=self.credentials is not None, reconnect_seconds=_RECONNECT_SECONDS)
        if self.credentials is None:
            self.channel = grpc.aio.insecure_channel(self.address, options=options)
        else:
            options.append(("grpc.ssl_target_name_override", self.tls_name))
            self.channel = grpc.aio.secure_channel(self.address, self.credentials, options=options)
        self.encoder = encoder_pb2_grpc.EncoderServiceStub(self.channel)
        self.decoder = decoder_pb2_grpc.DecoderServiceStub(self.channel)
        # The two calls with large messages take and give bytes, so that nothing is written or parsed twice.
        channel: Any = self.channel  # the stubs want serializers, which gRPC does not
        self.encode: Callable[..., grpc.aio.UnaryUnaryCall[bytes, bytes]] = channel.unary_unary(f"/{_ENCODER}/Encode")
        self.decode: Callable[..., grpc.aio.UnaryStreamCall[bytes, decoder_pb2.DecodeResponse]] = channel.unary_stream(
            f"/{_DECODER}/Decode", response_deserializer=decoder_pb2.DecodeResponse.FromString
        )
        self.breaker = CircuitBreaker(self.policy, self.clock)
        self._health = health_pb2_grpc.HealthStub(self.channel)
        self._unanswered_probes = 0  # in a row
        self._last_answer = 0.0
        self.lost_at = -math.inf  # by time.monotonic: when it was last found to be down
        self._probe_task: asyncio.Task[None] | None = None
        self._reported: set[str] = set()  # why it was not reached since it was up

    def renewed(self, credentials: grpc.ChannelCredentials) -> Replica:
        """The same one for new calls, on a connection of its own. Calls that run stay with this one."""
        renewed = replace(self, credentials=credentials, outstanding=0)
        renewed.breaker = self.breaker
        return renewed

    @property
    def is_proxy(self) -> bool:
        """Whether it only leads to other addresses: Serve's proxy, if the replicas behind it have their own ports."""
        return bool(self.advertised) and self.address not in self.advertised

    @property
    def fingerprint(self) -> str:
        """Of its checkpoint; empty while it is down."""
        return self.model.fingerprint if self.model is not None else ""

    def serves(self, model: str) -> bool:
        return self.model is not None and self.model.model == model

    @property
    def busyness(self) -> float:
        """Requests at work over the free share of its KV memory: lower is better.

        Requests at work are those that this gateway has sent, or those that the replica last reported if they are
        more: other gateways send requests too.
        """
        requests = max(self.outstanding, self.load.running + self.load.waiting)
        free = self.load.kv_bytes_free / self.load.kv_bytes_capacity if self.load.kv_bytes_capacity else 1.0
        return (requests + 1) / max(free, 0.05)

    @contextmanager
    def calling(self, judged: bool = True) -> Iterator[HalfOpenCall | None]:
        """Counts one call for as long as it lasts. The breaker must hear of its success or failure before it ends.

        Yields a token if this is the call that a half-open breaker lets through; a failure is reported with it. A call
        that is not `judged` never is that one.
        """
        self.outstanding += 1
        half_open_call = self.breaker.call_started() if judged else None
        try:
            yield half_open_call
        finally:
            self.outstanding -= 1
            self.breaker.call_ended(half_open_call)

    def answered(self) -> None:
        """Notes the answer to a call: the replica lives, even if a probe from before it gets no answer."""
        self._last_answer, self._unanswered_probes = time.monotonic(), 0

    async def probe(self, timeout: float) -> None:
        """Asks for its state and its model. It is down if it drains, is unhealthy or does not answer."""
        began = time.monotonic()
        try:
            if self.role == "encoder":
                encoder = await self.encoder.DescribeEncoder(encoder_pb2.DescribeEncoderRequest(), timeout=timeout)
                if not _readable(encoder):
                    self.down(_UNREADABLE)
                    return
                self.methods, self.advertised = tuple(encoder.methods), frozenset(encoder.addresses)
                self.up(encoder.model)
                return
            health = await self._health.Check(health_pb2.HealthCheckRequest(service=_DECODER), timeout=timeout)
            if health is None or health.status != health_pb2.HealthCheckResponse.SERVING:
                self.down("not serving")
                return
            decoder = await self.decoder.DescribeDecoder(decoder_pb2.DescribeDecoderRequest(), timeout=timeout)
            if not _readable(decoder):
                self.down(_UNREADABLE)
                return
            self.cost, self.load = decoder.cost, decoder.load
            self.up(decoder.model)
        except grpc.aio.AioRpcError as error:
            self._probe_failed(error, began)

    def _probe_failed(self, error: grpc.aio.AioRpcError, began: float) -> None:
        code = error.code()
        late = code == grpc.StatusCode.DEADLINE_EXCEEDED
        if code == grpc.StatusCode.RESOURCE_EXHAUSTED or (late and self._last_answer >= began):
            self._unanswered_probes = 0  # full or busy: an encoder's probe waits in one queue with its calls
            return
        self._unanswered_probes += 1
        # A busy machine answers late; a refused connection is certain.
        if not late or self._unanswered_probes >= _MAX_LATE_PROBES:
            self.down(code.name)
            self._report(error.details() or code.name)

    def _report(self, reason: str) -> None:
        """Logs once why it is not reached, such as a certificate that has expired."""
        if reason not in self._reported and len(self._reported) < _MAX_REASONS:
            self._reported.add(reason)
            log.warning("replica not reached", role=self.role, address=self.address, reason=reason)

    def suspect(self, timeout: float, seconds: float) -> None:
        """Takes it out of the choice, and probes it at once and again for `seconds`: a short fault costs it only
        milliseconds, and one that restarts is back as soon as it answers."""
        self.down("failed a request")
        if self._probe_task is None or self._probe_task.done():
            self._probe_task = asyncio.create_task(self._probe_until_up(timeout, time.monotonic() + seconds))

    async def _probe_until_up(self, timeout: float, end: float) -> None:
        await self.probe(timeout)
        while self.model is None and time.monotonic() < end:
            await asyncio.sleep(_PROBE_PAUSE)
            await self.probe(timeout)

    async def close(self) -> None:
        """Ends its connection."""
        if self._probe_task is not None:
            self._probe_task.cancel()
            await asyncio.wait([self._probe_task])
        await self.channel.close(None)

    def up(self, model: types_pb2.ModelDescription) -> None:
        """Puts it into the choice, with the model that it serves."""
        if self.model is None:
            log.info("replica up", role=self.role, address=self.address, model=model.model)
            self._reported.clear()
        self.model, self.last_model, self.last_fingerprint = model, model.model, model.fingerprint
        self._unanswered_probes = 0

    def down(self, reason: str) -> None:
        """Takes it out of the choice until a probe succeeds."""
        if self.model is not None:
            log.warning("replica down", role=self.role, address=self.address, reason=reason)
            self.lost_at = time.monotonic()
        self.model = None


def _readable(description: encoder_pb2.DescribeEncoderResponse | decoder_pb2.DescribeDecoderResponse | None) -> bool:
    """Whether it names a model. It is None if gRPC could not parse it."""
    return description is not None and bool(description.model.model)
