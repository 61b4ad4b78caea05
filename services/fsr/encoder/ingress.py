"""The two ways into the encoder: Serve's proxy, or straight to each replica's own gRPC port (direct ingress).

Direct ingress is Ray's own, experimental, and switched on by the environment of all its processes, so before Ray
starts. Each replica then listens on a port of its own, on every interface; the proxy stays beside it. Which ports
there are only Serve's controller knows: its method for load balancers is asked here, which is not public API.
"""

from __future__ import annotations

import asyncio
import os
import time

import structlog

from fsr.encoder.settings import EncoderSettings

__all__ = ["ReplicaPorts", "check_ingress", "environment"]

log = structlog.get_logger()
_PORTS = 1000  # Ray takes the next free one of as many
_DRAINING_SECONDS = 5.0  # a replica that is to go stays as long, so that gateways learn of it
_PATIENCE = 1.0  # seconds for the controller; gateways wait two for all that a replica says of itself


def environment(settings: EncoderSettings) -> dict[str, str]:
    """What Ray's processes must find in their environment."""
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
    """Raises ValueError where the settings want direct ingress of a Ray that was started without it."""
    if settings.ingress == "direct" and not _is_on():
        raise ValueError(
            "ingress: direct needs a Ray whose processes all started with RAY_SERVE_ENABLE_DIRECT_INGRESS=1; "
            "set that for head and workers, or leave the ingress at proxy"
        )


def _is_on() -> bool:
    return os.environ.get("RAY_SERVE_ENABLE_DIRECT_INGRESS") == "1"


class ReplicaPorts:
    """Addresses of all replicas of an application, as its controller knows them."""

    def __init__(self, application: str, fresh_seconds: float = 1.0) -> None:
        self._application, self._fresh_seconds = application, fresh_seconds
        self._known: list[str] = []
        self._until = 0.0

    async def addresses(self) -> list[str]:
        """Empty where direct ingress is off; those known last where the controller does not answer in time."""
        if not _is_on():
            return []
        if time.monotonic() >= self._until:
            try:
                async with asyncio.timeout(_PATIENCE):
                    self._known = await _ask_controller(self._application)
            except Exception as error:  # whatever ails the controller, the replica itself is well
                log.warning("controller does not tell the ports", reason=repr(error), kept=len(self._known))
            self._until = time.monotonic() + self._fresh_seconds
        return self._known


async def _ask_controller(application: str) -> list[str]:
    from ray.serve.context import _get_global_client
    from ray.serve.schema import RequestProtocol

    client = _get_global_client()
    groups = await client._controller.get_target_groups.remote(application)  # type: ignore[union-attr]
    return sorted(
        f"{target.ip}:{target.port}"
        for group in groups
        if group.protocol == RequestProtocol.GRPC and group.app_name == application
        for target in group.targets
    )
