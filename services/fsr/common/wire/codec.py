"""Tensors to and from messages: dtype, shape and little-endian bytes. No pickle."""

from __future__ import annotations

from math import prod

import torch

from fsr.common.errors import InvalidRequest
from fsr.v1.types_pb2 import (
    DTYPE_BF16,
    DTYPE_FP16,
    DTYPE_FP32,
    DTYPE_INT8,
    DTYPE_UNSPECIFIED,
    Dtype,
    Tensor,
)

__all__ = ["decode", "encode"]

_TORCH = {
    DTYPE_FP32: torch.float32,
    DTYPE_FP16: torch.float16,
    DTYPE_BF16: torch.bfloat16,
    DTYPE_INT8: torch.int8,
}
_MAX_AXES = 8
_WIRE = {dtype: wire for wire, dtype in _TORCH.items()}


def _bytes(tensor: torch.Tensor) -> bytes:
    return tensor.contiguous().view(torch.uint8).numpy().tobytes()


def encode(tensor: torch.Tensor, wire: Dtype.ValueType = DTYPE_UNSPECIFIED) -> Tensor:
    """A floating-point tensor [rows, ...] as a message. DTYPE_UNSPECIFIED keeps its dtype, int8 adds one scale a row.

    Raises InvalidRequest, which names `wire_dtype`, if it is unknown or cannot hold the numbers.
    """
    if wire not in (*_TORCH, DTYPE_UNSPECIFIED):
        raise InvalidRequest(f"wire_dtype: {wire} is unknown; use fp32, fp16, bf16 or int8")
    tensor = tensor.detach().cpu()
    shape = list(tensor.shape)
    if wire == DTYPE_INT8:
        rows = tensor.float().flatten(1)
        scales = rows.abs().amax(1) / 127
        if not bool(torch.isfinite(scales).all()):
            raise InvalidRequest("wire_dtype: DTYPE_INT8 cannot hold these features: some are NaN or infinite")
        steps = (rows / torch.where(scales > 0, scales, 1.0).unsqueeze(1)).round().to(torch.int8)
        return Tensor(dtype=wire, shape=shape, data=_bytes(steps), scales=_bytes(scales))
    wire = wire or _WIRE[tensor.dtype]
    cast = tensor.to(_TORCH[wire])
    if not bool(torch.isfinite(cast).all()):
        raise InvalidRequest(f"wire_dtype: {Dtype.Name(wire)} cannot hold these features; use bf16 or fp32")
    return Tensor(dtype=wire, shape=shape, data=_bytes(cast))


def decode(message: Tensor, field: str) -> torch.Tensor:
    """The tensor of a message; int8 becomes fp32. The message is checked before anything is allocated.

    Raises InvalidRequest, which names `field`, for an unknown dtype, an empty shape, too many axes, bytes that do not
    fit the shape, NaN or infinity.
    """
    if message.dtype not in _TORCH:
        raise InvalidRequest(f"{field}.dtype: is not set or unknown; use fp32, fp16, bf16 or int8")
    if len(message.shape) > _MAX_AXES:
        raise InvalidRequest(
            f"{field}.shape: {len(message.shape)} axes are more than {_MAX_AXES}; send rows of features"
        )
    shape = list(message.shape)
    if not shape or 0 in shape:
        raise InvalidRequest(f"{field}.shape: {shape} is empty; send at least one number")
    dtype = _TORCH[message.dtype]
    expected = prod(shape) * dtype.itemsize
    if len(message.data) != expected:
        raise InvalidRequest(
            f"{field}.data: {len(message.data)} bytes do not fit shape {shape}, which takes {expected}; send as many"
        )
    tensor = torch.frombuffer(bytearray(message.data), dtype=dtype).view(shape)
    if dtype == torch.int8:
        if len(message.scales) != 4 * shape[0]:
            raise InvalidRequest(f"{field}.scales: expected {shape[0]} fp32 scales, one a row")
        scales = torch.frombuffer(bytearray(message.scales), dtype=torch.float32)
        tensor = tensor.float() * scales.view(-1, *[1] * (len(shape) - 1))
    if not bool(torch.isfinite(tensor).all()):
        raise InvalidRequest(f"{field}.data: holds NaN or infinity; check the encoder")
    return tensor
