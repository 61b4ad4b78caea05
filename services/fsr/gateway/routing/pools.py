"""All replicas: which there are, what they serve, and which gets the next request."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable, Collection

import structlog

from fsr.common.errors import Mismatch, NotReady, UnknownModel
from fsr.common.network.certificates import channel_credentials
from fsr.gateway.options.settings import GatewaySettings
from fsr.gateway.routing.balancing import power_of_two_choices, rendezvous
from fsr.gateway.routing.circuit_breaker import BreakerPolicy
from fsr.gateway.routing.discovery import Discovery
from fsr.gateway.routing.replica import Replica, Role
from fsr.gateway.telemetry.metrics import Metrics

__all__ = ["Pools"]

log = structlog.get_logger()
_ROLES: tuple[Role, ...] = ("encoder", "decoder")
_RETRY_AFTER = 1.0  # seconds; about the time between two refreshes
# How long a model without addresses keeps its metrics. A DNS name that leads nowhere keeps its last addresses (see
# Discovery). But a name that several models share loses the addresses of pods that are not ready, and then it looks as
# if the model had been taken away.
_RETIRED_SECONDS = 3600.0


class Pools:
    """The replicas of all models, kept up to date by `refresh`."""

    def __init__(
        self, settings: GatewaySettings, metrics: Metrics, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._settings, self._metrics, self._clock = settings, metrics, clock
        self._policy = BreakerPolicy(settings.eject_failures, settings.eject_seconds, settings.eject_max_seconds)
        timeout = settings.probe_timeout_seconds
        self._sources: dict[Role, Discovery] = {
            "encoder": Discovery(settings.encoders, timeout),
            "decoder": Discovery(settings.decoders, timeout),
        }
        self._certificate = settings.replica_certificate()
        self._credentials = None if self._certificate is None else channel_credentials(self._certificate.pems)
        self._by_address: dict[tuple[Role, str], Replica] = {}
        self._leaving: list[Replica] = []  # no longer listed, but with calls in flight
        self._last_listed: dict[str, float] = {}  # by model: when it last had an address, answering or not

    async def refresh(self) -> None:
        """Looks up the addresses and probes every replica; called every few seconds."""
        self._renew_certificate()
        listed = await asyncio.gather(*(source.addresses() for source in self._sources.values()))
        for role, addresses in zip(_ROLES, listed, strict=True):
            advertised = [replica.advertised for replica in self.all(role) if replica.model is not None]
            self.set_addresses(role, addresses.union(*advertised))
        timeout = self._settings.probe_timeout_seconds
        await asyncio.gather(*(replica.probe(timeout) for replica in self._by_address.values()))
        self.update_metrics()
        await self._close_idle_leavers()

    def _renew_certificate(self) -> None:
        """If the certificate's files have changed, new calls go over new connections; those that run end on theirs."""
        if self._certificate is None or not self._certificate.refresh():
            return
        self._credentials = channel_credentials(self._certificate.pems)
        self._leaving += self._by_address.values()
        self._by_address = {key: replica.renewed(self._credentials) for key, replica in self._by_address.items()}

    def set_addresses(self, role: Role, addresses: Collection[str]) -> None:
        """From now on the role has replicas at these addresses. Those at others finish the calls that they have."""
        tls_name: str | None = getattr(self._settings, f"{role}_tls_name")
        for address in addresses:
            if (role, address) not in self._by_address:
                log.info("replica found", role=role, address=address)
                self._by_address[role, address] = Replica(
                    role=role,
                    address=address,
                    policy=self._policy,
                    keepalive_seconds=self._settings.keepalive_seconds,
                    credentials=self._credentials,
                    tls_name=tls_name or self._sources[role].host_of(address),
                    clock=self._clock,
                )
        for key in [key for key in self._by_address if key[0] == role and key[1] not in addresses]:
            log.info("replica gone from the list", role=role, address=key[1])
            self._leaving.append(self._by_address.pop(key))

    def update_metrics(self) -> None:
        """Counts replicas: 0 for a model that has none any more, no series once it is retired."""
        now = self._clock()
        for replica in self._by_address.values():
            if replica.last_model:
                self._last_listed[replica.last_model] = now
        for model in [model for model, last in self._last_listed.items() if now - last > _RETIRED_SECONDS]:
            log.info("model retired", model=model)
            del self._last_listed[model]
            for role in _ROLES:
                self._metrics.replicas.remove(model, role)
        for model in self._last_listed:
            self._metrics.replicas.labels(model, "encoder").set(len(self.serving("encoder", model)))
            self._metrics.replicas.labels(model, "decoder").set(len(self.matching_decoders(model)))
        for role in _ROLES:
            not_closed = sum(replica.breaker.state != "closed" for replica in self.all(role))
            self._metrics.ejected.labels(role).set(not_closed)

    async def _close_idle_leavers(self) -> None:
        idle = [replica for replica in self._leaving if not replica.outstanding]
        self._leaving = [replica for replica in self._leaving if replica.outstanding]
        for replica in idle:
            await replica.close()

    async def close(self) -> None:
        """Closes all channels."""
        await asyncio.gather(*(replica.close() for replica in (*self._by_address.values(), *self._leaving)))

    def all(self, role: Role) -> list[Replica]:
        """The replicas of a role, up or down."""
        return [replica for replica in self._by_address.values() if replica.role == role]

    def serving(self, role: Role, model: str) -> list[Replica]:
        """The replicas of a role that serve a model. A proxy counts only while no replica behind it can be reached."""
        replicas = [replica for replica in self.all(role) if replica.serves(model)]
        return [replica for replica in replicas if not replica.is_proxy] or replicas

    def last_loss(self, role: Role, model: str) -> float:
        """When a replica of the model was last found to be down, by `time.monotonic`; before all time if none was."""
        return max((r.lost_at for r in self.all(role) if r.last_model == model), default=-math.inf)

    def models(self) -> list[str]:
        """Names of all models that some replica serves."""
        return sorted({r.model.model for r in self._by_address.values() if r.model is not None})

    def ready(self, model: str) -> bool:
        """Whether the model has an encoder and a decoder of the same checkpoint."""
        return bool(self.serving("encoder", model) and self.matching_decoders(model))

    def matching_decoders(self, model: str) -> list[Replica]:
        """The decoders with the checkpoint of an encoder of the model; all decoders if it has no encoder."""
        encoders, decoders = self.serving("encoder", model), self.serving("decoder", model)
        fingerprints = {encoder.fingerprint for encoder in encoders}
        return [decoder for decoder in decoders if decoder.fingerprint in fingerprints] if encoders else decoders

    def resolve(self, model: str, may_use: Callable[[str], bool] = lambda name: True) -> str:
        """The model that a request is for. If the request names none, it is the only one that the caller `may_use`.

        A model whose replicas were all lost a moment ago counts: the request may wait for them.

        Raises UnknownModel with the list of models that the caller may use, NotReady if no replica has answered.
        """
        lost_since = time.monotonic() - self._settings.failover_wait_seconds
        lost = {r.last_model for r in self._by_address.values() if r.model is None and r.lost_at > lost_since}
        names = sorted(lost.union(self.models()))
        usable = [name for name in names if may_use(name)]
        silent = any(replica.model is None for replica in self._by_address.values())
        if model in names:
            return model
        if not model and len(usable or names) == 1:
            return (usable or names)[0]
        if not names or (model and silent):
            reason = "it may be starting, try again" if silent else "no address is known"
            raise NotReady(f"model: no replica of {model or 'any model'} answers yet; {reason}", _RETRY_AFTER)
        reason = f"{model!r} is unknown" if model else "is empty, and several are served"
        raise UnknownModel(f"model: {reason}; ask for one of {', '.join(usable) or 'those that your key is for'}")

    def methods(self, model: str) -> tuple[str, ...]:
        """The compression methods that an encoder of the model offers."""
        encoders = self.serving("encoder", model)
        return encoders[0].methods if encoders else ()

    def pick_encoder(self, model: str, key: bytes, without: Collection[str] = (), *, fingerprint: str = "") -> Replica:
        """The encoder that is likeliest to have the image with this digest in its cache. Raises NotReady.

        While a new checkpoint is rolled out, it is one with the checkpoint of this fingerprint, or, if the fingerprint
        is empty, one whose checkpoint a decoder has; unless there is none.
        """
        decoders = self.serving("decoder", model)
        fingerprints = {fingerprint} if fingerprint else {decoder.fingerprint for decoder in decoders}
        encoders = self.serving("encoder", model)
        matching = [encoder for encoder in encoders if encoder.fingerprint in fingerprints]
        able = _able("encoder", model, matching or encoders, without)
        return rendezvous(able, key)

    def pick_decoder(self, model: str, fingerprint: str, without: Collection[str] = ()) -> Replica:
        """A decoder with the checkpoint that the embeddings come from. Raises NotReady, and Mismatch if all decoders
        have another checkpoint.

        An empty fingerprint fits every decoder: a new request without images has it.
        """
        decoders = self.serving("decoder", model)
        matching = [decoder for decoder in decoders if fingerprint in ("", decoder.fingerprint)]
        if decoders and not matching:
            reason = f"model: no decoder of {model} holds the encoder's checkpoint {fingerprint[:12]}"
            raise Mismatch(f"{reason}; serve both halves from the same checkpoint")
        return power_of_two_choices(_able("decoder", model, matching, without))


def _able(role: Role, model: str, replicas: list[Replica], without: Collection[str]) -> list[Replica]:
    """Those that may get a call, at none of the addresses `without`. Raises NotReady if there is none."""
    others = [replica for replica in replicas if replica.address not in without]
    if not others:
        raise NotReady(f"model: no {role} of {model} answers; it may be starting, try again", _RETRY_AFTER)
    # If no breaker allows a call, the cluster is sick and not the replica: then any replica is better than none.
    return [replica for replica in others if replica.breaker.allows_call] or others
