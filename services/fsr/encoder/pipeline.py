"""What an encoder replica does with a request, free of Ray: check, encode, compress."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import structlog
import torch
from google.protobuf.json_format import MessageToDict

from fsr.common import codec
from fsr.common.errors import InvalidRequest
from fsr.common.limits import check_finite
from fsr.encoder.images import decode_image
from fsr.v1 import encoder_pb2, types_pb2
from fsr_core import DEFAULT_METHOD, Budget, CompressedTokens, Compressor, VisualTokens, create
from fsr_core.backbones import ImageFeatures, KeptImage, PreparedImage, Tile, VisualEncoder
from fsr_core.spread import Spread, compress_images

__all__ = ["Job", "compress", "compressed_image", "content", "each_alone", "is_multi_image", "plan_of", "prepare"]

log = structlog.get_logger()
Work = TypeVar("Work")
Done = TypeVar("Done")
_SPREADS: Mapping[int, Spread] = {
    types_pb2.SPREAD_UNSPECIFIED: "even",
    types_pb2.SPREAD_EVEN: "even",
    types_pb2.SPREAD_FREE: "free",
}


@dataclass(frozen=True)
class Plan:
    """A request's checked wishes."""

    compressor: Compressor
    budget: Budget
    spread: Spread
    instruction: str


@dataclass(frozen=True)
class Job:
    """One image of one request: its pixels, or its features where they are known already."""

    plan: Plan
    prepared: PreparedImage | None
    features: ImageFeatures | None


def plan_of(request: encoder_pb2.EncodeRequest) -> Plan:
    """Raises InvalidRequest naming the field that is wrong."""
    if not request.instruction.strip():
        raise InvalidRequest("instruction: is blank; ask a question")
    if request.budget.spread not in _SPREADS:
        raise InvalidRequest(f"budget.spread: {request.budget.spread} is unknown; use even or free")
    try:
        check_finite(request.method.options, "method.options")
        options = MessageToDict(request.method.options)
        compressor, budget = create(request.method.name or DEFAULT_METHOD, **options), _budget(request.budget)
        return Plan(compressor, budget, _SPREADS[request.budget.spread], request.instruction)
    except (ValueError, TypeError) as error:
        raise InvalidRequest(str(error)) from error


def _budget(message: types_pb2.Budget) -> Budget:
    kind = message.WhichOneof("kind")
    if kind == "tokens":
        return Budget(tokens=message.tokens)
    if kind == "keep_ratio":
        return Budget(keep_ratio=message.keep_ratio)
    if kind == "auto":
        auto = message.auto
        low, high = auto.min_tokens or 1, auto.max_tokens or None
        if not auto.HasField("radius"):
            return Budget(auto=True, min_tokens=low, max_tokens=high)
        return Budget(auto=True, min_tokens=low, max_tokens=high, radius=auto.radius)
    raise ValueError("budget: is not set; give tokens, keep_ratio or auto")


def is_multi_image(encoder: VisualEncoder, images: Sequence[types_pb2.Image]) -> bool:
    """Whether the pictures of a request are prepared as several of one conversation."""
    return encoder.coarse_when_multi_image and sum(not image.frames for image in images) > 1


def content(image: types_pb2.Image, multi_image: bool) -> bytes:
    """What tells one picture or video from another: everything that its features depend on but the model."""
    if image.frames:
        return image.SerializeToString(deterministic=True)
    return b"multi-image" + image.data if multi_image else image.data


def prepare(
    encoder: VisualEncoder, image: types_pb2.Image, field: str, max_pixels: int, multi_image: bool = False
) -> PreparedImage:
    """Decodes and prepares one video or picture; `multi_image` as from `is_multi_image`. Raises InvalidRequest naming
    `field`."""
    try:
        if not image.frames:
            picture = decode_image(image.data, f"{field}.data", max_pixels)
            return encoder.preprocess_multi_image(picture) if multi_image else encoder.preprocess(picture)
        frames = [decode_image(f, f"{field}.frames[{i}]", max_pixels) for i, f in enumerate(image.frames)]
        return encoder.preprocess_video(frames, image.frames_per_second or 2.0)
    except ValueError as error:
        raise InvalidRequest(f"{field}: {error}") from error


