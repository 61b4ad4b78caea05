import asyncio
import socket
from collections import Counter

import pytest

from fsr.gateway.routing.discovery import Discovery


async def test_discovery_when_dns_fails_keeps_the_addresses(monkeypatch):
    answers = [["10.0.0.1", "10.0.0.2"], ["10.0.0.2", "10.0.0.3"], OSError("no name server")]

    async def lookup(host, port, type):
        assert (host, port) == ("decoders", 20061)
        answer = answers.pop(0)
        if isinstance(answer, OSError):
            raise answer
        return [(socket.AF_INET, type, 6, "", (ip, port)) for ip in answer]

    monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", lookup)
    discovery = Discovery(["dns:///decoders:20061", "fixed:1"], timeout=10)
    assert await discovery.addresses() == {"10.0.0.1:20061", "10.0.0.2:20061", "fixed:1"}
    moved = {"10.0.0.2:20061", "10.0.0.3:20061", "fixed:1"}
    assert await discovery.addresses() == moved
    assert await discovery.addresses() == moved  # the outage


async def test_discovery_when_a_name_hangs_looks_it_up_once_and_delays_no_other(monkeypatch):
    answers, lookups = {}, []

    async def lookup(host, port, type):
        lookups.append(host)
        await answers.setdefault(host, asyncio.Event()).wait()
        return [(socket.AF_INET, type, 6, "", ("10.0.0.1", port))]

    monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", lookup)
    discovery = Discovery(["dns:///hangs:1", "dns:///well:2", "fixed:3"], timeout=0.05)
    answers["well"] = asyncio.Event()
    answers["well"].set()
    for _ in range(3):
        async with asyncio.timeout(10):
            assert await discovery.addresses() == {"10.0.0.1:2", "fixed:3"}
    assert Counter(lookups) == {"hangs": 1, "well": 3}
    answers["hangs"].set()
    assert await discovery.addresses() == {"10.0.0.1:1", "10.0.0.1:2", "fixed:3"}
    assert await discovery.addresses() == {"10.0.0.1:1", "10.0.0.1:2", "fixed:3"}
    assert Counter(lookups) == {"hangs": 2, "well": 5}


@pytest.mark.parametrize("name", ["a..b", "a" * 70])
async def test_discovery_when_a_name_is_impossible_has_no_address(name):
    assert await Discovery([f"dns:///{name}:7", "fixed:1"], timeout=10).addresses() == {"fixed:1"}


async def test_discovery_when_a_name_is_an_ipv6_address_has_it_in_brackets():
    assert await Discovery(["dns:///[::1]:7", "[::1]:8"], timeout=10).addresses() == {"[::1]:7", "[::1]:8"}


async def test_discovery_when_a_name_is_real_has_its_addresses():
    assert await Discovery(["dns:///localhost:7"], timeout=10).addresses() & {"127.0.0.1:7", "[::1]:7"}


async def test_host_of_an_address_is_that_of_its_target(monkeypatch):
    async def lookup(host, port, type):
        return [(socket.AF_INET, type, 6, "", ({"a.test": "10.0.0.1", "b.test": "10.0.0.2"}[host], port))]

    monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", lookup)
    discovery = Discovery(["dns:///a.test:1", "dns:///b.test:1", "fixed:1", "[::1]:1"], timeout=10)
    await discovery.addresses()
    hosts = {"10.0.0.1:1": "a.test", "10.0.0.2:1": "b.test", "fixed:1": "fixed", "[::1]:1": "::1"}
    assert {address: discovery.host_of(address) for address in hosts} == hosts
    assert discovery.host_of("10.0.0.9:21000") == "a.test"  # an encoder has announced it
    assert Discovery([], timeout=10).host_of("10.0.0.9:21000") == "10.0.0.9"
