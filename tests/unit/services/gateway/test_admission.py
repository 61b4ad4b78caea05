import asyncio
from types import SimpleNamespace

import pytest
import structlog

from fsr.common.errors import NotReady, Overloaded
from fsr.gateway.admission import Admission
from fsr.gateway.auth import ApiKeys
from fsr.gateway.call import GrpcCall
from fsr.gateway.metrics import Metrics
from fsr.gateway.settings import GatewaySettings


@pytest.mark.parametrize(
    ("error", "remaining", "code"),
    [
        (asyncio.CancelledError(), None, "CANCELLED"),
        (GeneratorExit(), 0.01, "DEADLINE_EXCEEDED"),
        (NotReady("none there"), None, "UNAVAILABLE"),
        (RuntimeError(), None, "INTERNAL"),
    ],
)
def test_request_when_it_fails_is_one_log_line_and_its_caller_gets_the_id(error, remaining, code):
    trailing, times = {}, [9.0, remaining]
    context = SimpleNamespace(
        time_remaining=lambda: times.pop(0),
        set_trailing_metadata=lambda pairs: trailing.update(pairs),
        invocation_metadata=lambda: None,
    )
    admission = Admission(ApiKeys([], None), Metrics(), GatewaySettings())
    with (
        structlog.testing.capture_logs([structlog.contextvars.merge_contextvars]) as lines,
        pytest.raises(type(error)),
        admission.request("Generate", GrpcCall(context)) as request_context,
    ):
        request_context.record.decoders.append("d:1")
        request_context.record.completion_tokens = 3
        raise error
    (line,) = lines
    assert (line["event"], line["rpc"], line["code"]) == ("failed", "Generate", code)
    assert line["request_id"] == trailing["fsr-request-id"] and trailing["fsr-decoders"] == "d:1"
    assert line["completion_tokens"] == 3 and line["seconds"] >= 0
    assert line.get("reason") == (str(error) or None)


def test_request_when_too_many_are_in_flight_is_refused():
    metrics = Metrics()
    context = SimpleNamespace(
        time_remaining=lambda: None, set_trailing_metadata=lambda pairs: None, invocation_metadata=lambda: None
    )
    admission = Admission(ApiKeys([], None), metrics, GatewaySettings(max_requests=1))

    def in_flight():
        return metrics.registry.get_sample_value("fsr_requests_in_flight")

    with admission.request("Generate", GrpcCall(context)):
        assert in_flight() == 1
        with (
            pytest.raises(Overloaded, match="1 requests are in flight"),
            admission.request("Compress", GrpcCall(context)),
        ):
            pass
        assert in_flight() == 1
    assert in_flight() == 0
    with admission.request("Compress", GrpcCall(context)):
        pass
