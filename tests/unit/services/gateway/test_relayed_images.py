"""Images reach the decoder as the bytes that the encoder sent."""

import pytest

from fsr.gateway.hops.relayed_images import relayed_images
from fsr.v1 import decoder_pb2, encoder_pb2, types_pb2


def image(size):
    features = types_pb2.Tensor(dtype=types_pb2.DTYPE_FP32, shape=[size], data=bytes(range(256)) * size)
    return types_pb2.CompressedImage(features=features, index=range(size), source_tokens=size + 1)


@pytest.mark.parametrize("sizes", [(), (1,), (1, 300, 0)])
def test_images_of_a_response_are_those_of_the_request(sizes):
    response = encoder_pb2.EncodeResponse(
        fingerprint="f", images=map(image, sizes), encode_seconds=0.5, compress_seconds=0.25, cache_hits=300
    )
    request = decoder_pb2.DecodeRequest(request_id="r", emitted_token_ids=[1, 2])
    data = b"".join((request.SerializeToString(), *relayed_images(response.SerializeToString())))
    request.images.extend(response.images)
    assert decoder_pb2.DecodeRequest.FromString(data) == request


def test_images_are_not_copied_before_the_request_is_put_together():
    response = encoder_pb2.EncodeResponse(images=[image(300)]).SerializeToString()
    _, view = relayed_images(response)
    assert view.obj is response
