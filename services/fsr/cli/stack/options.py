"""From options of `fsr up` to options of the services."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

__all__ = ["encoder_replicas", "inner_tls_options", "own_names", "service_options"]

_PORTS = {"port": "--port", "metrics_port": "--port", "host": "--host"}
# What `fsr up` sets itself, and its option for it.
_FIXED: dict[str, Mapping[str, str]] = {
    "gateway": {**_PORTS, "http_port": "--http-port", "encoders": "--encoders", "decoders": "--decoders"},
    "encoder": {**_PORTS, "ray_address": "python -m fsr.encoder"},
    "decoder": _PORTS,
}


def service_options(service: str, own: Mapping[str, object | None], passed: Mapping[str, str]) -> dict[str, str]:
    """Options of a service: those of `fsr up` that are set, and over them those that were passed through.

    Raises ValueError, naming the option, for one that `fsr up` must set itself.
    """
    for name in passed:
        if name in _FIXED[service]:
            raise ValueError(f"--{service}-option: {name} is set by fsr up; use {_FIXED[service][name]}")
    return {name: str(value) for name, value in own.items() if value not in (None, "")} | dict(passed)


def encoder_replicas(count: int, device: str) -> dict[str, str]:
    """How Ray places the encoder's replicas on this machine.

    Several reserve no CPU: on one machine a reservation could only keep one of them from starting. They share a GPU,
    which Ray hides from a replica that reserves none of it.
    """
    options = {}
    if count > 1:
        options = {"min_replicas": str(count), "max_replicas": str(count), "num_cpus": "0"}
    if device.startswith("cuda"):
        options["num_gpus"] = f"{1 / count:g}"
    return options


def inner_tls_options(folder: Path | None) -> tuple[dict[str, Path], dict[str, Path]]:
    """Options of the gateway, and those of encoder and decoders, for mTLS with the certificate in a folder, whose files
    have the names that cert-manager gives them. Raises ValueError if one of them is missing."""
    if folder is None:
        return {}, {}
    files = {"cert": folder / "tls.crt", "key": folder / "tls.key", "ca": folder / "ca.crt"}
    for file in files.values():
        if not file.is_file():
            raise ValueError(f"--inner-tls: no file {file}; the folder must hold tls.crt, tls.key and ca.crt")
    gateway = {f"replica_tls_{name}": file for name, file in files.items()}
    return gateway, {"tls_cert": files["cert"], "tls_key": files["key"], "tls_client_ca": files["ca"]}


def own_names(message: str, passed: Mapping[str, Mapping[str, str]]) -> str:
    """A service's message about its options, with the names that the user of `fsr up` has typed."""
    for service, options in passed.items():
        for name in options:
            typed = f"--{service}-option {name}:"
            message = message.replace(f"FSR_{service.upper()}_{name.upper()}:", typed)
            message = message.replace(f" --{name.replace('_', '-')}:", f" {typed}")
    return message
