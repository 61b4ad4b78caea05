"""What a call returns."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from fsr.v1 import gateway_pb2, types_pb2

__all__ = ["Answer", "Chunk", "Compression", "Explanation", "ImageTokens", "Route", "Usage"]


@dataclass(frozen=True)
class Route:
    """Where a request went: addresses of encoders and decoders in the order they were asked; more than one decoder
    means that the answer moved, or that some were full."""

    request_id: str
    encoders: tuple[str, ...]
    decoders: tuple[str, ...]

    @classmethod
    def of(cls, trailing: Iterable[tuple[str, str | bytes]]) -> Route | None:
        """From a call's trailing metadata; None where the gateway did not get that far."""
        told = {key: value for key, value in trailing if isinstance(value, str)}
        if "fsr-request-id" not in told:
            return None
        encoders, decoders = (
            tuple(filter(None, told.get(name, "").split(","))) for name in ("fsr-encoders", "fsr-decoders")
        )
        return cls(told["fsr-request-id"], encoders, decoders)


@dataclass(frozen=True)
class Usage:
    """What an answer took and what compression saved. Bytes, FLOPs and seconds; `seconds` by stage."""

    request_id: str
    prompt_tokens: int
    completion_tokens: int
    visual_tokens_in: int
    visual_tokens_kept: int
    kv_bytes_saved: int
    prefill_flops_saved: float
    wire_bytes: int
    wire_bytes_saved: int
    failovers: int
    retries: int
    cached_images: int
    cached_tokens: int
    seconds: Mapping[str, float]

    @classmethod
    def of(cls, message: gateway_pb2.Usage) -> Usage:
        names = [name for name in cls.__dataclass_fields__ if name != "seconds"]
        return cls(**{name: getattr(message, name) for name in names}, seconds=dict(message.seconds))


@dataclass(frozen=True)
class Chunk:
    """A piece of an answer; `usage`, `route` and `finish_reason` ("stop" or "length") come with the last one."""

    text: str
    token_ids: tuple[int, ...] = ()
    logprobs: tuple[float, ...] = ()
    finish_reason: str | None = None
    usage: Usage | None = None
    route: Route | None = None


@dataclass(frozen=True)
class Answer:
    """A whole answer."""

    text: str
    token_ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    finish_reason: str
    usage: Usage
    route: Route | None


@dataclass(frozen=True)
class Explanation:
    """Why tokens were kept, over a grid of `rows` x `columns` that covers `crop` (pixels) of the picture.

    `views` are all its grids (index of the first token, rows, columns, crop): tiles, or frames of a video.
    """

    stage: tuple[int, ...]
    merged_into: tuple[int, ...]
    priority: tuple[float, ...]
    rows: int
    columns: int
    crop: tuple[float, float, float, float]
    views: tuple[tuple[int, int, int, tuple[float, float, float, float]], ...]


def _box(crop: types_pb2.Crop) -> tuple[float, float, float, float]:
    return (crop.left, crop.top, crop.right, crop.bottom)


@dataclass(frozen=True)
class ImageTokens:
    """Kept tokens of one picture or video: `features` is raw little-endian bytes of `shape` [rows, D] in `dtype`.

    Its rows are the kept tokens in the order of `index`, and `newlines` among them: the numbers of rows that are such.
    For models that place tokens by time, row and column, `positions` has those of each kept token and `grid` the
    extent of all; for models with DeepStack, `deepstack` has (features, scales) of the kept tokens a layer.
    """

    features: bytes
    scales: bytes
    shape: tuple[int, ...]
    dtype: str
    newlines: tuple[int, ...]
    positions: tuple[tuple[int, int, int], ...]
    grid: tuple[int, int, int] | None
    deepstack: tuple[tuple[bytes, bytes], ...]
    step_seconds: tuple[float, ...]
    index: tuple[int, ...]
    source_tokens: int
    focus_count: int
    focus_wanted: int
    merged_count: int
    explanation: Explanation | None

    @classmethod
    def of(cls, message: types_pb2.CompressedImage) -> ImageTokens:
        explanation = None
        if message.HasField("explanation"):
            told = message.explanation
            explanation = Explanation(
                tuple(told.stage),
                tuple(told.merged_into),
                tuple(told.priority),
                told.rows,
                told.columns,
                _box(told.crop),
                tuple((view.start, view.rows, view.columns, _box(view.crop)) for view in told.views),
            )
        grid = message.grid
        return cls(
            message.features.data,
            message.features.scales,
            tuple(message.features.shape),
            types_pb2.Dtype.Name(message.features.dtype).removeprefix("DTYPE_").lower(),
            tuple(message.newlines),
            tuple(zip(*[iter(message.positions)] * 3, strict=True)),
            (grid.steps, grid.rows, grid.columns) if message.HasField("grid") else None,
            tuple((layer.data, layer.scales) for layer in message.deepstack),
            tuple(message.step_seconds),
            tuple(message.index),
            message.source_tokens,
            message.focus_count,
            message.focus_wanted,
            message.merged_count,
            explanation,
        )


@dataclass(frozen=True)
class Compression:
    """Compressed images of one request."""

    request_id: str
    fingerprint: str
    images: tuple[ImageTokens, ...]
    route: Route | None
