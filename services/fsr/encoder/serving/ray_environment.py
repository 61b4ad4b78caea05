"""What Ray's processes find in their environment. It must be set before Ray is imported."""

from __future__ import annotations

import secrets
from collections.abc import Mapping

from fsr.common.network.ports import is_loopback
from fsr.common.wire.transport import MESSAGE_BYTES
from fsr.encoder.serving.ingress import environment as ingress_environment
from fsr.encoder.serving.serve_ports import CALLBACK, LISTEN_ON, tls_environment
from fsr.encoder.settings import EncoderSettings

__all__ = ["ray_environment"]

_DEFAULTS = {
    "RAY_DISABLE_IMPORT_WARNING": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_DISABLE_WORKER_LOG_PREFIX": "1",  # with a prefix, a replica's log lines would not be JSON
    "RAY_DEDUP_LOGS": "0",  # otherwise Ray folds the lines of several replicas into one
    "RAY_worker_niceness": "0",  # Ray's 15 leaves an encoder a thirtieth of the CPU that a decoder beside it has
    # An idle Ray takes a quarter less CPU than with Serve's tenths of a second. Longer ones keep a dead proxy longer.
    "RAY_SERVE_CONTROL_LOOP_INTERVAL_S": "0.2",
    "RAY_SERVE_METRICS_EXPORT_INTERVAL_MS": "1000",
    # Serve replaces a proxy after three checks in a row that fail, by default ten seconds apart.
    "RAY_SERVE_PROXY_HEALTH_CHECK_PERIOD_S": "0.1",
    "RAY_SERVE_PROXY_HEALTH_CHECK_TIMEOUT_S": "5",
    # The encoder computes in threads of its own, so its calls need no event loop beside that of the replica. Two hops
    # between threads are saved, which is a quarter of what the service adds to a new picture (benchmarks/hop.py).
    "RAY_SERVE_RUN_USER_CODE_IN_SEPARATE_THREAD": "0",
    "RAY_SERVE_GRPC_MAX_MESSAGE_SIZE": str(MESSAGE_BYTES),  # otherwise 2 GiB, also of what a small message unpacks to
}

# Ray reports its metrics by gRPC to a process of the same node, through `http_proxy` unless this says otherwise.
_NO_PROXY = "127.0.0.1,localhost,::1,0.0.0.0/0,::/0"


def ray_environment(settings: EncoderSettings, environment: Mapping[str, str]) -> dict[str, str]:
    """The variables that `environment` must have in addition. What it already says of Ray's own defaults stays.

    A Ray of the encoder's own takes work only from processes that know its token, whatever Ray's default is: anyone
    else who reaches its ports could run programs. Its token lives in the environment of its processes alone unless
    RAY_AUTH_TOKEN or RAY_AUTH_TOKEN_PATH names one. Where the encoder listens for this machine alone, all of Ray does.
    """
    needed = {**ingress_environment(settings), "no_grpc_proxy": _NO_PROXY}
    defaults = dict(_DEFAULTS)
    if settings.ray_address is None:
        defaults["RAY_AUTH_MODE"] = "token"
        if not environment.get("RAY_AUTH_TOKEN") and not environment.get("RAY_AUTH_TOKEN_PATH"):
            needed["RAY_AUTH_TOKEN"] = secrets.token_hex(32)
        needed[LISTEN_ON] = settings.host
        needed |= CALLBACK | tls_environment(settings)
        if is_loopback(settings.host):
            # Ray's switch for systems whose firewalls ask about every open port: its processes use 127.0.0.1.
            defaults["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"
    return {name: value for name, value in defaults.items() if name not in environment} | needed
