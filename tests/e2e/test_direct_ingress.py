"""Ray Serve's direct ingress: two encoder replicas with ports of their own, found and balanced by the gateway."""

from collections import Counter

import pytest

from fsr.client import Client, InvalidRequestError
from helpers.waiting import until

QUESTION = "Is there a red star?"


@pytest.fixture(scope="module")
def gateway(spawn, free_ports):
    replicas = ("--min-replicas", "2", "--max-replicas", "2", "--num-cpus", "0.5")
    encoder = spawn("encoder", "--ingress", "direct", "--direct-port", str(free_ports(4)), *replicas)
    decoder = spawn("decoder")
    flags = ("--encoders", encoder.address, "--decoders", decoder.address, "--discovery-seconds", "0.5")
    gateway = spawn("gateway", *flags)
    gateway.wait_until_serving()
    with Client(gateway.address, replicas=True) as client:
        until(lambda: client.models(timeout=60)[0].encoders == 2, 300)
        yield gateway, encoder, client


def test_follow_up_question_reaches_the_replica_with_the_cached_picture(gateway, pictures):
    _, encoder, client = gateway
    called = Counter()
    for picture in pictures(400, 12):
        first = client.ask(picture, QUESTION, budget=16)
        second = client.ask(picture, "What colour is the star?", budget=32)
        assert first.usage.cached_images == 0 and second.usage.cached_images == 1
        assert first.route.encoders == second.route.encoders
        called.update(first.route.encoders)
    assert len(called) == 2  # both replicas take part
    assert encoder.address not in called  # the proxy does not


def test_error_with_direct_ingress_is_the_same_as_through_the_proxy(gateway):
    _, _, client = gateway
    with pytest.raises(InvalidRequestError, match=r"images\[0\]\.data: is no readable JPEG"):
        client.ask(b"no picture", QUESTION, budget=16)
