"""Which replicas a pool has, and which of them it picks."""

import time

import grpc
import pytest

from fsr.common.errors import Mismatch, NotReady, UnknownModel
from fsr.gateway.options.settings import GatewaySettings
from fsr.gateway.routing.pools import Pools
from fsr.gateway.telemetry.metrics import Metrics
from fsr.v1 import types_pb2


@pytest.fixture
async def pools():
    settings = GatewaySettings(encoders=[], decoders=[], eject_failures=1, probe_timeout_seconds=0.2)
    pools = Pools(settings, Metrics())
    yield pools
    await pools.close()


def at(pools, role, address):
    (replica,) = [replica for replica in pools.all(role) if replica.address == address]
    return replica


def up(pools, role, address, model="m", fingerprint="f", advertised=()):
    """As if the replica had answered a probe."""
    replica = at(pools, role, address)
    replica.up(types_pb2.ModelDescription(model=model, fingerprint=fingerprint))
    replica.advertised = frozenset(advertised)
    return replica


async def test_pool_when_a_busy_replica_leaves_lets_it_finish(pools):
    pools.set_addresses("decoder", ["a:1", "b:1"])
    a, b = (up(pools, "decoder", address) for address in ("a:1", "b:1"))
    with a.calling():
        pools.set_addresses("decoder", [])
        await pools.refresh()
        assert pools.all("decoder") == []
        assert a.channel.get_state() != grpc.ChannelConnectivity.SHUTDOWN  # its answer is not complete
        assert b.channel.get_state() == grpc.ChannelConnectivity.SHUTDOWN
    await pools.refresh()
    assert a.channel.get_state() == grpc.ChannelConnectivity.SHUTDOWN


async def test_pool_when_addresses_change_serves_only_the_new_ones(pools):
    pools.set_addresses("decoder", ["a:1", "b:1"])
    _, b = (up(pools, "decoder", address) for address in ("a:1", "b:1"))
    pools.set_addresses("decoder", ["b:1", "c:1"])
    assert pools.serving("decoder", "m") == [b]
    assert {replica.address for replica in pools.all("decoder")} == {"b:1", "c:1"}


async def test_decoder_when_it_has_another_checkpoint_is_not_picked(pools):
    pools.set_addresses("decoder", ["a:1", "b:1"])
    up(pools, "decoder", "a:1", fingerprint="other")
    b = up(pools, "decoder", "b:1")
    assert all(pools.pick_decoder("m", "f") is b for _ in range(20))
    with pytest.raises(Mismatch, match="holds the encoder's checkpoint third; serve both halves from the same"):
        pools.pick_decoder("m", "third")
    with pytest.raises(NotReady, match="no decoder of m answers"):
        pools.pick_decoder("m", "f", without=["b:1"])


async def test_model_when_both_halves_have_one_checkpoint_is_ready(pools):
    pools.set_addresses("decoder", ["a:1", "b:1"])
    a, b = (up(pools, "decoder", address, fingerprint="old") for address in ("a:1", "b:1"))
    assert pools.matching_decoders("m") == [a, b] and not pools.ready("m")  # text needs no encoder
    pools.set_addresses("encoder", ["x:1", "y:1"])
    x = up(pools, "encoder", "x:1", fingerprint="new")
    assert pools.matching_decoders("m") == [] and not pools.ready("m")
    assert pools.pick_encoder("m", b"key") is x  # so that the caller hears of the mismatch
    y = up(pools, "encoder", "y:1", fingerprint="old")
    assert pools.matching_decoders("m") == [a, b] and pools.ready("m")
    assert all(pools.pick_encoder("m", bytes([i])) is y for i in range(20))  # decoders have its checkpoint
    up(pools, "decoder", "b:1", fingerprint="new")
    assert {pools.pick_encoder("m", bytes([i])) for i in range(40)} == {x, y}
    for wanted, encoder in (("new", x), ("old", y)):  # of an answer that goes on
        assert {pools.pick_encoder("m", bytes([i]), fingerprint=wanted) for i in range(20)} == {encoder}


