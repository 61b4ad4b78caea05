"""The two ways into the encoder: through Serve's proxy, or straight to each replica's own gRPC port (direct ingress).

Direct ingress is an experimental feature of Ray. The environment of all Ray processes switches it on, so it must be set
before Ray starts. Each replica then listens on a port of its own; the proxy stays beside it.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Awaitable, Callable

import structlog

from fsr.common.ports import join
from fsr.encoder.serve_ports import LISTEN_ON
from fsr.encoder.settings import EncoderSettings

__all__ = ["ReplicaAddresses", "check_ingress", "environment", "reachable"]

log = structlog.get_logger()
_PORTS = 1000  # Ray takes the next free port of a range of this size
_DRAINING_SECONDS = 5.0  # a stopping replica stays this long, so that gateways learn of it
_CONTROLLER_TIMEOUT_SECONDS = 1.0  # a gateway gives up on a replica's whole description after two


def environment(settings: EncoderSettings) -> dict[str, str]:
    """The environment variables that Ray's processes need."""
    if settings.ingress == "proxy":
        return {}
    first = settings.direct_port
    return {
        "RAY_SERVE_ENABLE_DIRECT_INGRESS": "1",
        "RAY_SERVE_DIRECT_INGRESS_MIN_GRPC_PORT": str(first),
        "RAY_SERVE_DIRECT_INGRESS_MAX_GRPC_PORT": str(first + _PORTS),
        "RAY_SERVE_DIRECT_INGRESS_MIN_HTTP_PORT": str(first + _PORTS),
        "RAY_SERVE_DIRECT_INGRESS_MAX_HTTP_PORT": str(first + 2 * _PORTS),
        "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": str(_DRAINING_SECONDS),
    }


def check_ingress(settings: EncoderSettings) -> None:
    """Raises ValueError if the settings ask for direct ingress and Ray was started without it."""
    if settings.ingress == "direct" and not _is_direct():
        raise ValueError(
            "ingress: direct needs a Ray whose processes all started with RAY_SERVE_ENABLE_DIRECT_INGRESS=1; "
            "set that for head and workers, or leave the ingress at proxy"
        )


def _is_direct() -> bool:
    return os.environ.get("RAY_SERVE_ENABLE_DIRECT_INGRESS") == "1"


async def _ask_controller(application: str) -> list[str]:
    """The gRPC addresses of an application's replicas, from Serve's controller.

    `_controller` is private, but Ray has no public way to get these ports; so pyproject.toml holds ray below 2.61.
    """
    from ray.serve.context import _get_global_client
    from ray.serve.schema import RequestProtocol

    client = _get_global_client()
    groups = await client._controller.get_target_groups.remote(application)  # type: ignore[union-attr]
    return sorted(
        reachable(target.ip, target.port)
        for group in groups
        if group.protocol == RequestProtocol.GRPC and group.app_name == application
        for target in group.targets
    )


def reachable(ip: str, port: int) -> str:
    """The address of a port of this Ray, which knows a node by one of its addresses alone."""
    listens_on = os.environ.get(LISTEN_ON)
    return join(ip if listens_on in (None, "", "0.0.0.0", "::") else listens_on, port)


class ReplicaAddresses:
    """The addresses of all replicas of an application, cached for `fresh_seconds`.

    `ask` returns them; it is given the application's name, and `timeout_seconds` to answer.
    """

    def __init__(
        self,
        application: str,
        *,
        fresh_seconds: float = 1.0,
        timeout_seconds: float = _CONTROLLER_TIMEOUT_SECONDS,
        ask: Callable[[str], Awaitable[list[str]]] = _ask_controller,
    ) -> None:
        self._application, self._ask = application, ask
        self._fresh_seconds, self._timeout_seconds = fresh_seconds, timeout_seconds
        self._addresses: list[str] = []
        self._fresh_until = 0.0

    async def get(self) -> list[str]:
        """The addresses now, or the last known ones if the controller does not answer. Empty without direct ingress."""
        if not _is_direct():
            return []
        if time.monotonic() >= self._fresh_until:
            try:
                async with asyncio.timeout(self._timeout_seconds):
                    self._addresses = await self._ask(self._application)
            except Exception as error:  # whatever is wrong with the controller, this replica works
                log.warning("the controller gives no addresses", reason=repr(error), known=len(self._addresses))
            self._fresh_until = time.monotonic() + self._fresh_seconds
        return self._addresses
