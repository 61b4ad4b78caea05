"""What an encoder replica does with a request, free of Ray: check, encode, compress."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from fsr.v1 import encoder_pb2, types_pb2
from google.protobuf.json_format import MessageToDict

from fsr_core import Budget, CompressedTokens, Compressor, VisualTokens, create
from fsr_core.backbones import ImageFeatures, KeptImage, PreparedImage, VisualEncoder
from services import codec
from services.errors import InvalidRequest

__all__ = ["Job", "compress", "compressed_image", "plan_of"]


@dataclass(frozen=True)
class Plan:
    """A request's checked wishes."""

    compressor: Compressor
    budget: Budget
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
    try:
        options = MessageToDict(request.method.options)
        return Plan(create(request.method.name or "fsr", **options), _budget(request.budget), request.instruction)
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


@torch.inference_mode()
def encode(encoder: VisualEncoder, jobs: Sequence[Job]) -> list[tuple[ImageFeatures, VisualTokens]]:
    """Runs the vision tower once over all new images and the text tower once over all instructions."""
    fresh = iter(encoder.encode_images([job.prepared for job in jobs if job.prepared is not None]))
    features = [next(fresh) if job.features is None else job.features for job in jobs]
    said = encoder.encode_instructions([job.plan.instruction for job in jobs])
    return [(f, encoder.visual_tokens(f, text)) for f, text in zip(features, said, strict=True)]


@torch.inference_mode()
def compress(jobs: Sequence[Job], samples: Sequence[VisualTokens]) -> list[CompressedTokens]:
    """Compresses a batch that may mix methods and budgets; each method runs once."""
    kept: dict[int, CompressedTokens] = {}
    for compressor in {job.plan.compressor for job in jobs}:
        rows = [i for i, job in enumerate(jobs) if job.plan.compressor == compressor]
        done = compressor.compress_batch([samples[i] for i in rows], [jobs[i].plan.budget for i in rows])
        kept.update(zip(rows, done, strict=True))
    return [kept[i] for i in range(len(jobs))]


def compressed_image(
    features: ImageFeatures, kept: CompressedTokens, laid_out: KeptImage, wire: types_pb2.Dtype.ValueType, explain: bool
) -> types_pb2.CompressedImage:
    """The message of one compressed image."""
    message = types_pb2.CompressedImage(
        features=codec.encode(laid_out.features, wire),
        index=kept.index.tolist(),
        source_tokens=len(features.features),
        focus_count=kept.focus_count,
        focus_wanted=kept.focus_wanted,
        merged_count=int((kept.merged_into >= 0).sum()),
    )
    if explain:
        view = features.tiles[0]
        left, top, right, bottom = view.crop
        message.explanation.CopyFrom(
            types_pb2.Explanation(
                stage=kept.stage.tolist(),
                merged_into=kept.merged_into.tolist(),
                priority=kept.priority.tolist(),
                rows=view.rows,
                columns=view.cols,
                crop=types_pb2.Crop(left=left, top=top, right=right, bottom=bottom),
            )
        )
    return message
