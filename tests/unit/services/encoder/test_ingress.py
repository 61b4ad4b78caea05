"""The addresses that an encoder announces for its replicas."""

import asyncio

import pytest
import structlog

from fsr.encoder.serving.ingress import ReplicaAddresses, environment, ingress_of, reachable
from fsr.encoder.serving.serve_ports import LISTEN_ON
from fsr.encoder.settings import EncoderSettings

HANGS = asyncio.Event  # never set


@pytest.fixture
def controller():
    """Asks a controller that returns, raises or waits for what `answers` holds next."""

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


@pytest.mark.parametrize("asked", ["auto", "direct", "proxy"])
def test_ingress_of_a_ray_of_our_own_is_the_one_that_is_asked_for(asked):
    settings = EncoderSettings(ingress=asked)
    with structlog.testing.capture_logs() as logs:
        assert ingress_of(settings, environment(settings)) == {"auto": "direct"}.get(asked, asked)
    assert not logs


def test_ingress_when_nothing_is_said_is_direct():
    assert ingress_of(EncoderSettings(), environment(EncoderSettings())) == "direct"


def test_ingress_when_ray_was_started_without_direct_falls_back_and_says_so():
    with structlog.testing.capture_logs() as logs:
        assert ingress_of(EncoderSettings(ray_address="auto"), {}) == "proxy"
    (line,) = logs
    assert line["log_level"] == "warning" and "RAY_SERVE_ENABLE_DIRECT_INGRESS=1" in line["reason"] and line["remedy"]


def test_ingress_when_direct_is_insisted_on_and_ray_lacks_it_then_refused():
    with pytest.raises(ValueError, match=r"ingress: direct needs a Ray .* or leave the ingress at auto"):
        ingress_of(EncoderSettings(ingress="direct", ray_address="auto"), {})


def test_ingress_when_the_proxy_is_asked_for_in_a_ray_with_direct_is_the_proxy():
    assert ingress_of(EncoderSettings(ingress="proxy"), environment(EncoderSettings())) == "proxy"


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
