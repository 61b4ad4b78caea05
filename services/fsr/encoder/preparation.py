"""From a request to its jobs: everything that is checked and done before an image joins a batch that others share."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from math import ceil, inf

from cachetools import LRUCache

from fsr.common.errors import InvalidRequest
from fsr.encoder.cache import FeatureCache, cache_key
from fsr.encoder.images.decode import Sizes, check_pixels, decode_image
from fsr.encoder.images.decode_threads import DecodeThreads, DecodeTime
from fsr.encoder.requests.image_job import ImageJob
from fsr.encoder.requests.limits import RequestLimits
from fsr.encoder.requests.request_plan import plan_of
from fsr.encoder.shared_cache.shared_features import SharedFeatures
from fsr.v1 import encoder_pb2, types_pb2
from fsr_core.backbones import ImageFeatures, PreparedImage, VisualEncoder

__all__ = ["Preparation"]

_KNOWN_FILES = 2**15  # whose headers are not read again
# A request up to these is checked on the event loop, in some tenths of a millisecond, if its images are known.
_BRIEF_BYTES, _BRIEF_CHARACTERS = 2**18, 1024


class Preparation:
    """Checks requests and decodes their pictures, those whose features are neither in `cache` nor `shared`.

    An image that costs as much as a whole request may fills a batch of `max_batch_size`. JPEGs of pictures are decoded
    at a size whose shorter side has at least `jpeg_side` pixels; None: in full.
    """

    def __init__(
        self,
        model: VisualEncoder,
        cache: FeatureCache,
        shared: SharedFeatures | None,
        limits: RequestLimits,
        decode_threads: int,
        max_batch_size: int,
        jpeg_side: int | None = None,
    ) -> None:
        self._model, self._cache, self._shared, self._limits = model, cache, shared, limits
        self._jpeg_side = jpeg_side
        self._threads, self._max_batch_size = DecodeThreads(decode_threads), max_batch_size
        self._sizes: LRUCache[str, Sizes] = LRUCache(_KNOWN_FILES, getsizeof=len)  # by cache key

    async def jobs(self, request: encoder_pb2.EncodeRequest) -> list[ImageJob]:
        """A job for each image of a request.

        Raises InvalidRequest, naming the field that is wrong or would cost too much; Overloaded and Expired, if the
        request's time is over.
        """
        deadline = time.monotonic() + (request.timeout_seconds or inf)
        plan = plan_of(request)
        if not request.images:
            raise InvalidRequest("images: is empty; send at least one JPEG, PNG or WebP file")
        multi_image = self._is_multi_image(request.images)
        keys, sizes = await self._checked(request, multi_image)
        pixels = [sum(width * height for width, height in files) for files in sizes]
        features = [self._cache.get(key) for key in keys]
        if self._shared is not None and any(cached is None for cached in features):
            features = await self._with_shared(self._shared, features, keys)
        new = [i for i, cached in enumerate(features) if cached is None]
        prepare = partial(self._prepare, {i: request.images[i] for i in new}, multi_image)
        prepared: dict[int, PreparedImage] = {}
        if new:
            prepared = await self._threads.run(prepare, sum(pixels[i] for i in new), deadline)
        counts = [
            self._model.token_counts(prepared[i]) if cached is None else _token_counts(cached)
            for i, cached in enumerate(features)
        ]
        shares = self._limits.check_work(plan, counts)
        return [
            ImageJob(
                plan=plan,
                deadline=deadline,
                cache_key=key,
                prepared=prepared.get(i),
                features=features[i],
                size=max(1, ceil(share * self._max_batch_size)),
            )
            for i, (key, share) in enumerate(zip(keys, shares, strict=True))
        ]

    async def _with_shared(
        self, shared: SharedFeatures, cached: Sequence[ImageFeatures | None], keys: Sequence[str]
    ) -> list[ImageFeatures | None]:
        """With what other replicas have of the features that are missing."""
        missing = {i: shared.get(key) for i, key in enumerate(keys) if cached[i] is None}
        found = dict(zip(missing, await asyncio.gather(*missing.values()), strict=True))
        return [found.get(i, features) for i, features in enumerate(cached)]

    def _is_multi_image(self, images: Sequence[types_pb2.Image]) -> bool:
        """Whether the model prepares the pictures of this request as several of one conversation."""
        return self._model.coarse_when_multi_image and sum(not image.frames for image in images) > 1

    async def _checked(self, request: encoder_pb2.EncodeRequest, multi_image: bool) -> tuple[list[str], list[Sizes]]:
        """Of each image its cache key, and the sizes of its files, once all is checked that no pixel is needed for.

        In a thread, unless that takes longer than the check: for a short question about small files, all of which
        have been checked before.
        """
        keys_of = partial(_keys, request, multi_image)
        brief = request.ByteSize() <= _BRIEF_BYTES
        keys = keys_of() if brief else await asyncio.to_thread(keys_of)
        known = [self._sizes.get(key) for key in keys]
        check = partial(self._check, request, known)
        brief = brief and None not in known and len(request.instruction) <= _BRIEF_CHARACTERS
        sizes = check() if brief else await asyncio.to_thread(check)
        self._sizes.update(zip(keys, sizes, strict=True))
        return keys, sizes

    def _check(self, request: encoder_pb2.EncodeRequest, known: Sequence[Sizes | None]) -> list[Sizes]:
        """Checks the instruction, the headers of all files that are not `known` and the length of videos; the sizes of
        each image's files.

        Small frames may be scaled up, so their pixels do not tell what a video costs.
        """
        limits = self._limits
        limits.check_instruction(self._model, request.instruction)
        sizes = check_pixels(request.images, limits.max_image_pixels, limits.max_request_pixels, known)
        shown = zip(request.images, sizes, strict=True)
        limits.check_tokens(sum(self._video_tokens(i, *video) for i, video in enumerate(shown)))
        return sizes

    def _video_tokens(self, number: int, image: types_pb2.Image, sizes: Sequence[tuple[int, int]]) -> int:
        """Visual tokens of a video; 0 for a picture. Raises InvalidRequest, naming the field."""
        if not image.frames:
            return 0
        try:
            return self._model.video_tokens(len(sizes), sizes[0])
        except ValueError as error:
            raise InvalidRequest(f"images[{number}]: {error}") from error

    def _prepare(
        self, images: dict[int, types_pb2.Image], multi_image: bool, abandoned: threading.Event
    ) -> dict[int, PreparedImage]:
        """Decodes and preprocesses pictures and videos, by their numbers. Raises InvalidRequest, naming the field, and
        Expired."""
        decode_time = DecodeTime(self._limits.decode_seconds, abandoned)
        return {number: self._prepared(image, number, multi_image, decode_time) for number, image in images.items()}

    def _prepared(
        self, image: types_pb2.Image, number: int, multi_image: bool, decode_time: DecodeTime
    ) -> PreparedImage:
        field, model = f"images[{number}]", self._model
        decode = partial(decode_image, max_pixels=self._limits.max_image_pixels, check_time=decode_time.check)
        try:
            if not image.frames:
                picture, size = decode(image.data, f"{field}.data", jpeg_side=self._jpeg_side)
                prepared = model.preprocess_multi_image(picture) if multi_image else model.preprocess(picture)
                return prepared if size == picture.size else replace(prepared, file_size=size)
            frames = [decode(frame, f"{field}.frames[{i}]")[0] for i, frame in enumerate(image.frames)]
            return model.preprocess_video(frames, image.frames_per_second or 2.0)
        except ValueError as error:
            raise InvalidRequest(f"{field}: {error}") from error


def _keys(request: encoder_pb2.EncodeRequest, multi_image: bool) -> list[str]:
    return [cache_key(image, multi_image, request.cache_salt) for image in request.images]


def _token_counts(features: ImageFeatures) -> list[int]:
    """Tokens of each tile or frame of features."""
    return [len(features.features)] if features.groups is None else features.groups.bincount().tolist()
