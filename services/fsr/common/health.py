"""`python -m fsr.common.health 127.0.0.1:20050`: exit status 0 if a service is ready, else 1 and the reason.

It calls `grpc.health.v1`, with --ray-serve the health rpc of Ray Serve's gRPC ingress, which lacks the standard one. A
port with mTLS needs --ca, --cert and --key, and --server-name if its certificate has another name than the address.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from fsr.common.network.addresses import split_host_port
from fsr.common.network.certificates import CertificateError, CertificateFiles, channel_credentials
from fsr.common.wire.transport import channel_options

__all__ = ["check"]


def check(
    address: str,
    ray_serve: bool = False,
    timeout: float = 5.0,
    credentials: grpc.ChannelCredentials | None = None,
    server_name: str | None = None,
) -> str | None:
    """None if the service at `address` (host:port) is ready, else the reason why it is not."""
    options = channel_options(tls=credentials is not None)
    if server_name is not None:
        options.append(("grpc.ssl_target_name_override", server_name))
    if credentials is None:
        channel = grpc.insecure_channel(address, options=options)
    else:
        channel = grpc.secure_channel(address, credentials, options=options)
    with channel:
        try:
            if ray_serve:
                healthz = channel.unary_unary("/ray.serve.RayServeAPIService/Healthz", bytes, bytes)
                healthz(b"", timeout=timeout)
                return None
            response = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=timeout)
        except grpc.RpcError as error:
            return f"{address}: {error.code().name}: {error.details()}"
    if response.status == health_pb2.HealthCheckResponse.SERVING:
        return None
    return f"{address}: {health_pb2.HealthCheckResponse.ServingStatus.Name(response.status)}"


def _credentials(options: argparse.Namespace) -> grpc.ChannelCredentials | None:
    """What the options name, None if they name nothing. Exits with one line if it cannot be used."""
    paths = (options.cert, options.key, options.ca)
    if not any(paths):
        return None
    if not all(paths):
        raise SystemExit("error: --ca, --cert, --key: give all three, or none")
    try:
        files = CertificateFiles(
            cert=options.cert, key=options.key, ca=options.ca, side="client", options=("--cert", "--key", "--ca")
        )
    except CertificateError as error:
        raise SystemExit(f"error: {error}") from error
    return channel_credentials(files.pems)


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m fsr.common.health", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("address", help="host:port of the service")
    parser.add_argument("--ray-serve", action="store_true", help="the service is Ray Serve's ingress: the encoder")
    parser.add_argument("--timeout", type=float, default=5.0, help="seconds")
    for name, what in (("ca", "authority to trust"), ("cert", "certificate to show"), ("key", "key of --cert")):
        parser.add_argument(f"--{name}", type=Path, help=f"PEM of the {what}")
    parser.add_argument("--server-name", help="name in the service's certificate; default: the host of the address")
    options = parser.parse_args()
    try:
        split_host_port(options.address)
    except ValueError as error:
        raise SystemExit(f"error: address: {error}") from error
    reason = check(options.address, options.ray_serve, options.timeout, _credentials(options), options.server_name)
    if reason is not None:
        raise SystemExit(f"error: {reason}")


if __name__ == "__main__":
    main()
