"""The key by which an encoder is chosen, and what is not sent."""

import math

import pytest

from fsr.common.errors import InvalidRequest, NotReady
from fsr.common.wire.transport import MESSAGE_BYTES
from fsr.gateway.callers.auth import ANYBODY
from fsr.gateway.hops.encoder_hop import EncoderHop
from fsr.gateway.options.settings import GatewaySettings
from fsr.gateway.requests.deadline import Deadline
from fsr.gateway.requests.request_context import RequestContext
from fsr.gateway.routing.attempts import RetryPolicy
from fsr.gateway.routing.retry_budget import RetryBudget
from fsr.gateway.telemetry.metrics import Metrics
from fsr.gateway.telemetry.request_record import RequestRecord
from fsr.v1 import encoder_pb2, types_pb2


class Pools:
    """Notes the keys, and has no encoder."""

    def __init__(self):
        self.keys = []

    def pick_encoder(self, model, key, without, fingerprint):
        self.keys.append(key)
        raise NotReady("none")

    def last_loss(self, role, model):
        return -math.inf


async def encode(pools, **image):
    hop = EncoderHop(pools, RetryPolicy(GatewaySettings(), Metrics(), RetryBudget(0, 0)))
    request = encoder_pb2.EncodeRequest(images=[types_pb2.Image(**image)])
    await hop.encode("m", request, RequestContext(ANYBODY, Deadline(9), RequestRecord(request_id="r")))


async def test_key_when_pictures_or_videos_differ_differs():
    pools = Pools()
    for image in ({"data": b"a"}, {"data": b"b"}, {"frames": [b"a", b"b"]}, {"frames": [b"a", b"c"]}) * 2:
        with pytest.raises(NotReady):
            await encode(pools, **image)
    assert pools.keys[:4] == pools.keys[4:] and len(set(pools.keys)) == 4


async def test_encode_when_images_exceed_a_message_refuses():
    pools = Pools()
    with pytest.raises(InvalidRequest, match=rf"^images: .* bytes, more than {MESSAGE_BYTES}; scale them down"):
        await encode(pools, data=bytes(MESSAGE_BYTES))
    assert not pools.keys