async def test_replica_when_its_breaker_is_open_is_passed_over_unless_all_are(pools):
    pools.set_addresses("decoder", ["a:1", "b:1"])
    a, b = (up(pools, "decoder", address) for address in ("a:1", "b:1"))
    a.breaker.failed()
    assert all(pools.pick_decoder("m", "f") is b for _ in range(20))
    b.breaker.failed()
    assert {pools.pick_decoder("m", "f").address for _ in range(50)} == {"a:1", "b:1"}


async def test_proxy_when_a_replica_behind_it_answers_is_passed_over(pools):
    pools.set_addresses("encoder", ["proxy:1", "x:1", "y:1"])
    proxy = up(pools, "encoder", "proxy:1", advertised=["x:1", "y:1"])
    assert pools.serving("encoder", "m") == [proxy]
    x = up(pools, "encoder", "x:1", advertised=["x:1", "y:1"])
    assert pools.serving("encoder", "m") == [x]


async def test_replicas_ready_when_a_model_has_no_address_is_zero_for_an_hour_then_gone(clock):
    metrics = Metrics()
    pools = Pools(GatewaySettings(encoders=[], decoders=[]), metrics, clock)

    def ready(model):
        pools.update_metrics()
        value = metrics.registry.get_sample_value
        return [value("fsr_replicas_ready", {"model": model, "role": role}) for role in ("encoder", "decoder")]

    pools.set_addresses("decoder", ["a:1", "b:1"])
    a, b = (up(pools, "decoder", address) for address in ("a:1", "b:1"))
    assert ready("m") == [0, 2]
    for replica in (a, b):
        replica.down("dead")
    clock.now += 1e6
    assert ready("m") == [0, 0]
    up(pools, "decoder", "a:1", model="n")  # started again for another model
    pools.set_addresses("decoder", ["a:1"])
    clock.now += 3599
    assert ready("m") == [0, 0] and ready("n") == [0, 1]
    clock.now += 2
    assert ready("m") == [None, None] and ready("n") == [0, 1]
    up(pools, "decoder", "a:1")
    assert ready("m") == [0, 1] and ready("n") == [0, 0]
    await pools.close()


async def test_model_whose_replicas_were_just_lost_is_resolved(pools, monkeypatch):
    pools.set_addresses("decoder", ["a:1"])
    a = up(pools, "decoder", "a:1")
    assert pools.last_loss("decoder", "m") < 0
    a.down("killed")
    lost = time.monotonic()
    assert pools.resolve("") == pools.resolve("m") == "m" and abs(pools.last_loss("decoder", "m") - lost) < 5
    monkeypatch.setattr(a, "lost_at", lost - 31)
    with pytest.raises(NotReady, match="no replica of any model answers yet"):
        pools.resolve("")


async def test_resolve_when_models_are_missing_unknown_or_several_says_so(pools):
    with pytest.raises(NotReady, match="no address is known"):
        pools.resolve("")
    pools.set_addresses("decoder", ["a:1", "b:1"])
    with pytest.raises(NotReady, match="it may be starting, try again"):
        pools.resolve("m")
    up(pools, "decoder", "a:1")
    assert pools.resolve("") == "m"
    with pytest.raises(NotReady):
        pools.resolve("n")  # the silent one might serve it
    up(pools, "decoder", "b:1", model="n")
    with pytest.raises(UnknownModel, match="several are served; ask for one of m, n"):
        pools.resolve("")
    with pytest.raises(UnknownModel, match="'o' is unknown"):
        pools.resolve("o")
    assert pools.resolve("", {"n", "o"}.__contains__) == "n"  # the only one that the key is for
    with pytest.raises(UnknownModel) as refused:
        pools.resolve("", {"o"}.__contains__)
    assert str(refused.value).endswith("ask for one of those that your key is for")  # and no names of others


async def test_busyness_weighs_requests_by_free_memory(pools):
    pools.set_addresses("decoder", ["a:1"])
    replica = up(pools, "decoder", "a:1")
    idle = replica.busyness
    replica.load.running, replica.load.kv_bytes_capacity, replica.load.kv_bytes_free = 3, 100, 100
    working = replica.busyness
    replica.load.kv_bytes_free = 10
    assert idle < working < replica.busyness
    replica.outstanding = 50
    assert replica.busyness == pytest.approx(51 / 0.1)
