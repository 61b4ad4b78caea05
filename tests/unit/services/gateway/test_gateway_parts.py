"""The gateway's parts that decide: ejection, retry budget, balancing, discovery, keys."""

import asyncio
import socket
from collections import Counter
from dataclasses import dataclass
from types import SimpleNamespace

import grpc
import pytest
import structlog

from fsr.common.errors import Forbidden, InvalidRequest, NotReady, Unauthenticated
from fsr.encoder.request_plan import plan_of
from fsr.gateway.admission import Admission
from fsr.gateway.auth import ApiKeys
from fsr.gateway.deadline import Deadline
from fsr.gateway.encoder_hop import Encoding
from fsr.gateway.metrics import Metrics
from fsr.gateway.request_record import Trail
from fsr.gateway.routing.attempts import Retrying
from fsr.gateway.routing.balancing import less_busy_of_two, rendezvous
from fsr.gateway.routing.circuit_breaker import Ejection, EjectionPolicy
from fsr.gateway.routing.discovery import Discovery
from fsr.gateway.routing.retry_budget import RetryBudget, backoff
from fsr.gateway.settings import GatewaySettings
from fsr.gateway.validation import check_compress
from fsr.v1 import encoder_pb2, gateway_pb2, types_pb2


class Clock:
    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


def test_a_spread_that_nobody_knows_is_refused_by_gateway_and_encoder():
    budget = types_pb2.Budget(tokens=8, spread=7)
    request = gateway_pb2.CompressRequest(images=[types_pb2.Image(data=b"x")], instruction="?", budget=budget)
    for check in (
        lambda: check_compress(request, GatewaySettings()),
        lambda: plan_of(encoder_pb2.EncodeRequest(instruction="?", budget=budget)),
    ):
        with pytest.raises(InvalidRequest, match=r"budget\.spread: 7 is unknown"):
            check()


def test_the_encoder_names_an_option_that_is_no_finite_number():
    method = types_pb2.Method(name="fsr")
    method.options.update({"rho": float("nan")})
    with pytest.raises(InvalidRequest, match=r"^method\.options\.rho: nan is no finite number"):
        plan_of(encoder_pb2.EncodeRequest(instruction="?", method=method, budget=types_pb2.Budget(tokens=8)))


def test_failures_in_a_row_eject_for_twice_as_long_each_time_until_a_trial_succeeds(clock):
    ejection = Ejection(EjectionPolicy(failures=3, seconds=1, longest=3), clock)
    assert [ejection.failed() for _ in range(2)] == [False, False]
    ejection.succeeded()  # not in a row any more
    assert [ejection.failed() for _ in range(3)] == [False, False, True]
    for length in (1, 2, 3, 3):
        assert not ejection.admits and ejection.out
        clock.now += length - 0.01
        assert not ejection.admits
        clock.now += 0.01
        assert ejection.admits  # one request on trial
        trial = ejection.chosen()
        assert trial and not ejection.admits and not ejection.chosen()  # and no second one beside it
        assert ejection.failed(trial)
    clock.now += 3
    ejection.chosen()
    ejection.succeeded()
    assert ejection.admits and not ejection.out
    assert [ejection.failed() for _ in range(3)] == [False, False, True]
    clock.now += 1
    assert ejection.admits  # the first ejection is short again


def test_a_replica_may_fail_for_days(clock):
    ejection = Ejection(EjectionPolicy(failures=1, seconds=1.0, longest=60.0), clock)
    for _ in range(1100):
        assert ejection.failed(ejection.chosen())
        clock.now += 60
    assert ejection.admits


def test_stragglers_do_not_lengthen_an_ejection_and_an_abandoned_trial_is_tried_again(clock):
    ejection = Ejection(EjectionPolicy(failures=1, seconds=1), clock)
    assert ejection.failed()
    assert not ejection.failed() and not ejection.failed()
    clock.now += 1
    first = ejection.chosen()
    ejection.abandoned(None)
    assert not ejection.failed() and not ejection.admits  # the trial goes on
    ejection.abandoned(first)
    second = ejection.chosen()
    ejection.abandoned(first)
    assert not ejection.failed(first) and not ejection.admits  # now it is the second
    assert ejection.failed(second)
    clock.now += 1
    assert not ejection.admits  # for twice as long


