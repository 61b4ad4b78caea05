"""Where the seconds of an answer went, with one decoder and after a failover."""

import pytest

from fsr.gateway.hops.usage import Stopwatch, count_usage
from fsr.gateway.telemetry.metrics import Metrics
from fsr.v1 import decoder_pb2, encoder_pb2, gateway_pb2, types_pb2

ENCODED = encoder_pb2.EncodeResponse(encode_seconds=1, compress_seconds=0.5)
LAST = decoder_pb2.DecodeStats(queue_seconds=0.25, prefill_seconds=0.5, decode_seconds=2)


@pytest.mark.parametrize(
    ("messages", "end", "ship", "ttft"),
    [
        ([(1, 102.5), (1, 104.5)], 104.5, 0.25, 2.5),
        ([(2, 109.5), (2, 111.5)], 111.5, 7.25, 9.5),  # the first one failed before its first message
        ([(1, 102.5), (1, 103), (2, 109.5), (2, 111.5)], 111.5, 7.25, 2.5),  # the first one failed after two messages
    ],
)
def test_stages_when_several_decoders_answered_add_up_to_the_total(messages, end, ship, ttft):
    watch = Stopwatch(100.0)
    watch.shipped = 101.5
    for attempt, now in messages:
        watch.message_received(attempt, now)
    seconds = watch.seconds(ENCODED, LAST, end)
    assert (seconds["ship"], seconds["ttft"], seconds["total"]) == (ship, ttft, end - 100)
    stages = ("encode", "compress", "ship", "queue", "prefill", "decode")
    assert sum(seconds[stage] for stage in stages) == seconds["total"]


def test_answer_when_a_replica_s_figures_cannot_be_counted_is_no_failure():
    metrics, usage = Metrics(), gateway_pb2.Usage(prompt_tokens=3, completion_tokens=10)
    seconds = {"ttft": 2.5, "total": 11.5}
    count_usage(metrics, "möd", usage, types_pb2.CostModel(flops_linear=-1), seconds)  # Prometheus refuses to go down
    count_usage(metrics, "möd", usage, types_pb2.CostModel(flops_linear=1), seconds)
    flops = {"model": "möd", "method": "fsr"}
    assert metrics.registry.get_sample_value("fsr_prefill_flops_total", flops) == 3


@pytest.mark.parametrize("resumed", [0, 30])
def test_time_per_output_token_is_by_the_caller_s_clock(resumed):
    metrics, usage = Metrics(), gateway_pb2.Usage(completion_tokens=resumed + 10)
    count_usage(metrics, "m", usage, types_pb2.CostModel(), {"ttft": 2.5, "total": 11.5, "decode": 2.0}, resumed)
    name = "fsr_time_per_output_token_seconds_sum"
    assert metrics.registry.get_sample_value(name, {"model": "m"}) == 1.0
