"""What an answer took and what compression saved of it, told to the caller and counted in the metrics."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

from fsr.common.token_counts import count_tokens
from fsr.gateway.metrics import Metrics
from fsr.gateway.request_record import Trail
from fsr.gateway.routing.replica import Replica
from fsr.v1 import decoder_pb2, encoder_pb2, types_pb2
from fsr.v1 import gateway_pb2 as pb

__all__ = ["DEFAULT_METHOD", "Stopwatch", "count_images", "count_usage", "usage_of"]

DEFAULT_METHOD = "fsr"  # in metrics, for a request that names none


def usage_of(
    encoded: encoder_pb2.EncodeResponse,
    messages: Sequence[types_pb2.Message],
    stats: decoder_pb2.DecodeStats,
    replica: Replica,
    trail: Trail,
) -> pb.Usage:
    """The figures of one answer.

    Bytes and FLOPs saved compare with the same prompt and every visual token in it, by the cost that the decoder
    announces for its model: flops(L) = constant + linear * L + quadratic * L^2, and KV bytes a token. An image saves
    as many of the prompt's L places as tokens and newlines were dropped from it, each time that `messages` show it.
    """
    shown = Counter(part.image for message in messages for part in message.parts if part.HasField("image"))
    saved = sum(shown[i] * _places_saved(image) for i, image in enumerate(encoded.images))
    cost, length = replica.cost, stats.prompt_tokens
    flops = cost.flops_linear * saved + cost.flops_quadratic * ((length + saved) ** 2 - length**2)
    return pb.Usage(
        request_id=trail.request_id,
        prompt_tokens=length,
        completion_tokens=stats.completion_tokens,
        visual_tokens_in=sum(image.source_tokens for image in encoded.images),
        visual_tokens_kept=sum(len(image.index) for image in encoded.images),
        kv_bytes_saved=cost.kv_bytes_per_token * saved,
        prefill_flops_saved=flops,
        wire_bytes=sum(_nbytes(image.features, *image.deepstack) for image in encoded.images),
        wire_bytes_saved=sum(_wire_bytes_saved(image) for image in encoded.images),
        failovers=trail.failovers,
        retries=trail.retries,
        cached_images=encoded.cache_hits,
        cached_tokens=stats.cached_tokens,
    )


def _places_saved(image: types_pb2.CompressedImage) -> int:
    """Tokens and newlines that all source tokens would have put into a prompt and the kept ones do not."""
    newlines = max(0, image.source_newlines - len(image.newlines))
    return image.source_tokens - len(image.index) + newlines


def _wire_bytes_saved(image: types_pb2.CompressedImage) -> int:
    """A row of features for each place saved, and one of every DeepStack layer for each dropped token."""
    kept = len(image.index)
    row, deep = _nbytes(image.features) // (kept + len(image.newlines)), _nbytes(*image.deepstack) // kept
    return row * _places_saved(image) + deep * (image.source_tokens - kept)


def _nbytes(*tensors: types_pb2.Tensor) -> int:
    return sum(len(tensor.data) + len(tensor.scales) for tensor in tensors)


class Stopwatch:
    """The moments of one answer, by `time.monotonic`."""

    def __init__(self, now: float) -> None:
        self.began = self.shipped = now
        self.first: float | None = None
        self._resumed = now
        self._attempt = 0

    def heard(self, attempt: int, now: float) -> None:
        """A message of the answer came, from the decoder that was asked as number `attempt`, from 1."""
        self.first = now if self.first is None else self.first
        if attempt != self._attempt:
            self._resumed, self._attempt = now, attempt

    def seconds(
        self, encoded: encoder_pb2.EncodeResponse, stats: decoder_pb2.DecodeStats, now: float
    ) -> dict[str, float]:
        """Seconds by stage. `queue`, `prefill` and `decode` are those of the decoder that finished the answer, `ship`
        is what else lies between sending the tokens and that decoder's first message: the network, serialisation and
        any replica that failed before, with what it said."""
        first = now if self.first is None else self.first
        return {
            "encode": encoded.encode_seconds,
            "compress": encoded.compress_seconds,
            "ship": max(0.0, self._resumed - self.shipped - stats.queue_seconds - stats.prefill_seconds),
            "queue": stats.queue_seconds,
            "prefill": stats.prefill_seconds,
            "decode": stats.decode_seconds,
            "ttft": first - self.began,
            "total": now - self.began,
        }


def count_images(metrics: Metrics, model: str, method: str, encoded: encoder_pb2.EncodeResponse) -> None:
    """Counts tokens in, kept by stage, merged, dropped, and the share kept, image by image."""
    by = (model, method or DEFAULT_METHOD)
    for counts in map(count_tokens, encoded.images):
        metrics.tokens_in.labels(*by).inc(counts.source)
        for stage, kept in counts.kept_by_stage.items():
            metrics.tokens_kept.labels(*by, stage).inc(kept)
        metrics.tokens_merged.labels(*by).inc(counts.merged)
        metrics.tokens_dropped.labels(*by).inc(counts.dropped)
        if counts.focus_wanted:  # other methods have no focus set
            metrics.focus_wanted.labels(*by).observe(counts.focus_wanted)
            metrics.focus_kept.labels(*by).observe(counts.focus_kept)
        metrics.ratio.labels(*by).observe(counts.kept / counts.source)
        metrics.clamped.labels(*by).inc(counts.focus_wanted > counts.focus_kept)
    metrics.cache_hits.labels(model).inc(encoded.cache_hits)


def count_usage(
    metrics: Metrics,
    model: str,
    method: str,
    usage: pb.Usage,
    cost: types_pb2.CostModel,
    seconds: Mapping[str, float],
) -> None:
    """Counts what a complete answer took and saved, and its seconds by stage."""
    by, length = (model, method or DEFAULT_METHOD), usage.prompt_tokens
    metrics.kv.labels(*by).inc(cost.kv_bytes_per_token * (length + usage.completion_tokens))
    metrics.flops.labels(*by).inc(cost.flops_constant + cost.flops_linear * length + cost.flops_quadratic * length**2)
    metrics.wire.labels(*by).inc(usage.wire_bytes)
    if usage.completion_tokens > 1:
        after_first = seconds["total"] - seconds["ttft"]  # not a decoder's own time: after a failover it has but a part
        metrics.per_token.labels(model).observe(after_first / (usage.completion_tokens - 1))
    metrics.kv_saved.labels(*by).inc(usage.kv_bytes_saved)
    metrics.flops_saved.labels(*by).inc(usage.prefill_flops_saved)
    metrics.wire_saved.labels(*by).inc(usage.wire_bytes_saved)
    for stage, value in seconds.items():
        metrics.seconds.labels(model, stage).observe(value)
