"""Which replicas a pool knows, and which of them it chooses."""

import pytest

from fsr.common.errors import Mismatch, NotReady, UnknownModel
from fsr.gateway.metrics import Metrics
from fsr.gateway.routing.pools import Pools
from fsr.gateway.settings import GatewaySettings
from fsr.v1 import types_pb2

NOBODY = "127.0.0.1:9"


@pytest.fixture
async def pools():
    settings = GatewaySettings(encoders=[NOBODY], decoders=[NOBODY], eject_failures=1, probe_timeout_seconds=0.2)
    pools = Pools(settings, Metrics())
    yield pools
    await pools.close()


def describe(pools, role, address, model="m", fingerprint="f", told=()):
    """As if the replica had answered a probe."""
    replica = pools._all[role, address]
    replica.model = types_pb2.ModelDescription(model=model, fingerprint=fingerprint)
    replica.told = frozenset(told)
    return replica


async def test_replicas_come_and_go_and_the_busy_ones_are_let_finish(pools):
    pools._adopt("decoder", ["a:1", "b:1"])
    a, b = (describe(pools, "decoder", address) for address in ("a:1", "b:1"))
    with a.working():
        pools._adopt("decoder", ["b:1", "c:1"])
        assert pools.of("decoder", "m") == [b]
        await pools._let_go()
        assert pools._leaving == [a]  # its answer is not complete
    await pools._let_go()
    assert pools._leaving == []


async def test_a_decoder_of_another_checkpoint_is_never_chosen(pools):
    pools._adopt("decoder", ["a:1", "b:1"])
    describe(pools, "decoder", "a:1", fingerprint="other")
    b = describe(pools, "decoder", "b:1")
    assert all(pools.decoder("m", "f") is b for _ in range(20))
    with pytest.raises(Mismatch, match="holds the encoder's checkpoint third; serve both halves from the same"):
        pools.decoder("m", "third")
    with pytest.raises(NotReady, match="no decoder of m answers"):
        pools.decoder("m", "f", without=["b:1"])


async def test_a_model_is_ready_with_both_halves_of_one_checkpoint(pools):
    pools._adopt("decoder", ["a:1", "b:1"])
    a, b = (describe(pools, "decoder", address, fingerprint="old") for address in ("a:1", "b:1"))
    assert pools.fitting("m") == [a, b] and not pools.ready("m")  # text needs no encoder
    pools._adopt("encoder", ["x:1", "y:1"])
    x = describe(pools, "encoder", "x:1", fingerprint="new")
    assert pools.fitting("m") == [] and not pools.ready("m")
    assert pools.encoder("m", b"key") is x  # so that the caller is told what is wrong
    y = describe(pools, "encoder", "y:1", fingerprint="old")
    assert pools.fitting("m") == [a, b] and pools.ready("m")
    assert all(pools.encoder("m", bytes([i])) is y for i in range(20))  # a decoder can follow
    describe(pools, "decoder", "b:1", fingerprint="new")
    assert {pools.encoder("m", bytes([i])) for i in range(40)} == {x, y}


async def test_ejected_replicas_are_passed_over_unless_all_are(pools):
    pools._adopt("decoder", ["a:1", "b:1"])
    a, b = (describe(pools, "decoder", address) for address in ("a:1", "b:1"))
    a.ejection.failed()
    assert all(pools.decoder("m", "f") is b for _ in range(20))
    b.ejection.failed()
    assert {pools.decoder("m", "f").address for _ in range(50)} == {"a:1", "b:1"}


async def test_a_proxy_leads_to_the_replicas_behind_it(pools):
    pools._adopt("encoder", ["proxy:1", "x:1", "y:1"])
    proxy = describe(pools, "encoder", "proxy:1", told=["x:1", "y:1"])
    assert pools.of("encoder", "m") == [proxy]  # until one of them answers
    x = describe(pools, "encoder", "x:1", told=["x:1", "y:1"])
    assert pools.of("encoder", "m") == [x]


async def test_a_model_is_missed_while_it_has_an_address_and_for_an_hour_more():
    now = 0.0
    pools = Pools(GatewaySettings(encoders=[], decoders=[]), Metrics(), lambda: now)

    def ready(model):
        pools._count()
        value = pools._metrics.registry.get_sample_value
        return [value("fsr_replicas_ready", {"model": model, "role": role}) for role in ("encoder", "decoder")]

    pools._adopt("decoder", ["a:1", "b:1"])
    a, b = (pools._all["decoder", address] for address in ("a:1", "b:1"))
    for replica in (a, b):
        replica._up(types_pb2.ModelDescription(model="m"))
    assert ready("m") == [0, 2]
    for replica in (a, b):
        replica.down("dead")
    now = 1e6
    assert ready("m") == [0, 0]
    a._up(types_pb2.ModelDescription(model="n"))  # started anew for another
    pools._adopt("decoder", ["a:1"])
    now += 3599
    assert ready("m") == [0, 0] and ready("n") == [0, 1]
    now += 2
    assert ready("m") == [None, None] and ready("n") == [0, 1]
    a._up(types_pb2.ModelDescription(model="m"))
    assert ready("m") == [0, 1] and ready("n") == [0, 0]
    await pools.close()


async def test_models_are_told_apart(pools):
    with pytest.raises(NotReady, match="no address is known"):
        pools.resolve("")
    pools._adopt("decoder", ["a:1", "b:1"])
    with pytest.raises(NotReady, match="silent: a:1, b:1"):
        pools.resolve("m")
    describe(pools, "decoder", "a:1")
    assert pools.resolve("") == "m"
    with pytest.raises(NotReady):
        pools.resolve("n")  # the silent one might serve it
    describe(pools, "decoder", "b:1", model="n")
    with pytest.raises(UnknownModel, match="several are served; ask for one of m, n"):
        pools.resolve("")
    with pytest.raises(UnknownModel, match="'o' is unknown"):
        pools.resolve("o")
    assert pools.resolve("", {"n", "o"}.__contains__) == "n"  # a key's only one needs no name
    with pytest.raises(UnknownModel) as refused:
        pools.resolve("", {"o"}.__contains__)
    assert str(refused.value).endswith("ask for one of those that your key is for")  # and no names of others


async def test_busyness_weighs_work_by_free_memory(pools):
    pools._adopt("decoder", ["a:1"])
    replica = describe(pools, "decoder", "a:1")
    quiet = replica.busyness
    replica.load.running, replica.load.kv_bytes_capacity, replica.load.kv_bytes_free = 3, 100, 100
    working = replica.busyness
    replica.load.kv_bytes_free = 10
    assert quiet < working < replica.busyness
    replica.outstanding = 50
    assert replica.busyness == pytest.approx(51 / 0.1)
