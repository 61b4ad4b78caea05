"""Requests to an encoder, and its pipeline without Ray."""

import asyncio
import io

from fsr.encoder.cache import FeatureCache
from fsr.encoder.images.scaled_jpeg import jpeg_side
from fsr.encoder.pipeline import EncoderPipeline
from fsr.encoder.requests.limits import RequestLimits
from fsr.encoder.settings import EncoderSettings
from fsr.v1 import encoder_pb2, types_pb2
from helpers.benches import QUESTION, picture

FRAMES = [picture((48, 32), i) for i in range(4)]


def png(image):
    out = io.BytesIO()
    image.save(out, "PNG")
    return out.getvalue()


def image_of(size):
    return types_pb2.Image(data=png(picture(size)))


def video_of(frames=FRAMES, fps=0.0):
    return types_pb2.Image(frames=[png(frame) for frame in frames], frames_per_second=fps)


def request_of(*images, budget=9, spread=types_pb2.SPREAD_UNSPECIFIED, budget_message=None, **fields):
    return encoder_pb2.EncodeRequest(
        images=images,
        budget=budget_message or types_pb2.Budget(tokens=budget, spread=spread),
        **{"instruction": QUESTION, **fields},
    )


def pipeline_of(encoder, cache_bytes=0, on_batch=None, shared=None, **options):
    """`shared` makes the shared features of the pipeline's cache; `options` are those of the encoder's settings."""
    cache = FeatureCache(cache_bytes)
    settings = EncoderSettings(**{"max_image_pixels": 10**6, "max_request_pixels": 10**7} | options)
    return EncoderPipeline(
        encoder,
        cache=cache,
        shared=shared and shared(cache),
        limits=RequestLimits.of(settings),
        decode_threads=settings.decode_threads,
        max_batch_size=settings.max_batch_size,
        jpeg_side=jpeg_side(encoder, settings.scaled_jpeg),
        on_batch=on_batch,
    )


def answer(pipeline, request):
    """The response of a pipeline; all images of the request are one batch."""

    async def run_jobs(jobs):
        return pipeline.run_batch(jobs)

    return asyncio.run(pipeline.answer(request, run_jobs))


def compressed_images(encoder, request):
    return answer(pipeline_of(encoder), request).images
