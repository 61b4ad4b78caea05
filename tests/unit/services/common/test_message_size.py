import pytest

from fsr.common.errors import InvalidRequest
from fsr.common.wire.message_size import check_tokens_size
from fsr.common.wire.transport import MESSAGE_BYTES
from fsr.v1 import encoder_pb2, types_pb2


def test_check_tokens_size_when_a_message_is_too_large_names_the_budget():
    tokens = types_pb2.CompressedImage(features=types_pb2.Tensor(data=bytes(MESSAGE_BYTES - 100)))
    check_tokens_size(encoder_pb2.EncodeResponse(images=[tokens]).ByteSize())
    tokens.features.data += bytes(100)
    with pytest.raises(
        InvalidRequest, match=rf"^budget: the kept tokens take \d+ bytes, more than {MESSAGE_BYTES}; keep"
    ):
        check_tokens_size(encoder_pb2.EncodeResponse(images=[tokens]).ByteSize())
