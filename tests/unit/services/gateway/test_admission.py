import asyncio
import contextlib
from types import SimpleNamespace

import pytest
import structlog

from fsr.common.errors import Expired, NotReady, Overloaded
from fsr.gateway.admission import Admission
from fsr.gateway.callers.auth import ApiKeys
from fsr.gateway.options.settings import GatewaySettings
from fsr.gateway.requests.call import GrpcCall
from fsr.gateway.telemetry.metrics import Metrics


@pytest.mark.parametrize(
    ("error", "remaining", "code"),
    [
        (asyncio.CancelledError(), None, "CANCELLED"),
        (GeneratorExit(), 0.01, "DEADLINE_EXCEEDED"),
        (NotReady("none there"), None, "UNAVAILABLE"),
        (RuntimeError(), None, "INTERNAL"),
    ],
)
async def test_request_when_it_fails_is_one_log_line_and_its_caller_gets_the_id(error, remaining, code):
    trailing, times = {}, [9.0, remaining]
    context = SimpleNamespace(
        time_remaining=lambda: times.pop(0),
        set_trailing_metadata=lambda pairs: trailing.update(pairs),
        invocation_metadata=lambda: None,
        peer=lambda: "ipv4:127.0.0.1:1",
    )
    admission = Admission(ApiKeys([], None), Metrics(), GatewaySettings())
    with structlog.testing.capture_logs([structlog.contextvars.merge_contextvars]) as lines:
        with pytest.raises(type(error)):
            async with admission.request("Generate", GrpcCall(context)) as request_context:
                request_context.record.decoders.append("d:1")
                request_context.record.completion_tokens = 3
                raise error
        await asyncio.sleep(0)  # the line comes after what is ready now
    (line,) = lines
    assert (line["event"], line["rpc"], line["code"]) == ("failed", "Generate", code)
    assert trailing == {"fsr-request-id": line["request_id"]} and line["decoders"] == ["d:1"]
    assert line["completion_tokens"] == 3 and line["seconds"] >= 0
    assert line.get("reason") == (str(error) or None)


def gateway(keys=None, **settings):
    metrics = Metrics()
    return Admission(keys or ApiKeys([], None), metrics, GatewaySettings(**settings)), metrics


def call(key="", peer="ipv4:127.0.0.1:1", seconds=None, metadata=(), trailing=None):
    return GrpcCall(
        SimpleNamespace(
            time_remaining=lambda: seconds,
            set_trailing_metadata=lambda pairs: None if trailing is None else trailing.extend(pairs),
            invocation_metadata=lambda: (("authorization", f"Bearer {key}"), *metadata),
            peer=lambda: peer,
        )
    )


def refused(metrics, reason):
    return metrics.registry.get_sample_value("fsr_admission_refused_total", {"reason": reason})


async def test_request_when_too_many_are_in_flight_waits_or_is_refused_with_a_growing_hint():
    admission, metrics = gateway(max_requests=1, max_waiting=1, max_wait_seconds=30)
    started = asyncio.Event()

    async def waits():
        async with admission.request("Generate", call()) as context:
            started.set()
            return context.record.wait_seconds

    def gauge(name):
        return metrics.registry.get_sample_value(name)

    hints = []
    async with admission.request("Generate", call()):
        waiting = asyncio.create_task(waits())
        await asyncio.sleep(0.05)
        assert (gauge("fsr_requests_in_flight"), gauge("fsr_requests_waiting")) == (1, 1) and not started.is_set()
        for _ in range(2):
            with pytest.raises(Overloaded, match=r"^gateway: 1 requests are in flight") as caught:
                async with admission.request("Compress", call()):
                    pass
            hints.append(caught.value.retry_after)
    assert await waiting > 0.04 and gauge("fsr_requests_in_flight") == 0
    assert hints == pytest.approx([1.0, 1.5], abs=0.1) and refused(metrics, "in_flight") == 2
    async with admission.request("Compress", call()):
        pass


async def test_request_when_it_has_waited_for_long_or_its_deadline_passes_is_refused():
    admission, metrics = gateway(max_requests=1, max_wait_seconds=0.05)
    async with admission.request("Generate", call()):
        with pytest.raises(Overloaded):
            async with admission.request("Generate", call()):
                pass
        with pytest.raises(Expired):
            async with admission.request("Generate", call(seconds=0.01)):
                pass
    assert refused(metrics, "in_flight") == 1


async def test_request_that_waits_while_the_gateway_drains_is_sent_to_another():
    admission, _ = gateway(max_requests=1)

    async def waits():
        async with admission.request("Generate", call()):
            pass

    async with admission.request("Generate", call()):
        waiting = asyncio.create_task(waits())
        await asyncio.sleep(0.01)
        draining = asyncio.create_task(admission.draining.drain(5))
        await asyncio.sleep(0.01)
    await draining
    with pytest.raises(NotReady, match="shutting down"):
        await waiting


@pytest.mark.parametrize(
    ("options", "entry", "reason"),
    [
        ({"max_requests": 8}, "{key: a}", "key"),  # seven eighths of eight
        ({"max_requests_per_key": 7}, "{key: a}", "key"),
        ({"max_requests_per_key": 1}, "{key: a, max_requests: 7}", "key"),
        ({"max_requests_per_connection": 7}, "{key: a}", "connection"),
    ],
)
async def test_key_or_connection_with_as_many_requests_as_it_may_have_leaves_room_for_others(
    tmp_path, options, entry, reason
):
    (tmp_path / "keys.yaml").write_text(f"keys: [{entry}, {{key: b}}]")
    admission, metrics = gateway(ApiKeys([], tmp_path / "keys.yaml"), max_wait_seconds=0, **options)
    async with contextlib.AsyncExitStack() as running:
        for _ in range(7):
            await running.enter_async_context(admission.request("Generate", call("a")))
        with pytest.raises(Overloaded, match=f"gateway: 7 requests of this .*{reason} are in flight"):
            async with admission.request("Generate", call("a")):
                pass
        assert refused(metrics, reason) == 1
        async with admission.request("Generate", call("b", peer="ipv4:127.0.0.1:2")):
            pass


async def test_callers_without_keys_may_take_every_slot_by_several_connections():
    admission, _ = gateway(max_requests=8, max_wait_seconds=0)
    async with contextlib.AsyncExitStack() as running:
        for i in range(8):
            await running.enter_async_context(admission.request("Generate", call(peer=f"ipv4:127.0.0.1:{i % 2}")))


@pytest.mark.parametrize("asks", [False, True])
async def test_caller_gets_the_addresses_of_replicas_only_if_it_asks_for_them(asks):
    admission, trailing = gateway()[0], []
    metadata = (("fsr-replicas", "1"),) if asks else ()
    async with admission.request("Generate", call(metadata=metadata, trailing=trailing)) as context:
        context.record.encoders.append("e:1")
        context.record.decoders += ["d:1", "d:2"]
    route = {"fsr-encoders": "e:1", "fsr-decoders": "d:1,d:2"} if asks else {}
    assert dict(trailing) == {"fsr-request-id": context.record.request_id} | route
