"""Three encoder replicas behind one proxy, and what dies among them."""

import io
import time
from contextlib import suppress

import grpc
import pytest

from fsr.v1 import encoder_pb2, encoder_pb2_grpc, types_pb2
from fsr_core.tiny.scenes import draw, make_scene
from helpers.processes import encoder_workers
from helpers.waiting import until

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(1800)]
REPLICAS = 3


@pytest.fixture(scope="module")
def encoder(spawn, served_model):
    replicas = ("--min-replicas", str(REPLICAS), "--max-replicas", str(REPLICAS), "--num-cpus", "0")
    encoder = spawn("encoder", *served_model, *replicas)
    until(lambda: '"event": "serving"' in encoder.log.read_text(), seconds=900)
    return encoder


@pytest.fixture(scope="module")
def ask(encoder):
    """Asks about the picture with this number; whether its features were cached."""

    def ask(number, salt=""):
        file = io.BytesIO()
        draw(make_scene(number)).save(file, "PNG")
        request = encoder_pb2.EncodeRequest(
            images=[types_pb2.Image(data=file.getvalue())],
            instruction="Where is the star?",
            budget=types_pb2.Budget(tokens=16),
            cache_salt=salt,
        )
        return stub.Encode(request, timeout=120).cache_hits == 1

    with grpc.insecure_channel(encoder.address) as channel:
        stub = encoder_pb2_grpc.EncoderServiceStub(channel)
        yield ask


def workers(encoder, name):
    return list(encoder_workers(encoder.address.rpartition(":")[2], name))


def found_by_all(ask, first):
    """From `first` on, numbers of pictures until one is found by every replica: Serve sends questions to any."""
    for number in range(first, first + 100):
        ask(number)
        time.sleep(2)  # until the others have heard of it
        if all(ask(number) for _ in range(4 * REPLICAS)):
            return
    raise AssertionError("no picture was found by every replica")


def test_follow_ups_when_any_replica_gets_them_find_their_picture(encoder, ask):
    found_by_all(ask, 0)
    assert not ask(0, salt="another tenant")


def test_follow_ups_when_the_directory_is_killed_are_misses_until_there_is_another(encoder, ask):
    (directory,) = workers(encoder, "ray::FeatureDirectory")
    directory.kill()
    directory.wait(60)
    for number in range(100, 110):
        assert not ask(number)
    found_by_all(ask, 110)
    assert [process.pid for process in workers(encoder, "ray::FeatureDirectory")] != [directory.pid]


def test_follow_ups_when_a_replica_is_killed_are_answered(encoder, ask):
    """Those about its pictures are misses."""
    numbers = range(300, 312)
    for number in numbers:
        ask(number)
    time.sleep(2)
    victim = workers(encoder, "ServeReplica:encoder:Encoder")[0]
    victim.kill()
    victim.wait(60)
    for number in numbers:
        until(lambda number=number: answered(ask, number))
    found_by_all(ask, 400)


def answered(ask, number):
    """Serve may still send a question to what was killed; a gateway asks again then."""
    with suppress(grpc.RpcError):
        ask(number)
        return True
    return False
