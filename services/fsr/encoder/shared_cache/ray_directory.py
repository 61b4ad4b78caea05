"""The directory as an actor of Ray, and features in Ray's object store."""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import Collection
from importlib import metadata
from typing import Any

import ray

from fsr.encoder.settings import EncoderSettings
from fsr.encoder.shared_cache.directory import Directory, News

__all__ = ["RayDirectory", "directory_name"]

_NAMESPACE = "fsr"
_CALLS = 10_000  # most calls that wait at the same time: a few for each replica
_UNUSED_SECONDS = 60.0


_OPTIONS = ("clip", "device", "dtype", "family_options", "scaled_jpeg")
_PACKAGES = ("fsr-gateway", "torch", "transformers")


def directory_name(fingerprint: str, settings: EncoderSettings) -> str:
    """The same for replicas that give the same features for a picture, also while a new version replaces an old one.

    Args:
        fingerprint: of the checkpoint.
    """
    parts = [fingerprint, [getattr(settings, name) for name in _OPTIONS], list(map(metadata.version, _PACKAGES))]
    return f"fsr-features-{hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:32]}"


class FeatureDirectory(Directory):
    """Ends by itself when it has no replicas any more: a Ray that was joined lives on."""

    def __init__(self) -> None:
        super().__init__()
        self._watched = False

    async def end_when_unused(self) -> None:
        if self._watched:
            return
        self._watched = True
        while True:
            await asyncio.sleep(_UNUSED_SECONDS)
            if not self.is_used():
                ray.actor.exit_actor()


class RayDirectory:
    """A `Directory` that lives in a process of this Ray. The first replica that needs it makes it.

    What is offered lies in the object store of its replica's node until those who wait for it have read it.
    Its methods raise errors of Ray if the actor, or the replica that has offered something, has died.
    """

    def __init__(self, name: str) -> None:
        kind: Any = ray.remote(FeatureDirectory)
        self._actor = kind.options(
            name=name,
            namespace=_NAMESPACE,
            lifetime="detached",  # it outlives the replica that has made it
            get_if_exists=True,
            num_cpus=0,
            max_concurrency=_CALLS,
        ).remote()
        self._actor.end_when_unused.remote()

    async def announce(self, name: str, added: Collection[str], dropped: Collection[str]) -> None:
        await self._actor.announce.remote(name, added, dropped)

    async def news(self, name: str) -> News | None:
        news: News | None = await self._actor.news.remote(name)
        return news

    async def wanted(self, name: str) -> Collection[str] | None:
        wanted: Collection[str] | None = await self._actor.wanted.remote(name)
        return wanted

    async def fetch(self, name: str, key: str) -> Any:
        offered = await self._actor.fetch.remote(name, key)
        return None if offered is None else await offered[0]

    async def offer(self, key: str, content: Any) -> None:
        # In a list, Ray hands on where the content is, not the content.
        offered = None if content is None else [await asyncio.to_thread(ray.put, content)]
        await self._actor.offer.remote(key, offered)
