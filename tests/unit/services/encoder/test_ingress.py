"""What an encoder says of its replicas' ports."""

import asyncio

import pytest

from fsr.encoder import ingress


@pytest.fixture
def controller(monkeypatch):
    """Gives, raises or waits for what `answers` holds next."""
    answers = []

    async def ask(application):
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return await answer if isinstance(answer, asyncio.Future) else answer

    monkeypatch.setenv("RAY_SERVE_ENABLE_DIRECT_INGRESS", "1")
    monkeypatch.setattr(ingress, "_ask_controller", ask)
    monkeypatch.setattr(ingress, "_PATIENCE", 0.05)
    return answers


async def test_a_controller_that_hangs_or_fails_leaves_the_addresses_that_were_known(controller):
    controller += [["a:1"], asyncio.Future(), RuntimeError("the head is gone"), ["a:1", "b:1"]]
    ports = ingress.ReplicaPorts("encoder", fresh_seconds=0)
    async with asyncio.timeout(20):
        assert [await ports.addresses() for _ in range(4)] == [["a:1"], ["a:1"], ["a:1"], ["a:1", "b:1"]]


async def test_one_that_hangs_is_not_waited_for_every_time(controller):
    controller += [asyncio.Future()]
    ports = ingress.ReplicaPorts("encoder", fresh_seconds=60)
    async with asyncio.timeout(20):
        assert await ports.addresses() == await ports.addresses() == []