def test_the_retry_budget_is_a_share_of_the_load_when_everything_fails(clock):
    budget = RetryBudget(ratio=0.2, burst=10, clock=clock)
    retries = 0
    for _ in range(1000):
        budget.deposit()
        while budget.withdraw():
            retries += 1
    assert 0.2 * 1000 <= retries <= 0.2 * 1000 + 10
    clock.now += 5
    assert sum(budget.withdraw() for _ in range(20)) == 5  # time refills it slowly
    clock.now += 1000
    assert sum(budget.withdraw() for _ in range(20)) == 10  # up to the burst


@pytest.mark.parametrize("longest", [1.0, 10.0, 120.0, 1200.0])
async def test_the_longest_deadline_may_be_asked_for_as_grpc_tells_it(longest):
    async def left(request, context):
        return str(Deadline.of(context, 9.0, longest).left()).encode()

    async def refused(request, context):
        with pytest.raises(InvalidRequest, match="more than"):
            Deadline.of(context, 9.0, longest)
        return b""

    server = grpc.aio.server()
    handlers = {call.__name__: grpc.unary_unary_rpc_method_handler(call) for call in (left, refused)}
    server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler("t", handlers)])
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        assert longest - 1 < float(await channel.unary_unary("/t/left")(b"", timeout=longest)) <= longest
        await channel.unary_unary("/t/refused")(b"", timeout=longest * 1.2 + 5)
    await server.stop(None)


@pytest.mark.parametrize(
    ("error", "left", "code"),
    [
        (asyncio.CancelledError(), None, "CANCELLED"),
        (GeneratorExit(), 0.01, "DEADLINE_EXCEEDED"),
        (NotReady("none there"), None, "UNAVAILABLE"),
        (RuntimeError(), None, "INTERNAL"),
    ],
)
def test_a_request_that_fails_is_one_line_of_the_log_and_its_caller_learns_the_id(error, left, code):
    told = {}
    context = SimpleNamespace(
        time_remaining=lambda: 9.0 if not told else left, set_trailing_metadata=lambda pairs: told.update(pairs)
    )
    admission = Admission(Metrics(), GatewaySettings())
    with (
        structlog.testing.capture_logs([structlog.contextvars.merge_contextvars]) as lines,
        pytest.raises(type(error)),
        admission.request("Generate", context) as (trail, _),
    ):
        trail.decoders.append("d:1")
        trail.completion_tokens = 3
        told["entered"] = ""
        raise error
    (line,) = lines
    assert (line["event"], line["rpc"], line["code"]) == ("failed", "Generate", code)
    assert line["request_id"] == told["fsr-request-id"] and told["fsr-decoders"] == "d:1"
    assert line["completion_tokens"] == 3 and line["seconds"] >= 0
    assert line.get("reason") == (str(error) or None)


def test_backoff_doubles_up_to_a_bound():
    for attempt in range(12):
        most = min(2.0, 0.05 * 2**attempt)
        assert all(most / 2 <= backoff(attempt) <= most for _ in range(20))
    assert 1.0 <= backoff(5000) <= 2.0  # two hours of a full cluster


@dataclass
class Stub:
    address: str
    busyness: float = 0
    outstanding: int = 0


def test_the_less_busy_of_two_spreads_work_and_shuns_the_busiest():
    replicas = [Stub(str(i), busyness=i) for i in range(4)]
    chosen = Counter(less_busy_of_two(replicas).address for _ in range(2000))
    assert chosen["0"] > chosen["1"] > chosen["2"] > 0 == chosen["3"]
    assert less_busy_of_two(replicas[:1]) is replicas[0]


def test_rendezvous_keeps_keys_where_they_are_when_replicas_come_and_go():
    replicas, keys = [Stub(f"10.0.0.{i}:1") for i in range(5)], [bytes([i]) * 32 for i in range(200)]
    before = {key: rendezvous(replicas, key).address for key in keys}
    assert set(Counter(before.values())) == {replica.address for replica in replicas}
    after = {key: rendezvous(replicas[1:], key).address for key in keys}
    assert all(after[key] == where for key, where in before.items() if where != replicas[0].address)
    joined = {key: rendezvous([*replicas, Stub("10.0.0.9:1")], key).address for key in keys}
    assert all(joined[key] in (where, "10.0.0.9:1") for key, where in before.items())


def test_rendezvous_passes_over_a_replica_far_above_the_mean():
    replicas, key = [Stub(f"10.0.0.{i}:1") for i in range(3)], b"k" * 32
    first = rendezvous(replicas, key)
    first.outstanding = 8
    second = rendezvous(replicas, key)
    assert second is not first
    first.outstanding = 0
    assert rendezvous(replicas, key) is first


