"""Features on their way to another replica: NumPy arrays, which Ray's object store takes as they are."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fsr_core.backbones import ImageFeatures

__all__ = ["pack", "unpack"]

_BYTES = {torch.bfloat16: torch.int16}  # NumPy lacks it


@dataclass(frozen=True)
class _Packed:
    values: NDArray[Any]
    dtype: str
    on_cpu: bool


def pack(features: ImageFeatures) -> dict[str, Any]:
    """The fields of features, each tensor as an array. They share memory with tensors on the CPU."""
    values = ((field.name, getattr(features, field.name)) for field in fields(features))
    return {name: _packed(value) if isinstance(value, Tensor) else value for name, value in values}


def unpack(content: dict[str, Any], device: torch.device) -> ImageFeatures:
    """The features, bit for bit, in memory of their own; on `device` what was not on the CPU."""
    values: dict[str, Any] = {n: _unpacked(v, device) if isinstance(v, _Packed) else v for n, v in content.items()}
    return ImageFeatures(**values)


def _packed(tensor: Tensor) -> _Packed:
    on_cpu = tensor.device.type == "cpu"
    plain = tensor.detach().cpu().contiguous()
    return _Packed(
        plain.view(_BYTES.get(tensor.dtype, tensor.dtype)).numpy(), str(tensor.dtype)[len("torch.") :], on_cpu
    )


def _unpacked(packed: _Packed, device: torch.device) -> Tensor:
    # A copy: what is in the store cannot be written to, and stays there as long as anyone reads it.
    tensor = torch.from_numpy(np.array(packed.values)).view(getattr(torch, packed.dtype))
    return tensor if packed.on_cpu else tensor.to(device)
