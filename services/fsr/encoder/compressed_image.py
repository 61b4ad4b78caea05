"""One compressed image as the message that travels to the decoder."""

from __future__ import annotations

from fsr.common.wire import codec
from fsr.v1 import types_pb2
from fsr_core import CompressedTokens
from fsr_core.backbones import ImageFeatures, KeptImage, Tile

__all__ = ["compressed_image"]


def compressed_image(
    features: ImageFeatures,
    kept: CompressedTokens,
    laid_out: KeptImage,
    wire_dtype: types_pb2.Dtype.ValueType,
    explain: bool,
) -> types_pb2.CompressedImage:
    """The message of one image: all its source tokens are `features`, the kept ones `laid_out` as the model wants them.

    Raises InvalidRequest if `wire_dtype` is unknown or cannot hold the features.
    """
    newlines = [] if laid_out.index is None else (laid_out.index < 0).nonzero().flatten().tolist()
    deepstack = () if laid_out.deepstack is None else laid_out.deepstack
    message = types_pb2.CompressedImage(
        features=codec.encode(laid_out.features, wire_dtype),
        index=kept.index.tolist(),
        source_tokens=len(features.features),
        focus_count=kept.focus_count,
        focus_wanted=kept.focus_wanted,
        merged_count=int((kept.merged_into >= 0).sum()),
        newlines=newlines,
        source_newlines=features.newlines,
        positions=[] if laid_out.positions is None else laid_out.positions.flatten().tolist(),
        deepstack=[codec.encode(layer, wire_dtype) for layer in deepstack],
        video=laid_out.video,
        step_seconds=laid_out.frame_seconds,
    )
    if laid_out.grid is not None:
        steps, rows, columns = laid_out.grid
        message.grid.CopyFrom(types_pb2.Grid(steps=steps, rows=rows, columns=columns))
    if explain:
        message.explanation.CopyFrom(_explanation(features, kept))
    return message


def _explanation(features: ImageFeatures, kept: CompressedTokens) -> types_pb2.Explanation:
    views = [_view(tile) for tile in features.tiles]
    return types_pb2.Explanation(
        stage=kept.stage.tolist(),
        merged_into=kept.merged_into.tolist(),
        priority=kept.priority.tolist(),
        rows=views[0].rows,
        columns=views[0].columns,
        crop=views[0].crop,
        views=views,
    )


def _view(tile: Tile) -> types_pb2.View:
    left, top, right, bottom = tile.crop
    crop = types_pb2.Crop(left=left, top=top, right=right, bottom=bottom)
    return types_pb2.View(start=tile.start, rows=tile.rows, columns=tile.cols, crop=crop)
