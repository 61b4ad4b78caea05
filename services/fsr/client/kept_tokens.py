"""Which visual tokens of a picture or video were kept, and why."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Self

from fsr.client.arrays import array_of
from fsr.v1 import types_pb2

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["Explanation", "ImageTokens", "KeptTokens"]


@dataclass(frozen=True, kw_only=True)
class Explanation:
    """Why tokens were kept.

    `stage` is 0 (focus) or 1 (scan) for each kept token. For each source token, `merged_into` is the index of the kept
    token that absorbed it, or -1, and `priority` its priority. The source tokens form `views`: grids of (index of the
    first token, rows, columns, crop), one for each tile of a picture or frame of a video. `crop` is the region of the
    picture that a grid covers: left, top, right, bottom, in pixels. `rows`, `columns` and `crop` are the first grid's.
    """

    stage: tuple[int, ...]
    merged_into: tuple[int, ...]
    priority: tuple[float, ...]
    rows: int
    columns: int
    crop: tuple[float, float, float, float]
    views: tuple[tuple[int, int, int, tuple[float, float, float, float]], ...]

    @classmethod
    def of(cls, message: types_pb2.Explanation) -> Explanation:
        return cls(
            stage=tuple(message.stage),
            merged_into=tuple(message.merged_into),
            priority=tuple(message.priority),
            rows=message.rows,
            columns=message.columns,
            crop=_box(message.crop),
            views=tuple((view.start, view.rows, view.columns, _box(view.crop)) for view in message.views),
        )


def _box(crop: types_pb2.Crop) -> tuple[float, float, float, float]:
    return (crop.left, crop.top, crop.right, crop.bottom)


@dataclass(frozen=True, kw_only=True)
class KeptTokens:
    """Which tokens of one picture or video were kept, by source index, and why if an explanation was asked for.

    `focus_wanted` is the size of the focus set before the budget limits it. `step_seconds` is the time of each step of
    a video.
    """

    index: tuple[int, ...]
    source_tokens: int
    focus_count: int
    focus_wanted: int
    merged_count: int
    step_seconds: tuple[float, ...]
    explanation: Explanation | None

    @classmethod
    def of(cls, message: types_pb2.CompressedImage) -> Self:
        return cls(**cls._fields(message))

    @classmethod
    def _fields(cls, message: types_pb2.CompressedImage) -> dict[str, Any]:
        return {
            "index": tuple(message.index),
            "source_tokens": message.source_tokens,
            "focus_count": message.focus_count,
            "focus_wanted": message.focus_wanted,
            "merged_count": message.merged_count,
            "step_seconds": tuple(message.step_seconds),
            "explanation": Explanation.of(message.explanation) if message.HasField("explanation") else None,
        }


@dataclass(frozen=True, kw_only=True)
class ImageTokens(KeptTokens):
    """The kept tokens of one picture or video.

    `features` is an array [rows, D]: float16 if `dtype`, the format on the wire, is fp16, else float32, which holds
    bf16 exactly, and int8 times its scales. Its rows are the kept tokens in the order of `index`, and newline
    embeddings in the rows that `newlines` names. `positions` and `grid` (time, row, column) are set for models that
    place tokens so; `deepstack` holds an array [K, D] of the kept tokens for each layer of models with DeepStack.
    """

    features: NDArray[Any] = field(compare=False)
    dtype: str
    newlines: tuple[int, ...]
    positions: tuple[tuple[int, int, int], ...]
    grid: tuple[int, int, int] | None
    deepstack: tuple[NDArray[Any], ...] = field(compare=False)

    @property
    def shape(self) -> tuple[int, ...]:
        """That of `features`."""
        shape: tuple[int, ...] = self.features.shape
        return shape

    @classmethod
    def _fields(cls, message: types_pb2.CompressedImage) -> dict[str, Any]:
        return super()._fields(message) | {
            "features": array_of(message.features),
            "dtype": types_pb2.Dtype.Name(message.features.dtype).removeprefix("DTYPE_").lower(),
            "newlines": tuple(message.newlines),
            "positions": tuple(zip(*[iter(message.positions)] * 3, strict=True)),
            "grid": (message.grid.steps, message.grid.rows, message.grid.columns) if message.HasField("grid") else None,
            "deepstack": tuple(array_of(layer) for layer in message.deepstack),
        }
