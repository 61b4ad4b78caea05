"""What an encoder replica does with a request: prepare, encode, compress, answer. It knows nothing of Ray."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from math import isfinite

import structlog
import torch

from fsr.common.errors import InvalidRequest
from fsr.common.telemetry.spans import NO_SPAN, Span
from fsr.common.wire.message_size import check_tokens_size
from fsr.encoder.cache import FeatureCache
from fsr.encoder.compressed_image import compressed_image
from fsr.encoder.images.decode_threads import late
from fsr.encoder.preparation import Preparation
from fsr.encoder.requests.image_job import BatchTimes, ImageJob, ImageResult
from fsr.encoder.requests.limits import RequestLimits
from fsr.encoder.shared_cache.shared_features import SharedFeatures
from fsr.v1 import encoder_pb2, types_pb2
from fsr_core import Budget, CompressedTokens, Compressor, VisualTokens
from fsr_core.backbones import ImageFeatures, VisualEncoder
from fsr_core.spread import Spread, compress_images

__all__ = ["EncoderPipeline"]

log = structlog.get_logger()
RunJobs = Callable[[Sequence[ImageJob]], Awaitable[list[ImageResult | Exception]]]


class EncoderPipeline:
    """Answers requests with one model. `answer` runs on the event loop, `run_batch` in any thread.

    Features of pictures come from `cache`, and from other replicas if they are `shared` with them.
    `on_batch` is called after each batch with its size and its seconds of encoding and of compression.
    """

    def __init__(
        self,
        model: VisualEncoder,
        *,
        cache: FeatureCache,
        shared: SharedFeatures | None = None,
        limits: RequestLimits,
        decode_threads: int,
        max_batch_size: int,
        jpeg_side: int | None = None,
        on_batch: Callable[[int, float, float], None] | None = None,
    ) -> None:
        self._model = model
        self._cache, self._shared = cache, shared
        preparation = Preparation(model, cache, shared, limits, decode_threads, max_batch_size, jpeg_side)
        self.jobs = preparation.jobs
        self._on_batch = on_batch

    @property
    def cache_bytes(self) -> int:
        """Bytes of features in the cache."""
        return self._cache.nbytes

    async def answer(
        self,
        request: encoder_pb2.EncodeRequest,
        run_jobs: RunJobs,
        span: Span = NO_SPAN,
    ) -> encoder_pb2.EncodeResponse:
        """The compressed images of a request. `run_jobs` puts jobs into batches of `run_batch` and returns their
        outcomes. Its stages go into the request's `span`.

        Raises InvalidRequest, naming the field; Overloaded, if the request's time is over before its work has begun;
        Expired, if it is over before its work has ended; or what `run_jobs` returned.
        """
        began = time.monotonic()
        with span.timed("preprocess"):
            jobs = await self.jobs(request)
        queued = time.monotonic()
        results = []
        for outcome in await _outcomes(jobs, run_jobs):
            if isinstance(outcome, Exception):
                try:
                    raise outcome
                finally:
                    del outcome  # in a variable the error would keep itself, and the request with it
            results.append(outcome)
        for job, result in zip(jobs, results, strict=True):
            self._cache.put(job.cache_key, result.features)
        if self._shared is not None:
            self._shared.changed()
        for batch in dict.fromkeys(result.batch for result in results):
            _trace(span, queued, batch)
        compress_seconds = max(result.batch.compress_seconds for result in results)
        images = [self._message(result, request) for result in results]
        response = encoder_pb2.EncodeResponse(
            fingerprint=self._model.fingerprint,
            images=images,
            encode_seconds=time.monotonic() - began - compress_seconds,
            compress_seconds=compress_seconds,
            cache_hits=sum(job.features is not None for job in jobs),
        )
        check_tokens_size(response.ByteSize())
        return response

    def run_batch(self, jobs: Sequence[ImageJob]) -> list[ImageResult | Exception]:
        """The result or the error of each job. A batch may mix requests, methods, budgets and spreads.

        A job after its deadline is not run; its error is Overloaded. One that fails does not fail the others.
        """
        now = time.monotonic()
        in_time = [job for job in jobs if job.deadline > now]
        for job in in_time:
            job.started.set()
        outcomes = iter(self._run_apart_if_failing(in_time))
        return [next(outcomes) if job.deadline > now else late(started=False) for job in jobs]

    def _run_apart_if_failing(self, jobs: Sequence[ImageJob]) -> list[ImageResult | Exception]:
        """Runs the jobs as one batch. If that fails, runs each of them alone, so that only the wrong one fails."""
        if not jobs:
            return []
        try:
            return self._run(jobs)
        except Exception as error:
            if len(jobs) == 1:
                return [error]
            log.warning("a batch failed; its jobs run one by one", size=len(jobs), reason=str(error))
        # Outside of the handler, so that the tensors of the failed batch are free by now.
        return [outcome for job in jobs for outcome in self._run_apart_if_failing([job])]

    def _run(self, jobs: Sequence[ImageJob]) -> list[ImageResult | Exception]:
        began = time.monotonic()
        features = _run_tower(self._model, jobs)
        tower_ended = time.monotonic()
        samples = _run_text(self._model, jobs, features)
        text_ended = time.monotonic()
        budgets = [_budget_of(job, len(sample)) for job, sample in zip(jobs, samples, strict=True)]
        compressed = _compress(jobs, features, samples, budgets)
        batch = BatchTimes(
            size=len(jobs), began=began, tower_ended=tower_ended, text_ended=text_ended, ended=time.monotonic()
        )
        if self._on_batch is not None:
            self._on_batch(len(jobs), text_ended - began, batch.compress_seconds)
        return [
            ImageResult(image, kept, batch) if isinstance(kept, CompressedTokens) else kept
            for image, kept in zip(features, compressed, strict=True)
        ]

    def _message(self, result: ImageResult, request: encoder_pb2.EncodeRequest) -> types_pb2.CompressedImage:
        laid_out = self._model.assemble(result.features, result.kept)
        return compressed_image(result.features, result.kept, laid_out, request.wire_dtype, request.explain)


async def _outcomes(jobs: Sequence[ImageJob], run_jobs: RunJobs) -> list[ImageResult | Exception]:
    """The outcomes of a request's jobs. Raises Overloaded and Expired.

    The request does not wait for a batch that ends after its deadline: its caller must hear in time that it is late.
    """
    deadline = jobs[0].deadline
    try:
        async with asyncio.timeout(deadline - time.monotonic() if isfinite(deadline) else None):
            return await run_jobs(jobs)
    except TimeoutError:
        raise late(started=any(job.started.is_set() for job in jobs)) from None


def _trace(span: Span, queued: float, batch: BatchTimes) -> None:
    """The stages of a batch, which the request has waited for since `queued`."""
    span.stage("queue", queued, batch.began)
    span.stage("tower", batch.began, batch.tower_ended, {"fsr.batch_size": batch.size})
    span.stage("text", batch.tower_ended, batch.text_ended)
    span.stage("compress", batch.text_ended, batch.ended)


@torch.inference_mode()
def _run_tower(model: VisualEncoder, jobs: Sequence[ImageJob]) -> list[ImageFeatures]:
    """Runs the vision tower once over all new images."""
    prepared = [job.prepared for job in jobs if job.prepared is not None]
    encoded = zip(prepared, model.encode_images(prepared), strict=True)
    new = (one if image.file_size is None else one.of_size(image.file_size) for image, one in encoded)
    return [next(new) if job.features is None else job.features for job in jobs]


@torch.inference_mode()
def _run_text(model: VisualEncoder, jobs: Sequence[ImageJob], features: Sequence[ImageFeatures]) -> list[VisualTokens]:
    """Runs the text tower once over all instructions, for the relevance of each image's tokens.

    Raises InvalidRequest for an instruction in which the text tower finds no words.
    """
    questions = list(dict.fromkeys(job.plan.instruction for job in jobs))  # the images of a request share theirs
    try:
        instructions = dict(zip(questions, model.encode_instructions(questions), strict=True))
    except ValueError as error:
        raise InvalidRequest(str(error)) from error
    return [model.visual_tokens(f, instructions[job.plan.instruction]) for f, job in zip(features, jobs, strict=True)]


def _budget_of(job: ImageJob, tokens: int) -> Budget | InvalidRequest:
    """The budget of an image with so many tokens, or the error of a share that the policy does not allow."""
    try:
        return job.plan.bounds.apply(job.plan.budget, tokens)
    except InvalidRequest as error:
        return error


@torch.inference_mode()
def _compress(
    jobs: Sequence[ImageJob],
    features: Sequence[ImageFeatures],
    samples: Sequence[VisualTokens],
    budgets: Sequence[Budget | InvalidRequest],
) -> list[CompressedTokens | InvalidRequest]:
    """Compresses a batch: one call for each pair of compressor and spread in it. An error as budget is the outcome."""
    outcomes: dict[int, CompressedTokens | InvalidRequest] = {}
    groups: dict[tuple[Compressor, Spread], dict[int, Budget]] = {}
    for i, (job, budget) in enumerate(zip(jobs, budgets, strict=True)):
        if isinstance(budget, InvalidRequest):
            outcomes[i] = budget
        else:
            groups.setdefault((job.plan.compressor, job.plan.spread), {})[i] = budget
    for (compressor, spread), members in groups.items():
        kept = compress_images(
            compressor,
            [features[i] for i in members],
            [samples[i] for i in members],
            list(members.values()),
            spread,
        )
        outcomes.update(zip(members, kept, strict=True))
    return [outcomes[i] for i in range(len(jobs))]
