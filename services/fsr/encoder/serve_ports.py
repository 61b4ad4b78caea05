"""Where the gRPC servers of Ray Serve listen. Serve binds them to every interface and has no option for it.

Serve calls `listen_as_told` in each proxy before it opens its port (RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH), and a
replica calls it while it starts. What it replaces is private to Serve; so pyproject.toml holds ray below 2.61.
"""

from __future__ import annotations

import os
import sys
from typing import Any

from fsr.common.ports import join

__all__ = ["LISTEN_ON", "listen_as_told"]

LISTEN_ON = "FSR_SERVE_LISTEN_ON"
"""The variable that holds the address to listen on. Without it, as on a Ray that others started, nothing changes."""


def listen_as_told() -> list[Any]:
    """Binds the ingress to the address of the variable, and a replica's port for other replicas to Ray's own address.

    Serve takes what it returns for HTTP middlewares: there are none.
    """
    host = os.environ.get(LISTEN_ON)
    if host:
        from ray._common.tls_utils import add_port_to_grpc_server
        from ray.serve._private import default_impl
        from ray.util import get_node_ip_address

        def add_ingress_port(grpc_server: Any, server_address: str) -> None:
            grpc_server.add_insecure_port(join(host, _port(server_address)))

        def add_replica_port(server: Any, address: str) -> int:
            return int(add_port_to_grpc_server(server, join(get_node_ip_address(), _port(address))))

        default_impl.add_grpc_address = add_ingress_port
        replica = sys.modules.get("ray.serve._private.replica")
        if replica is not None:
            replica.add_port_to_grpc_server = add_replica_port  # type: ignore[attr-defined]
    return []


def _port(address: str) -> int:
    return int(address.rpartition(":")[2])
