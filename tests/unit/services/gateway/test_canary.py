from types import SimpleNamespace

import pytest
import structlog
from hypothesis import given
from hypothesis import strategies as st

from fsr.gateway.canary import Share, bucket, tokens_agreed
from fsr.gateway.deadline import Deadline
from fsr.gateway.metrics import Metrics
from fsr.gateway.pipeline import Requests
from fsr.gateway.request_record import Trail
from fsr.gateway.settings import GatewaySettings
from fsr.v1 import decoder_pb2, encoder_pb2, gateway_pb2, types_pb2


@given(st.floats(0, 1), st.lists(st.booleans(), max_size=200))
def test_a_share_is_never_exceeded(of, spare):
    """Whatever was spare before: also in the burst that follows a time without room."""
    share, taken = Share(of), 0
    for seen, room in enumerate(spare, 1):
        if share.due() and room:
            share.take()
            taken += 1
        assert taken <= of * seen + 1e-6


def test_a_share_is_used_where_there_is_room():
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
def test_budget_labels_are_few(kept, source, label):
    assert bucket(kept, source) == label


@pytest.mark.parametrize(
    ("one", "other", "agreed"),
    [([1, 2, 3], [1, 2, 3], 3), ([1, 2], [1, 2, 3], 2), ([1, 5, 3], [1, 2, 3], 2), ([], [], 0)],
)
def test_agreement_of_tokens(one, other, agreed):
    assert tokens_agreed(one, other) == tokens_agreed(other, one) == agreed


async def test_its_hops_are_told_apart_from_the_callers_in_the_logs():
    asked = []

    async def encode(model, request, deadline, trail):
        asked.append(request.request_id)
        return encoder_pb2.EncodeResponse(images=[types_pb2.CompressedImage(source_tokens=9, index=[4])])

    async def answer(model, request, deadline, trail):
        asked.append(request.request_id)
        message = decoder_pb2.DecodeResponse(token_ids=[7], finish_reason=decoder_pb2.FINISH_REASON_STOP)
        yield SimpleNamespace(cost=types_pb2.CostModel()), message

    def consider(model, encode, decode, encoded):
        asked.extend([encode.request_id, decode.request_id, structlog.contextvars.get_contextvars()["request_id"]])

    pools = SimpleNamespace(resolve=lambda *_: "m", methods=lambda _: [])
    requests, trail = Requests(pools, Metrics(), GatewaySettings()), Trail("r")
    requests._encoding, requests._decoding = SimpleNamespace(encode=encode), SimpleNamespace(answer=answer)
    requests._canary = SimpleNamespace(consider=consider)
    parts = [types_pb2.Part(image=0), types_pb2.Part(text="?")]
    request = gateway_pb2.GenerateRequest(
        messages=[types_pb2.Message(role=types_pb2.ROLE_USER, parts=parts)],
        images=[types_pb2.Image(data=b"x")],
        budget=types_pb2.Budget(tokens=1),
    )
    assert [m async for m in requests.generate(request, Deadline(9), trail)][-1].usage.request_id == "r"
    assert asked == ["r", "r", "r-canary", "r-canary", "r-canary"]
    assert (trail.visual_tokens_in, trail.visual_tokens_kept, trail.completion_tokens) == (9, 1, 1)
