"""What runs on this machine: services, ports, commands and options."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass, field

from fsr.common.network.ports import join, listen_error

__all__ = ["LOOPBACK", "Command", "Plan", "PortTaken"]

LOOPBACK = "127.0.0.1"
_EVERY_INTERFACE = {"0.0.0.0": LOOPBACK, "::": "::1", "": LOOPBACK}
_LAST = 28  # the highest offset from the first port


class PortTaken(Exception):
    """A service cannot listen on its port; the message names the option."""


@dataclass(frozen=True)
class Command:
    """How a service starts: arguments of its command, and variables that its environment has in addition."""

    arguments: list[str]
    environment: dict[str, str]


@dataclass(frozen=True, kw_only=True)
class Plan:
    """One encoder, some decoders and a gateway.

    Only the gateway listens on `host`, the others for this machine alone. The ports follow `port`; `http_port` is
    `port` + 2 by default. The options of each service have the names that they have in a configuration file, and
    values as in the environment; they go there, where `ps` does not show keys. `decoder_python` runs the decoders.
    """

    port: int
    decoders: int = 1
    host: str = LOOPBACK
    http_port: int | None = None
    decoder_python: str = sys.executable
    gateway: Mapping[str, str] = field(default_factory=dict)
    encoder: Mapping[str, str] = field(default_factory=dict)
    decoder: Mapping[str, str] = field(default_factory=dict)

    @property
    def decoder_names(self) -> list[str]:
        return [f"decoder-{i}" for i in range(self.decoders)]

    @property
    def ports(self) -> dict[str, int]:
        """By name: those of the services first, then those of their metrics."""
        first, decoders = self.port, self.decoder_names
        ports = {"gateway": first, "http": self.http_port or first + 2, "encoder": first + 1}
        ports |= {name: first + 11 + i for i, name in enumerate(decoders)}
        ports |= {"metrics": first + 5, "encoder-metrics": first + 6}
        return ports | {f"{name}-metrics": first + 21 + i for i, name in enumerate(decoders)}

    @property
    def addresses(self) -> dict[str, str]:
        """host:port of each of the ports, as this machine reaches it."""
        gateway = _EVERY_INTERFACE.get(self.host.strip("[]"), self.host)
        return {
            name: join(gateway if name in ("gateway", "http", "metrics") else LOOPBACK, port)
            for name, port in self.ports.items()
        }

    def check_ports(self) -> None:
        """Raises PortTaken unless every service can listen on its port."""
        ports = self.ports
        if list(ports.values()).count(ports["http"]) > 1:
            remedy = f"choose one outside {self.port}-{self.port + _LAST}"
            raise PortTaken(f"--http-port: another service uses {ports['http']}; {remedy}")
        for name, port in ports.items():
            host = self.host if name in ("gateway", "http", "metrics") else LOOPBACK
            if reason := listen_error(host, port):
                option = "--http-port" if name == "http" and self.http_port else "--port"
                remedy = f"choose another {option}" if "in use" in reason else "check --host and the port"
                raise PortTaken(f"{option}: {name} cannot listen on {join(host, port)} ({reason}); {remedy}")

    def commands(self) -> dict[str, Command]:
        """In the order in which the services start."""
        addresses = self.addresses
        replicas = ["--encoders", addresses["encoder"]]
        replicas += ["--decoders", ",".join(addresses[name] for name in self.decoder_names)]
        gateway = {"discovery_seconds": "0.5", **self.gateway}
        http = ["--http-port", str(self.ports["http"])]
        return {
            # It is this program that names what has ended, and starts it again.
            "encoder": self._command("encoder", "encoder", LOOPBACK, {"restart": "false", **self.encoder}),
            **{name: self._command("decoder", name, LOOPBACK, self.decoder) for name in self.decoder_names},
            "gateway": self._command("gateway", "gateway", self.host, gateway, *http, *replicas),
        }

    def _command(self, service: str, name: str, host: str, options: Mapping[str, str], *flags: str) -> Command:
        python = self.decoder_python if service == "decoder" else sys.executable
        metrics = self.ports["metrics" if service == "gateway" else f"{name}-metrics"]
        where = ["--host", host, "--port", str(self.ports[name]), "--metrics-port", str(metrics)]
        environment = {f"FSR_{service.upper()}_{option.upper()}": value for option, value in options.items()}
        return Command([python, "-m", f"fsr.{service}", *where, *flags], environment)
