"""The addresses that an encoder announces for its replicas."""

import asyncio

import pytest

from fsr.encoder.ingress import ReplicaAddresses

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
