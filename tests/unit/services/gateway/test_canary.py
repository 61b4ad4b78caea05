import asyncio
import json

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_health.v1._async import HealthServicer
from hypothesis import given
from hypothesis import strategies as st

from fsr.gateway.callers.auth import Caller
from fsr.gateway.canary.canary import Share, bucket, tokens_agreed
from fsr.gateway.canary.export import CanaryExport
from fsr.gateway.options.policy import Policy
from fsr.gateway.options.settings import GatewaySettings
from fsr.gateway.pipeline import Pipeline
from fsr.gateway.requests.deadline import Deadline
from fsr.gateway.requests.request_context import RequestContext
from fsr.gateway.routing.pools import Pools
from fsr.gateway.telemetry.metrics import Metrics
from fsr.gateway.telemetry.request_record import RequestRecord
from fsr.v1 import decoder_pb2, decoder_pb2_grpc, encoder_pb2, encoder_pb2_grpc, gateway_pb2, types_pb2


@given(st.floats(0, 1), st.lists(st.booleans(), max_size=200))
def test_share_when_requests_come_in_bursts_is_never_exceeded(of, spare):
    """Also in the burst after a time without room."""
    share, taken = Share(of), 0
    for seen, room in enumerate(spare, 1):
        if share.due() and room:
            share.take()
            taken += 1
        assert taken <= of * seen + 1e-6


def test_share_when_there_is_room_is_used():
    share = Share(0.25)
    taken = 0
    for _ in range(100):
        if share.due():
            share.take()
            taken += 1
    assert taken == 25


@pytest.mark.parametrize(
    ("kept", "source", "label"),
    [(1, 576, "0.05"), (64, 576, "0.2"), (58, 576, "0.2"), (57, 576, "0.1"), (144, 144, "1")],
)
def test_bucket_is_the_smallest_bound(kept, source, label):
    assert bucket(kept, source) == label


@pytest.mark.parametrize(
    ("first", "second", "agreed"),
    [([1, 2, 3], [1, 2, 3], 3), ([1, 2], [1, 2, 3], 2), ([1, 5, 3], [1, 2, 3], 2), ([], [], 0)],
)
def test_tokens_agreed_counts_equal_positions(first, second, agreed):
    assert tokens_agreed(first, second) == tokens_agreed(second, first) == agreed


class Encoder(encoder_pb2_grpc.EncoderServiceServicer):
    """Keeps one of nine tokens, or as many as the keep ratio says."""

    async def DescribeEncoder(self, request, context):
        return encoder_pb2.DescribeEncoderResponse(model=MODEL)

    async def Encode(self, request, context):
        requests.append((request.request_id, request.budget, request.HasField("bounds")))
        kept = range(9) if request.budget.keep_ratio == 1 else [4]
        features = types_pb2.Tensor(dtype=types_pb2.DTYPE_BF16, shape=[len(kept), 1], data=b"12" * len(kept))
        image = types_pb2.CompressedImage(source_tokens=9, index=kept, features=features)
        return encoder_pb2.EncodeResponse(images=[image], fingerprint="f")


class Decoder(decoder_pb2_grpc.DecoderServiceServicer):
    """Answers with two tokens; the second one depends on how many visual tokens there are."""

    async def DescribeDecoder(self, request, context):
        return decoder_pb2.DescribeDecoderResponse(model=MODEL)

    async def Decode(self, request, context):
        requests.append((request.request_id, list(request.emitted_token_ids)))
        for token in (7, len(request.images[0].index)):
            yield decoder_pb2.DecodeResponse(token_ids=[token])
        yield decoder_pb2.DecodeResponse(finish_reason=decoder_pb2.FINISH_REASON_STOP)


MODEL = types_pb2.ModelDescription(model="m", fingerprint="f")
requests = []  # what encoder and decoder were asked, in order


async def test_canary_when_an_answer_is_complete_asks_once_more_under_an_id_of_its_own(tmp_path):
    requests.clear()
    server = grpc.aio.server()
    encoder_pb2_grpc.add_EncoderServiceServicer_to_server(Encoder(), server)
    decoder_pb2_grpc.add_DecoderServiceServicer_to_server(Decoder(), server)
    health = HealthServicer()
    health_pb2_grpc.add_HealthServicer_to_server(health, server)
    await health.set("fsr.v1.DecoderService", health_pb2.HealthCheckResponse.SERVING)
    address = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    await server.start()
    settings, metrics = GatewaySettings(encoders=[address], decoders=[address], canary_share=1.0), Metrics()
    pools = Pools(settings, metrics)
    await pools.refresh()
    parts = [types_pb2.Part(image=0), types_pb2.Part(text="?")]
    budget = types_pb2.Budget(keep_ratio=0.1)
    request = gateway_pb2.GenerateRequest(
        messages=[types_pb2.Message(role=types_pb2.ROLE_USER, parts=parts)],
        images=[types_pb2.Image(data=b"x")],
        budget=budget,
    )
    record = RequestRecord(request_id="r")
    pipeline = Pipeline(pools, metrics, settings, CanaryExport(tmp_path, 10_000, metrics))
    caller = Caller(policy=Policy(max_tokens=4))
    context = RequestContext(caller, Deadline(20), record)
    responses = [response async for response in pipeline.generate(request, context)]
    assert responses[-1].usage.request_id == "r"
    assert (record.visual_tokens_in, record.visual_tokens_kept, record.completion_tokens) == (9, 1, 2)

    def compared(name):
        by = {"model": "m", "method": "fsr", "budget": "0.2"}
        return metrics.registry.get_sample_value(f"fsr_canary_{name}_total", by)

    async with asyncio.timeout(30):
        while not metrics.registry.get_sample_value("fsr_canary_exported_total", {"outcome": "written"}):
            await asyncio.sleep(0.01)
    whole = types_pb2.Budget(keep_ratio=1.0)
    # The policy's bounds are for callers: the canary compares with all tokens.
    assert requests == [("r", budget, True), ("r", []), ("r-canary", whole, False), ("r-canary", [])]
    assert [compared(name) for name in ("answers", "exact", "tokens", "tokens_agreed")] == [1, 0, 2, 1]
    (line,) = (tmp_path / "questions.jsonl").read_text().splitlines()
    exported = json.loads(line)
    assert exported["question"] == "?" and (tmp_path / exported["picture"]).read_bytes() == b"x"
    assert exported["canary"] == {"model": "m", "method": "fsr", "most_kept": 0.2, "same_answer": False}
    await pools.close()
    await server.stop(None)
