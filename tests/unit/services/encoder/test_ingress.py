"""The addresses that an encoder announces for its replicas."""

import asyncio

import pytest

from fsr.encoder.ingress import ReplicaAddresses, reachable
from fsr.encoder.serve_ports import LISTEN_ON

HANGS = asyncio.Event  # never set


@pytest.fixture
def controller(monkeypatch):
    """Asks a controller that returns, raises or waits for what `answers` holds next."""
    monkeypatch.setenv("RAY_SERVE_ENABLE_DIRECT_INGRESS", "1")

    def asker(*answers):
        remaining = list(answers)

        async def ask(application):
            assert application == "encoder"
            answer = remaining.pop(0)
            if isinstance(answer, Exception):
                raise answer
            if answer is HANGS:
                await asyncio.Event().wait()
            return answer

        return ask

    return asker


async def test_addresses_when_the_controller_hangs_or_fails_then_the_last_known(controller):
    ask = controller(["a:1"], HANGS, RuntimeError("the head is gone"), ["a:1", "b:1"])
    addresses = ReplicaAddresses("encoder", fresh_seconds=0, timeout_seconds=0.05, ask=ask)
    async with asyncio.timeout(20):
        assert [await addresses.get() for _ in range(4)] == [["a:1"], ["a:1"], ["a:1"], ["a:1", "b:1"]]


async def test_addresses_when_the_controller_hangs_then_it_is_not_asked_each_time(controller):
    addresses = ReplicaAddresses("encoder", fresh_seconds=60, timeout_seconds=0.05, ask=controller(HANGS))
    async with asyncio.timeout(20):
        assert await addresses.get() == await addresses.get() == []


async def test_addresses_without_direct_ingress_then_none(controller, monkeypatch):
    monkeypatch.delenv("RAY_SERVE_ENABLE_DIRECT_INGRESS")
    assert await ReplicaAddresses("encoder", ask=controller(["a:1"])).get() == []


@pytest.mark.parametrize(
    ("listens_on", "address"),
    [
        (None, "10.0.0.1:7"),
        ("0.0.0.0", "10.0.0.1:7"),
        ("::", "10.0.0.1:7"),
        ("127.0.0.1", "127.0.0.1:7"),
        ("::1", "[::1]:7"),
    ],
)
def test_address_of_a_replica_is_where_it_listens(monkeypatch, listens_on, address):
    monkeypatch.delenv(LISTEN_ON, raising=False)
    if listens_on is not None:
        monkeypatch.setenv(LISTEN_ON, listens_on)
    assert reachable("10.0.0.1", 7) == address
