"""Tensors of the wire as arrays: the same numbers that a decoder takes."""

import sys

import numpy as np
import pytest
import torch

from fsr.client import Client, InvalidRequestError
from fsr.client.arrays import array_of
from fsr.client.kept_tokens import ImageTokens
from fsr.common.wire import codec
from fsr.v1 import types_pb2

WIRES = [types_pb2.DTYPE_FP32, types_pb2.DTYPE_FP16, types_pb2.DTYPE_BF16, types_pb2.DTYPE_INT8]


@pytest.mark.parametrize("shape", [(5, 7), (1, 1), (2, 3, 4)])
@pytest.mark.parametrize("wire", WIRES)
def test_array_has_the_numbers_of_the_tensor(wire, shape):
    message = codec.encode(torch.randn(*shape, generator=torch.Generator().manual_seed(1)), wire)
    array = array_of(message)
    assert array.shape == shape and array.dtype == (np.float16 if wire == types_pb2.DTYPE_FP16 else np.float32)
    assert torch.equal(torch.from_numpy(array).float(), codec.decode(message, "x").float())
    array[:] = 0  # the caller's own
    assert array_of(message).any()


def test_tokens_compare_by_what_was_kept():
    tensors = [codec.encode(torch.full((2, 3), number)) for number in (0.5, 1.5)]
    one, other = (ImageTokens.of(types_pb2.CompressedImage(features=t, deepstack=[t], index=[1, 2])) for t in tensors)
    assert one == other and one.shape == (2, 3) and one.deepstack[0].tolist() == [[0.5] * 3] * 2
    assert one != ImageTokens.of(types_pb2.CompressedImage(features=tensors[0], index=[1, 3]))


def test_compress_without_numpy_says_so_before_it_asks(monkeypatch):
    monkeypatch.setitem(sys.modules, "numpy", None)
    with Client("127.0.0.1:1") as client, pytest.raises(InvalidRequestError, match=r"^compress: .*; pip install numpy"):
        client.compress(b"x", "?")