def each_alone(run: Callable[[list[Work]], list[Done]], batch: list[Work]) -> list[Done | Exception]:
    """What `run` makes of a batch; where that fails, of each of it alone, so that only what is wrong gives an error."""
    try:
        return list(run(batch))
    except Exception as error:
        if len(batch) == 1:
            return [error]
        log.warning("a batch failed, each of it is tried alone", size=len(batch), reason=str(error))
    # Out of the handler, so that the failed batch's tensors are free by now.
    return [done for one in batch for done in each_alone(run, [one])]


@torch.inference_mode()
def encode(encoder: VisualEncoder, jobs: Sequence[Job]) -> list[tuple[ImageFeatures, VisualTokens]]:
    """Runs the vision tower once over all new images and the text tower once over all instructions.

    Raises InvalidRequest for an instruction in which the text tower finds no words.
    """
    fresh = iter(encoder.encode_images([job.prepared for job in jobs if job.prepared is not None]))
    features = [next(fresh) if job.features is None else job.features for job in jobs]
    try:
        said = encoder.encode_instructions([job.plan.instruction for job in jobs])
    except ValueError as error:
        raise InvalidRequest(str(error)) from error
    return [(f, encoder.visual_tokens(f, text)) for f, text in zip(features, said, strict=True)]


@torch.inference_mode()
def compress(jobs: Sequence[Job], pairs: Sequence[tuple[ImageFeatures, VisualTokens]]) -> list[CompressedTokens]:
    """Compresses a batch that may mix methods, budgets and spreads; each method runs once a spread."""
    kept: dict[int, CompressedTokens] = {}
    for compressor, spread in {(job.plan.compressor, job.plan.spread) for job in jobs}:
        rows = [i for i, job in enumerate(jobs) if (job.plan.compressor, job.plan.spread) == (compressor, spread)]
        images, samples = zip(*(pairs[i] for i in rows), strict=True)
        done = compress_images(compressor, images, samples, [jobs[i].plan.budget for i in rows], spread)
        kept.update(zip(rows, done, strict=True))
    return [kept[i] for i in range(len(jobs))]


def compressed_image(
    features: ImageFeatures, kept: CompressedTokens, laid_out: KeptImage, wire: types_pb2.Dtype.ValueType, explain: bool
) -> types_pb2.CompressedImage:
    """The message of one compressed image."""
    newlines = [] if laid_out.index is None else (laid_out.index < 0).nonzero().flatten().tolist()
    message = types_pb2.CompressedImage(
        features=codec.encode(laid_out.features, wire),
        index=kept.index.tolist(),
        source_tokens=len(features.features),
        focus_count=kept.focus_count,
        focus_wanted=kept.focus_wanted,
        merged_count=int((kept.merged_into >= 0).sum()),
        newlines=newlines,
        source_newlines=features.newlines,
        positions=[] if laid_out.positions is None else laid_out.positions.flatten().tolist(),
        deepstack=[codec.encode(layer, wire) for layer in laid_out.deepstack] if laid_out.deepstack is not None else [],
        video=laid_out.video,
        step_seconds=laid_out.frame_seconds,
    )
    if laid_out.grid is not None:
        steps, rows, columns = laid_out.grid
        message.grid.CopyFrom(types_pb2.Grid(steps=steps, rows=rows, columns=columns))
    if explain:
        views = [_view(tile) for tile in features.tiles]
        message.explanation.CopyFrom(
            types_pb2.Explanation(
                stage=kept.stage.tolist(),
                merged_into=kept.merged_into.tolist(),
                priority=kept.priority.tolist(),
                rows=views[0].rows,
                columns=views[0].columns,
                crop=views[0].crop,
                views=views,
            )
        )
    return message


def _view(tile: Tile) -> types_pb2.View:
    left, top, right, bottom = tile.crop
    crop = types_pb2.Crop(left=left, top=top, right=right, bottom=bottom)
    return types_pb2.View(start=tile.start, rows=tile.rows, columns=tile.cols, crop=crop)
