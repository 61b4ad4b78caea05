"""Which services of a plan cannot be asked yet.

The gateway's metrics say how many replicas it has found. They need neither a key nor a certificate, whatever the
gateway asks its callers for.
"""

from __future__ import annotations

import http.client
import re
import socket
from collections import defaultdict

from fsr.cli.stack.plan import Plan

__all__ = ["missing"]

_REPLICAS = re.compile(r'^fsr_replicas_ready\{model="(.*)",role="(\w+)"\} (\S+)$', re.MULTILINE)
_SECONDS = 2.0


def missing(plan: Plan) -> list[str]:
    """The names of the services that are not ready, in the order in which they start; empty if all can be asked."""
    addresses = plan.addresses
    silent = [name for name in ("encoder", *plan.decoder_names) if not _accepts(addresses[name])]
    counts = _replicas(addresses["metrics"])
    if counts is None:
        return [*silent, "gateway"]
    if any(count["encoder"] >= 1 and count["decoder"] == plan.decoders for count in counts.values()):
        return silent  # the gateway may not have noticed yet that one has just ended
    if silent:
        return silent
    # All take connections, and the gateway has not found all of them.
    return plan.decoder_names if any(count["encoder"] >= 1 for count in counts.values()) else ["encoder"]


def _replicas(metrics: str) -> dict[str, dict[str, float]] | None:
    """Ready replicas by model and role; None if the gateway does not answer."""
    connection = http.client.HTTPConnection(metrics, timeout=_SECONDS)
    try:
        connection.request("GET", "/metrics")
        page = connection.getresponse().read().decode()
    except (OSError, http.client.HTTPException):
        return None
    finally:
        connection.close()
    counts: dict[str, dict[str, float]] = defaultdict(lambda: defaultdict(float))
    for model, role, value in _REPLICAS.findall(page):
        counts[model][role] = float(value)
    return counts


def _accepts(address: str) -> bool:
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), _SECONDS).close()
    except OSError:
        return False
    return True
