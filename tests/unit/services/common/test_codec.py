import pytest
import torch

from fsr.common.errors import InvalidRequest
from fsr.common.wire import codec
from fsr.v1.types_pb2 import DTYPE_BF16, DTYPE_FP16, DTYPE_FP32, DTYPE_INT8, Tensor


@pytest.mark.parametrize(
    ("wire", "error"), [(DTYPE_FP32, 0), (DTYPE_FP16, 1e-3), (DTYPE_BF16, 1e-2), (DTYPE_INT8, 2e-2)]
)
def test_tensor_when_encoded_and_decoded_is_the_same_within_its_precision(wire, error):
    tensor = torch.randn(5, 7, generator=torch.Generator().manual_seed(0))
    decoded = codec.decode(codec.encode(tensor, wire), "x")
    assert decoded.shape == tensor.shape
    assert (decoded.float() - tensor).abs().max() <= error * tensor.abs().max()


def test_encode_when_unspecified_keeps_the_dtype():
    half = torch.ones(2, 3, dtype=torch.bfloat16)
    assert torch.equal(codec.decode(codec.encode(half), "x"), half)


@pytest.mark.parametrize(
    ("message", "error"),
    [
        (Tensor(dtype=DTYPE_FP32, shape=[2, 2], data=b"1234"), r"x\.data: 4 bytes do not fit shape \[2, 2\]"),
        (Tensor(dtype=DTYPE_FP32, shape=[4_000_000_000] * 4, data=b"1234"), r"x\.data: 4 bytes"),
        (Tensor(shape=[1], data=b"1234"), r"x\.dtype"),
        (Tensor(dtype=DTYPE_FP32, shape=[1] * 65, data=b"1234"), r"x\.shape: 65 axes"),
        (Tensor(dtype=DTYPE_FP32, shape=[0, 3]), r"x\.shape"),
        (Tensor(dtype=DTYPE_FP32, shape=[1], data=b"\x00\x00\xc0\x7f"), "NaN"),
        (Tensor(dtype=DTYPE_INT8, shape=[2, 2], data=b"1234", scales=b"1234"), r"x\.scales"),
    ],
)
def test_decode_when_a_message_is_wrong_names_the_field(message, error):
    with pytest.raises(InvalidRequest, match=error):
        codec.decode(message, "x")


def test_encode_when_a_dtype_is_too_narrow_is_refused():
    with pytest.raises(InvalidRequest, match="FP16"):
        codec.encode(torch.full((1, 1), 1e6), DTYPE_FP16)


@pytest.mark.parametrize("wire", [DTYPE_FP32, DTYPE_INT8])
@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_encode_when_a_number_is_nan_or_infinite_is_refused(wire, bad):
    with pytest.raises(InvalidRequest, match="cannot hold these features"):
        codec.encode(torch.tensor([[1.0, 2.0], [bad, 2.0]]), wire)
