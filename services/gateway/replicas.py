"""The encoders and decoders that the gateway knows, what they serve, and which is asked next."""

from __future__ import annotations

import asyncio
import random
from dataclasses import dataclass, field

import grpc
import structlog
from fsr.v1 import decoder_pb2, decoder_pb2_grpc, encoder_pb2, encoder_pb2_grpc, types_pb2

from services.errors import NotReady, UnknownModel
from services.gateway.metrics import Metrics
from services.transport import MESSAGE_BYTES

__all__ = ["Pools", "Replica"]

log = structlog.get_logger()
_OPTIONS = [
    ("grpc.max_send_message_length", MESSAGE_BYTES),
    ("grpc.max_receive_message_length", MESSAGE_BYTES),
    ("grpc.max_reconnect_backoff_ms", 2000),
]


@dataclass
class Replica:
    """One address. `model` is None until it has answered, and again once it no longer does."""

    role: str
    address: str
    channel: grpc.aio.Channel
    model: types_pb2.ModelDescription | None = None
    methods: tuple[str, ...] = ()
    cost: types_pb2.CostModel = field(default_factory=types_pb2.CostModel)
    outstanding: int = 0

    def __post_init__(self) -> None:
        self.encoder = encoder_pb2_grpc.EncoderServiceStub(self.channel)
        self.decoder = decoder_pb2_grpc.DecoderServiceStub(self.channel)

    async def describe(self) -> None:
        """Asks what it serves; a replica that does not answer serves nothing."""
        try:
            if self.role == "encoder":
                told = await self.encoder.DescribeEncoder(encoder_pb2.DescribeEncoderRequest(), timeout=5)
                self.methods = tuple(told.methods)
            else:
                told = await self.decoder.DescribeDecoder(decoder_pb2.DescribeDecoderRequest(), timeout=5)
                self.cost = told.cost
            if self.model is None:
                log.info("replica up", role=self.role, address=self.address, model=told.model.model)
            self.model = told.model
        except grpc.aio.AioRpcError as error:
            if self.model is not None:
                log.warning("replica down", role=self.role, address=self.address, code=error.code().name)
            self.model = None


class Pools:
    """All replicas and what they serve."""

    def __init__(self, encoders: list[str], decoders: list[str], metrics: Metrics) -> None:
        self._all = [
            Replica(role, address, grpc.aio.insecure_channel(address, options=_OPTIONS))
            for role, addresses in (("encoder", encoders), ("decoder", decoders))
            for address in addresses
        ]
        self._metrics = metrics

    async def look(self) -> None:
        """Asks every replica once what it serves; called every few seconds."""
        await asyncio.gather(*(replica.describe() for replica in self._all))
        for name in self.models():
            for role in ("encoder", "decoder"):
                self._metrics.replicas.labels(name, role).set(len(self.of(role, name)))

    async def close(self) -> None:
        await asyncio.gather(*(replica.channel.close(None) for replica in self._all))

    def models(self) -> list[str]:
        """Names of all models that some replica serves."""
        return sorted({replica.model.model for replica in self._all if replica.model is not None})

    def ready(self, model: str) -> bool:
        """Whether the model has an encoder and a decoder."""
        return bool(self.of("encoder", model) and self.of("decoder", model))

    def of(self, role: str, model: str) -> list[Replica]:
        """The replicas of a role that answer for a model."""
        return [r for r in self._all if r.role == role and r.model is not None and r.model.model == model]

    def resolve(self, model: str) -> str:
        """The name of the model that is meant. Raises UnknownModel with the list, NotReady where nobody answered."""
        names = self.models()
        silent = [replica.address for replica in self._all if replica.model is None]
        if model in names:
            return model
        if not model and len(names) == 1:
            return names[0]
        if not names or (model and silent):
            raise NotReady(f"model: no replica of {model or 'any model'} answers yet; silent: {', '.join(silent)}")
        wish = f"{model!r} is unknown" if model else "is empty, and several are served"
        raise UnknownModel(f"model: {wish}; ask for one of {', '.join(names)}")

    def methods(self, model: str) -> tuple[str, ...]:
        """Compression methods that an encoder of the model offers."""
        encoders = self.of("encoder", model)
        return encoders[0].methods if encoders else ()

    def encoder(self, model: str, without: frozenset[str] = frozenset()) -> Replica:
        """Raises NotReady where none answers."""
        return self._pick(self.of("encoder", model), "encoder", model, without)

    def decoder(self, model: str, fingerprint: str | None, without: frozenset[str] = frozenset()) -> Replica:
        """A replica that holds the checkpoint the embeddings come from. Raises NotReady where none does."""
        some = self.of("decoder", model)
        fitting = [
            r for r in some if fingerprint is None or (r.model is not None and r.model.fingerprint == fingerprint)
        ]
        if some and not fitting:
            raise NotReady(f"model: no decoder of {model} holds the encoder's checkpoint {str(fingerprint)[:12]}")
        return self._pick(fitting, "decoder", model, without)

    @staticmethod
    def _pick(some: list[Replica], role: str, model: str, without: frozenset[str]) -> Replica:
        """Power of two choices on outstanding requests."""
        able = [replica for replica in some if replica.address not in without]
        if not able:
            raise NotReady(f"model: no {role} of {model} answers; it may be starting, try again in a moment")
        return min(random.sample(able, min(2, len(able))), key=lambda replica: replica.outstanding)