async def test_every_picture_and_every_video_has_a_key_of_its_own():
    """By which the encoder that knows it is found."""
    keys = []

    class Pools:
        def encoder(self, model, key, without):
            keys.append(key)
            raise NotReady("none")

    encoding = Encoding(Pools(), Retrying(GatewaySettings(), Metrics(), RetryBudget(0, 0)))
    for image in ({"data": b"a"}, {"data": b"b"}, {"frames": [b"a", b"b"]}, {"frames": [b"a", b"c"]}) * 2:
        request = encoder_pb2.EncodeRequest(images=[types_pb2.Image(**image)])
        with pytest.raises(NotReady):
            await encoding.encode("m", request, Deadline(9), Trail("r"))
    assert keys[:4] == keys[4:] and len(set(keys)) == 4


async def test_discovery_reads_every_address_of_a_name_and_survives_an_outage(monkeypatch):
    answers = [["10.0.0.1", "10.0.0.2"], ["10.0.0.2", "10.0.0.3"], OSError("no name server")]

    async def lookup(host, port, type):
        assert (host, port) == ("decoders", 50061)
        answer = answers.pop(0)
        if isinstance(answer, OSError):
            raise answer
        return [(socket.AF_INET, type, 6, "", (ip, port)) for ip in answer]

    monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", lookup)
    discovery = Discovery(["dns:///decoders:50061", "fixed:1"], timeout=10)
    assert await discovery.addresses() == {"10.0.0.1:50061", "10.0.0.2:50061", "fixed:1"}
    moved = {"10.0.0.2:50061", "10.0.0.3:50061", "fixed:1"}
    assert await discovery.addresses() == moved
    assert await discovery.addresses() == moved  # the outage


async def test_a_name_that_hangs_holds_nothing_up_and_is_looked_up_once_at_a_time(monkeypatch):
    answers, asked = {}, []

    async def lookup(host, port, type):
        asked.append(host)
        await answers.setdefault(host, asyncio.Event()).wait()
        return [(socket.AF_INET, type, 6, "", ("10.0.0.1", port))]

    monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", lookup)
    discovery = Discovery(["dns:///hangs:1", "dns:///well:2", "fixed:3"], timeout=0.05)
    answers["well"] = asyncio.Event()
    answers["well"].set()
    for _ in range(3):
        async with asyncio.timeout(10):
            assert await discovery.addresses() == {"10.0.0.1:2", "fixed:3"}
    assert Counter(asked) == {"hangs": 1, "well": 3}
    answers["hangs"].set()
    assert await discovery.addresses() == {"10.0.0.1:1", "10.0.0.1:2", "fixed:3"}
    assert await discovery.addresses() == {"10.0.0.1:1", "10.0.0.1:2", "fixed:3"}
    assert Counter(asked) == {"hangs": 2, "well": 5}


@pytest.mark.parametrize("name", ["a..b", "a" * 70])
async def test_what_cannot_be_a_name_has_no_address(name):
    assert await Discovery([f"dns:///{name}:7", "fixed:1"], timeout=10).addresses() == {"fixed:1"}


async def test_discovery_of_a_real_name():
    assert await Discovery(["dns:///localhost:7"], timeout=10).addresses() & {"127.0.0.1:7", "[::1]:7"}


@pytest.fixture
def keys(tmp_path):
    file = tmp_path / "keys"
    file.write_text("# who may ask what\nalpha\nbeta small large\n")
    return ApiKeys(["gamma"], file), file


@pytest.mark.parametrize("shown", ["Bearer alpha", "bearer  alpha", "Bearer gamma"])
def test_known_keys_may_ask_everything(keys, shown):
    who = keys[0].find(shown)
    who.check("any model")
    assert who.salt


def test_a_key_may_be_bound_to_models(keys):
    who = keys[0].find("Bearer beta")
    who.check("small")
    with pytest.raises(Forbidden, match="ask large, small"):
        who.check("huge")
    assert who.salt != keys[0].find("Bearer alpha").salt


@pytest.mark.parametrize(
    "shown", [None, "", "Bearer", "Bearer ", "Bearer delta", "Basic alpha", "alpha", "Bearer alph"]
)
def test_other_keys_are_refused(keys, shown):
    with pytest.raises(Unauthenticated, match="authorization: "):
        keys[0].find(shown)


def test_keys_are_read_again_when_their_file_changes_and_kept_when_it_goes(keys):
    known, file = keys
    file.write_text("delta\n")
    known.refresh()
    known.find("Bearer delta")
    with pytest.raises(Unauthenticated):
        known.find("Bearer alpha")
    file.unlink()
    known.refresh()
    known.find("Bearer delta")
