"""Where the gRPC servers of Ray Serve listen, and with which certificate. Serve binds them to every interface, without
TLS, and has no option for either.

Serve calls `listen_as_told` in each proxy before it opens its port (RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH), and a
replica calls it while it starts. What it replaces is private to Serve, so it works with one version of Ray alone:
pyproject.toml holds ray below 2.61, and another version is refused.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from fsr.common.network.certificates import CertificateError, CertificateFiles, server_credentials
from fsr.common.network.ports import join
from fsr.common.network.tls_options import SERVER_TLS
from fsr.encoder.settings import EncoderSettings

__all__ = [
    "CALLBACK",
    "LISTEN_ON",
    "check_tls",
    "listen_as_told",
    "share_no_port",
    "tls_environment",
    "version_problem",
]

LISTEN_ON = "FSR_SERVE_LISTEN_ON"
"""The variable that holds the address to listen on. Without it, as on a Ray that others started, nothing changes."""

CALLBACK = {"RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH": f"{__name__}.listen_as_told"}
"""The variable by which Serve's proxies call `listen_as_told`."""

_REUSE_PORT = "grpc.so_reuseport"
_RAY = "2.60."  # the versions whose private functions are known
_TLS = tuple(f"FSR_ENCODER_{option.upper()}" for option in SERVER_TLS)


def listen_as_told() -> list[Any]:
    """Binds the ingress to the address of the variable, with the certificate that the encoder's variables name, and a
    replica's port for other replicas to Ray's own address.

    Serve takes what it returns for HTTP middlewares: there are none. Raises RuntimeError with an unknown version of
    Ray, and CertificateError: then no port is opened, rather than one without TLS.
    """
    host, certificate = os.environ.get(LISTEN_ON), _certificate(os.environ)
    if not host and certificate is None:
        return []
    if (problem := version_problem()) is not None:
        raise RuntimeError(problem)
    from ray.serve._private import default_impl

    credentials = server_credentials(certificate) if certificate is not None else None

    def add_ingress_port(grpc_server: Any, server_address: str) -> None:
        address = join(host, _port(server_address)) if host else server_address
        if credentials is None:
            grpc_server.add_insecure_port(address)
        else:
            grpc_server.add_secure_port(address, credentials)

    default_impl.add_grpc_address = add_ingress_port
    if host:
        _listen_for_replicas_on_rays_address()
    return []


def share_no_port() -> None:
    """From now on this replica opens a port of its own (direct ingress) only if no other process listens there.

    Serve means to do so, and takes the next port then, but gives gRPC its option as a text, which gRPC passes over. The
    replicas of two encoders on one machine would share a port, and each get a part of the other's requests.
    """
    from ray.serve._private import grpc_util

    class OwnPort(grpc_util.gRPCGenericServer):
        def __init__(self, factory: Any, *, extra_options: Sequence[tuple[str, Any]] = ()) -> None:
            options = [option for option in extra_options if option[0] != _REUSE_PORT]
            options.append((_REUSE_PORT, 0))
            super().__init__(factory, extra_options=options)

    grpc_util.gRPCGenericServer = OwnPort  # type: ignore[assignment,misc]


def _listen_for_replicas_on_rays_address() -> None:
    from ray._common.tls_utils import add_port_to_grpc_server
    from ray.util import get_node_ip_address

    def add_replica_port(server: Any, address: str) -> int:
        return int(add_port_to_grpc_server(server, join(get_node_ip_address(), _port(address))))

    replica = sys.modules.get("ray.serve._private.replica")
    if replica is not None:
        replica.add_port_to_grpc_server = add_replica_port  # type: ignore[attr-defined]


def version_problem() -> str | None:
    """None if Ray's version is one that `listen_as_told` knows, else one line."""
    version = metadata.version("ray")
    if version.startswith(_RAY):
        return None
    reason = "it is not known where its Serve opens its ports, so they could be open to others, or lack TLS"
    return f"ray: {version} is not supported ({reason}); install 'ray[serve]~={_RAY}0'"


def tls_environment(settings: EncoderSettings) -> dict[str, str]:
    """The variables by which `listen_as_told` finds the certificate, in each of Ray's processes."""
    paths: list[Path | None] = [getattr(settings, option) for option in SERVER_TLS]
    return {name: str(path) for name, path in zip(_TLS, paths, strict=True) if path is not None}


def check_tls(settings: EncoderSettings, environment: Mapping[str, str] = os.environ) -> None:
    """Raises ValueError if the settings ask for mTLS, and the Ray of this process would open its ports without it."""
    needed = tls_environment(settings)
    if not needed:
        return
    if (problem := version_problem()) is not None:
        raise ValueError(problem)
    missing = [f"{name}={value}" for name, value in (CALLBACK | needed).items() if environment.get(name) != value]
    if missing:
        raise ValueError(
            f"tls_cert: needs a Ray whose processes all started with {' '.join(missing)}; set that for head and workers"
        )


def _certificate(environment: Mapping[str, str]) -> CertificateFiles | None:
    """What the encoder's variables name; None if they name nothing. Raises CertificateError."""
    paths = [Path(environment[name]) for name in _TLS if environment.get(name)]
    if not paths:
        return None
    if len(paths) < len(_TLS):
        raise CertificateError(f"{', '.join(_TLS)}: give all three, or none")
    cert, key, ca = paths
    return CertificateFiles(cert=cert, key=key, ca=ca, side="server", options=SERVER_TLS)


def _port(address: str) -> int:
    return int(address.rpartition(":")[2])
