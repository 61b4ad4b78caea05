"""All replicas: which there are, what they serve, and which is asked next."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Collection

import structlog

from fsr.common.errors import Mismatch, NotReady, UnknownModel
from fsr.gateway.metrics import Metrics
from fsr.gateway.routing.balancing import less_busy_of_two, rendezvous
from fsr.gateway.routing.circuit_breaker import EjectionPolicy
from fsr.gateway.routing.discovery import Discovery
from fsr.gateway.routing.replica import Replica, Role
from fsr.gateway.settings import GatewaySettings

__all__ = ["Pools"]

log = structlog.get_logger()
_ROLES: tuple[Role, ...] = ("encoder", "decoder")
_RETRY_AFTER = 1.0  # seconds; about the time between two looks
# How long a model is missed once it has no address. A DNS name that leads nowhere keeps those it had (see Discovery),
# but one shared with another model drops those of pods that are not ready, as if this model had been taken away.
_RETIRED_SECONDS = 3600.0


class Pools:
    """The replicas of every model, kept up to date by `look`."""

    def __init__(
        self, settings: GatewaySettings, metrics: Metrics, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._settings, self._metrics, self._clock = settings, metrics, clock
        self._policy = EjectionPolicy(settings.eject_failures, settings.eject_seconds, settings.eject_max_seconds)
        patience = settings.probe_timeout_seconds
        self._sources = [Discovery(targets, patience) for targets in (settings.encoders, settings.decoders)]
        self._all: dict[tuple[Role, str], Replica] = {}
        self._leaving: list[Replica] = []
        self._seen: dict[str, float] = {}  # when each model last had an address, answering or not

    async def look(self) -> None:
        """Finds out which replicas there are and asks each how it is; called every few seconds."""
        found = await asyncio.gather(*(source.addresses() for source in self._sources))
        for role, addresses in zip(_ROLES, found, strict=True):
            told = [r.told for r in self._all.values() if r.role == role and r.model is not None]
            self._adopt(role, addresses.union(*told))
        await asyncio.gather(*(r.probe(self._settings.probe_timeout_seconds) for r in self._all.values()))
        self._count()
        for role in _ROLES:
            ejected = sum(r.ejection.out for (kind, _), r in self._all.items() if kind == role)
            self._metrics.ejected.labels(role).set(ejected)
        await self._let_go()

    def _count(self) -> None:
        """Tells how many replicas each model has: 0 where they are gone, nothing once it is retired."""
        now = self._clock()
        self._seen.update({replica.served: now for replica in self._all.values() if replica.served})
        for name in [name for name, last in self._seen.items() if now - last > _RETIRED_SECONDS]:
            log.info("model retired", model=name)
            del self._seen[name]
            for role in _ROLES:
                self._metrics.replicas.remove(name, role)
        for name in self._seen:
            self._metrics.replicas.labels(name, "encoder").set(len(self.of("encoder", name)))
            self._metrics.replicas.labels(name, "decoder").set(len(self.fitting(name)))

    def _adopt(self, role: Role, addresses: Collection[str]) -> None:
        for address in addresses:
            if (role, address) not in self._all:
                log.info("replica found", role=role, address=address)
                self._all[role, address] = Replica(role, address, self._policy, self._settings.keepalive_seconds)
        for key in [key for key in self._all if key[0] == role and key[1] not in addresses]:
            log.info("replica gone from the list", role=role, address=key[1])
            self._leaving.append(self._all.pop(key))

    async def _let_go(self) -> None:
        """Closes replicas that have left, once their last answer is complete."""
        done = [replica for replica in self._leaving if not replica.outstanding]
        self._leaving = [replica for replica in self._leaving if replica.outstanding]
        for replica in done:
            await replica.channel.close(None)

    async def close(self) -> None:
        await asyncio.gather(*(r.channel.close(None) for r in (*self._all.values(), *self._leaving)))

    def models(self) -> list[str]:
        """Names of all models that some replica serves."""
        return sorted({replica.model.model for replica in self._all.values() if replica.model is not None})

    def ready(self, model: str) -> bool:
        """Whether the model has an encoder and a decoder of the same checkpoint."""
        return bool(self.of("encoder", model) and self.fitting(model))

    def fitting(self, model: str) -> list[Replica]:
        """The decoders that hold the checkpoint of an encoder of the model; all of them where no encoder answers."""
        encoders, decoders = self.of("encoder", model), self.of("decoder", model)
        held = {encoder.fingerprint for encoder in encoders}
        return [decoder for decoder in decoders if decoder.fingerprint in held] if encoders else decoders

    def of(self, role: Role, model: str) -> list[Replica]:
        """The replicas of a role that answer for a model; a proxy counts only while none behind it can be reached."""
        some = [r for r in self._all.values() if r.role == role and r.serves(model)]
        return [replica for replica in some if not replica.directory] or some

    def resolve(self, model: str, may_ask: Callable[[str], bool] = lambda name: True) -> str:
        """The name of the model that is meant, out of those that the caller `may_ask` for where it names none.

        Raises UnknownModel with the list of these, NotReady where nobody answered.
        """
        names = self.models()
        own = [name for name in names if may_ask(name)]
        silent = [replica.address for replica in self._all.values() if replica.model is None]
        if model in names:
            return model
        if not model and len(own or names) == 1:
            return (own or names)[0]
        if not names or (model and silent):
            where = f"silent: {', '.join(silent)}" if silent else "no address is known"
            raise NotReady(f"model: no replica of {model or 'any model'} answers yet; {where}", _RETRY_AFTER)
        wish = f"{model!r} is unknown" if model else "is empty, and several are served"
        raise UnknownModel(f"model: {wish}; ask for one of {', '.join(own) or 'those that your key is for'}")

    def methods(self, model: str) -> tuple[str, ...]:
        """Compression methods that an encoder of the model offers."""
        encoders = self.of("encoder", model)
        return encoders[0].methods if encoders else ()

    def encoder(self, model: str, key: bytes, without: Collection[str] = ()) -> Replica:
        """The one that is likeliest to know the image with this digest. Raises NotReady where none answers.

        While a new checkpoint is rolled out, only those that a decoder can follow, unless there are none.
        """
        held = {decoder.fingerprint for decoder in self.of("decoder", model)}
        some = self.of("encoder", model)
        followed = [encoder for encoder in some if encoder.fingerprint in held]
        return self._pick("encoder", model, followed or some, without, lambda some: rendezvous(some, key))

    def decoder(self, model: str, fingerprint: str, without: Collection[str] = ()) -> Replica:
        """A replica that holds the checkpoint the embeddings come from. Raises Mismatch where those that answer hold
        others, NotReady where none answers.

        An empty fingerprint, that of a new request without images, goes to any.
        """
        some = self.of("decoder", model)
        fitting = [replica for replica in some if fingerprint in ("", replica.fingerprint)]
        if some and not fitting:
            reason = f"model: no decoder of {model} holds the encoder's checkpoint {fingerprint[:12]}"
            raise Mismatch(f"{reason}; serve both halves from the same checkpoint")
        return self._pick("decoder", model, fitting, without, less_busy_of_two)

    @staticmethod
    def _pick(
        role: Role,
        model: str,
        some: list[Replica],
        without: Collection[str],
        choose: Callable[[list[Replica]], Replica],
    ) -> Replica:
        able = [replica for replica in some if replica.address not in without]
        if not able:
            raise NotReady(f"model: no {role} of {model} answers; it may be starting, try again", _RETRY_AFTER)
        # Where all are ejected the cluster is sick, not the replica: then any is better than none.
        return choose([replica for replica in able if replica.ejection.admits] or able)
