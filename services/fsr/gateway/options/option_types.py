"""Types of the gateway's options that several of them have, or that need a check of their own."""

from __future__ import annotations

import re
from typing import Annotated

from pydantic import AfterValidator, BeforeValidator, IPvAnyNetwork
from pydantic_settings import NoDecode

from fsr.common.network.addresses import split_host_port
from fsr.common.network.ports import join
from fsr.gateway.options.allowed_hosts import AllowedHosts

__all__ = ["Addresses", "Hosts", "Networks", "Origins", "Texts", "WebAddress"]

_DNS = "dns:///"


def _split(value: object) -> object:
    values = value if isinstance(value, list) else [value]
    return [part.strip() for one in values for part in str(one).split(",") if part.strip()]


def _addresses(values: list[str]) -> list[str]:
    """With hosts in the one form that all libraries take."""
    addresses = []
    for value in values:
        name = value.removeprefix(_DNS)
        addresses.append(f"{_DNS if name != value else ''}{join(*split_host_port(name))}")
    return addresses


def _origins(values: list[str]) -> list[str]:
    for value in values:
        if value != "*" and not re.fullmatch(r"https?://[^/\s]+", value):
            raise ValueError(f"{value!r} is no origin; write https://host or https://host:port, without a path")
    return values


def _hosts(values: list[str]) -> list[str]:
    AllowedHosts(values)
    return values


def _web_address(value: str) -> str:
    if not re.match(r"https?://[^\s/]", value):
        raise ValueError(f"{value!r} is no web address; write http://host:port or https://host/path")
    return value


# Lists are written with commas.
Texts = Annotated[list[str], NoDecode, BeforeValidator(_split)]
Addresses = Annotated[list[str], NoDecode, BeforeValidator(_split), AfterValidator(_addresses)]
Origins = Annotated[list[str], NoDecode, BeforeValidator(_split), AfterValidator(_origins)]
Hosts = Annotated[list[str], NoDecode, BeforeValidator(_split), AfterValidator(_hosts)]
Networks = Annotated[list[IPvAnyNetwork], NoDecode, BeforeValidator(_split)]
WebAddress = Annotated[str, AfterValidator(_web_address)]
