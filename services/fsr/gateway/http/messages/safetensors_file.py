"""Compressed images as a safetensors file.

Own code for the format (https://github.com/huggingface/safetensors#format): the library writes tensors of NumPy or
torch alone, and the gateway has neither.
"""

from __future__ import annotations

import json
import sys
from array import array
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from fsr.v1 import types_pb2

__all__ = ["compressed_images_file"]

_DTYPES = {
    types_pb2.DTYPE_FP32: ("F32", 4),
    types_pb2.DTYPE_FP16: ("F16", 2),
    types_pb2.DTYPE_BF16: ("BF16", 2),
    types_pb2.DTYPE_INT8: ("I8", 1),
}
_ALIGNMENT = 8  # bytes; the header is filled up with spaces


@dataclass(frozen=True)
class _Entry:
    name: str
    dtype: str
    item_bytes: int
    shape: list[int]
    data: bytes


def compressed_images_file(images: Iterable[types_pb2.CompressedImage], metadata: Mapping[str, str]) -> bytes:
    """The file. The tensors of image i have names that begin with `images.<i>.`:

    features [rows, D], with int8 also scales [rows]; index [kept]; newlines; positions [kept, 3]; deepstack.<k>
    [kept, D]; and with an explanation stage [kept], merged_into [source] and priority [source]. Indices are int64, so
    that they can index a tensor.
    """
    entries = [entry for i, image in enumerate(images) for entry in _entries(image, f"images.{i}.")]
    entries.sort(key=lambda entry: -entry.item_bytes)  # so each tensor is aligned to its own numbers
    header: dict[str, Any] = {"__metadata__": dict(metadata)}
    end = 0
    for entry in entries:
        offsets = [end, end + len(entry.data)]
        header[entry.name] = {"dtype": entry.dtype, "shape": entry.shape, "data_offsets": offsets}
        end = offsets[1]
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % _ALIGNMENT)
    return b"".join([len(text).to_bytes(8, "little"), text, *(entry.data for entry in entries)])


def _entries(image: types_pb2.CompressedImage, prefix: str) -> Iterator[_Entry]:
    yield from _tensor(prefix + "features", image.features)
    yield _integers(prefix + "index", image.index)
    yield _integers(prefix + "newlines", image.newlines)
    if image.positions:
        yield _integers(prefix + "positions", image.positions, [len(image.positions) // 3, 3])
    for k, layer in enumerate(image.deepstack):
        yield from _tensor(f"{prefix}deepstack.{k}", layer)
    if image.HasField("explanation"):
        yield _integers(prefix + "stage", image.explanation.stage)
        yield _integers(prefix + "merged_into", image.explanation.merged_into)
        priority = _little_endian(array("f", image.explanation.priority))
        yield _Entry(prefix + "priority", "F32", 4, [len(image.explanation.priority)], priority)


def _tensor(name: str, tensor: types_pb2.Tensor) -> Iterator[_Entry]:
    dtype, item_bytes = _DTYPES[tensor.dtype]
    yield _Entry(name, dtype, item_bytes, list(tensor.shape), tensor.data)
    if tensor.scales:
        scales = name.removesuffix("features") + "scales" if name.endswith("features") else name + ".scales"
        yield _Entry(scales, "F32", 4, [tensor.shape[0]], tensor.scales)


def _integers(name: str, numbers: Iterable[int], shape: list[int] | None = None) -> _Entry:
    values = array("q", numbers)
    return _Entry(name, "I64", 8, shape or [len(values)], _little_endian(values))


def _little_endian(values: array[Any]) -> bytes:
    if sys.byteorder == "big":
        values.byteswap()
    return values.tobytes()
