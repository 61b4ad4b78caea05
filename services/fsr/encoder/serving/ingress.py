"""The two ways into the encoder: through Serve's proxy, or straight to each replica's own gRPC port (direct ingress).

Direct ingress is an experimental feature of Ray. The environment of all Ray processes switches it on, so it must be set
before Ray starts. Each replica then listens on a port of its own; the proxy stays beside it. It is the default, because
Serve's proxy takes longer for a picture whose features are cached than the encoder itself.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Literal

import structlog

from fsr.common.network.ports import join
from fsr.encoder.serving.serve_ports import LISTEN_ON
from fsr.encoder.settings import EncoderSettings

__all__ = ["ReplicaAddresses", "check_ingress", "environment", "ingress_of", "reachable"]

log = structlog.get_logger()
_SWITCH = "RAY_SERVE_ENABLE_DIRECT_INGRESS"
_PORTS = 1000  # Ray takes the next free port of a range of this size
_DRAINING_SECONDS = 5.0  # a stopping replica stays this long, so that gateways learn of it
_CONTROLLER_TIMEOUT_SECONDS = 1.0  # a gateway gives up on a replica's whole description after two


def environment(settings: EncoderSettings) -> dict[str, str]:
    """The environment variables that Ray's processes need for the ingress."""
    if settings.ingress == "proxy":
        return {}
    first = settings.direct_port
    return {
        _SWITCH: "1",
        "RAY_SERVE_DIRECT_INGRESS_MIN_GRPC_PORT": str(first),
        "RAY_SERVE_DIRECT_INGRESS_MAX_GRPC_PORT": str(first + _PORTS),
        "RAY_SERVE_DIRECT_INGRESS_MIN_HTTP_PORT": str(first + _PORTS),
        "RAY_SERVE_DIRECT_INGRESS_MAX_HTTP_PORT": str(first + 2 * _PORTS),
        "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": str(_DRAINING_SECONDS),
    }


def check_ingress(settings: EncoderSettings, environment: Mapping[str, str] = os.environ) -> None:
    """Raises ValueError if the settings insist on direct ingress and Ray was started without it."""
    if settings.ingress == "direct" and not _is_direct(environment):
        raise ValueError(
            f"ingress: direct needs a Ray whose processes all started with {_SWITCH}=1; "
            "set that for head and workers, or leave the ingress at auto"
        )


def ingress_of(settings: EncoderSettings, environment: Mapping[str, str] = os.environ) -> Literal["direct", "proxy"]:
    """The ingress of a replica with this environment. Logs it if `auto` falls back to the proxy. Raises ValueError."""
    check_ingress(settings, environment)
    if settings.ingress == "proxy" or _is_direct(environment):
        return "proxy" if settings.ingress == "proxy" else "direct"
    log.warning(
        "falls back to the ingress by Serve's proxy",
        reason=f"this Ray was started without {_SWITCH}=1",
        remedy="set it for head and workers; or set the ingress to proxy, and this is not said again",
    )
    return "proxy"


def _is_direct(environment: Mapping[str, str]) -> bool:
    return environment.get(_SWITCH) == "1"


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
        """The addresses now, or the last known ones if the controller does not answer."""
        if time.monotonic() >= self._fresh_until:
            try:
                async with asyncio.timeout(self._timeout_seconds):
                    self._addresses = await self._ask(self._application)
            except Exception as error:  # whatever is wrong with the controller, this replica works
                log.warning("the controller gives no addresses", reason=repr(error), known=len(self._addresses))
            self._fresh_until = time.monotonic() + self._fresh_seconds
        return self._addresses
