"""What an answer took and what compression saved of it: for the caller and for the metrics."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

from fsr.common.requests.method_options import DEFAULT_METHOD
from fsr.common.requests.token_counts import count_tokens
from fsr.common.telemetry.logs import counting
from fsr.gateway.routing.replica import Replica
from fsr.gateway.telemetry.metrics import Metrics
from fsr.gateway.telemetry.request_record import RequestRecord
from fsr.v1 import decoder_pb2, encoder_pb2, types_pb2
from fsr.v1 import gateway_pb2 as pb

__all__ = ["Stopwatch", "count_images", "count_usage", "usage_of"]


def usage_of(
    encoded: encoder_pb2.EncodeResponse,
    messages: Sequence[types_pb2.Message],
    stats: decoder_pb2.DecodeStats,
    replica: Replica,
    record: RequestRecord,
) -> pb.Usage:
    """The figures of one answer.

    What is saved is the difference to the same prompt with all visual tokens in it. An image saves as many positions
    of the prompt as tokens and newlines were dropped from it, each time that `messages` show it.
    """
    shown = Counter(part.image for message in messages for part in message.parts if part.HasField("image"))
    positions_saved = sum(shown[i] * _positions_saved(image) for i, image in enumerate(encoded.images))
    cost, length = replica.cost, stats.prompt_tokens
    return pb.Usage(
        request_id=record.request_id,
        prompt_tokens=length,
        completion_tokens=stats.completion_tokens,
        visual_tokens_in=sum(image.source_tokens for image in encoded.images),
        visual_tokens_kept=sum(len(image.index) for image in encoded.images),
        kv_bytes_saved=cost.kv_bytes_per_token * positions_saved,
        prefill_flops_saved=_prefill_flops(cost, length + positions_saved) - _prefill_flops(cost, length),
        wire_bytes=sum(_nbytes(image.features, *image.deepstack) for image in encoded.images),
        wire_bytes_saved=sum(_wire_bytes_saved(image) for image in encoded.images),
        failovers=record.failovers,
        retries=record.retries,
        cached_images=encoded.cache_hits,
        cached_tokens=stats.cached_tokens,
    )


def _prefill_flops(cost: types_pb2.CostModel, length: int) -> float:
    """FLOPs to prefill a prompt of so many tokens, by the cost model that the decoder announces."""
    return cost.flops_constant + cost.flops_linear * length + cost.flops_quadratic * length**2


def _positions_saved(image: types_pb2.CompressedImage) -> int:
    """Tokens and newlines that all source tokens would add to a prompt, less those that the kept tokens add."""
    newlines = max(0, image.source_newlines - len(image.newlines))
    return image.source_tokens - len(image.index) + newlines


def _wire_bytes_saved(image: types_pb2.CompressedImage) -> int:
    """A row of features for each position saved, and a row of every DeepStack layer for each token not kept."""
    kept = len(image.index)
    row, deep = _nbytes(image.features) // (kept + len(image.newlines)), _nbytes(*image.deepstack) // kept
    return row * _positions_saved(image) + deep * (image.source_tokens - kept)


def _nbytes(*tensors: types_pb2.Tensor) -> int:
    return sum(len(tensor.data) + len(tensor.scales) for tensor in tensors)


class Stopwatch:
    """The moments of one answer, by `time.monotonic`."""

    def __init__(self, now: float) -> None:
        self.began = self.shipped = now
        self.first: float | None = None  # message of the answer
        self._first_of_attempt = now
        self._attempt = 0

    def message_received(self, attempt: int, now: float) -> None:
        """A message of the answer came, from the decoder that was called as number `attempt`, from 1."""
        self.first = now if self.first is None else self.first
        if attempt != self._attempt:
            self._first_of_attempt, self._attempt = now, attempt

    def seconds(
        self, encoded: encoder_pb2.EncodeResponse, stats: decoder_pb2.DecodeStats, now: float
    ) -> dict[str, float]:
        """Seconds by stage. `queue`, `prefill` and `decode` are those of the decoder that finished the answer. `ship`
        is the rest of the time between sending the tokens and that decoder's first message: network, serialisation,
        and all time of decoders that failed before."""
        first = now if self.first is None else self.first
        return {
            "encode": encoded.encode_seconds,
            "compress": encoded.compress_seconds,
            "ship": max(0.0, self._first_of_attempt - self.shipped - stats.queue_seconds - stats.prefill_seconds),
            "queue": stats.queue_seconds,
            "prefill": stats.prefill_seconds,
            "decode": stats.decode_seconds,
            "ttft": first - self.began,
            "total": now - self.began,
        }


@counting("images")
def count_images(metrics: Metrics, model: str, method: str, encoded: encoder_pb2.EncodeResponse) -> None:
    """Counts tokens in, kept by stage, merged, dropped, and the share kept, image by image."""
    by = (model, method)
    for counts in map(count_tokens, encoded.images):
        metrics.tokens_in.labels(*by).inc(counts.source)
        for stage, kept in counts.kept_by_stage.items():
            metrics.tokens_kept.labels(*by, stage).inc(kept)
        metrics.tokens_merged.labels(*by).inc(counts.merged)
        metrics.tokens_dropped.labels(*by).inc(counts.dropped)
        if counts.focus_wanted:  # 0: the method has no focus set
            metrics.focus_wanted.labels(*by).observe(counts.focus_wanted)
            metrics.focus_kept.labels(*by).observe(counts.focus_kept)
        metrics.ratio.labels(*by).observe(counts.kept / counts.source)
        metrics.clamped.labels(*by).inc(counts.focus_wanted > counts.focus_kept)
    metrics.cache_hits.labels(model).inc(encoded.cache_hits)


@counting("usage")
def count_usage(
    metrics: Metrics,
    model: str,
    usage: pb.Usage,
    cost: types_pb2.CostModel,
    seconds: Mapping[str, float],
    resumed: int = 0,
    exemplar: dict[str, str] | None = None,
) -> None:
    """Counts what a complete answer took and saved, and its seconds by stage, which `exemplar` leads to. The caller had
    `resumed` of its tokens before."""
    by, length = (model, usage.method or DEFAULT_METHOD), usage.prompt_tokens
    metrics.kv.labels(*by).inc(cost.kv_bytes_per_token * (length + usage.completion_tokens))
    metrics.flops.labels(*by).inc(_prefill_flops(cost, length))
    metrics.wire.labels(*by).inc(usage.wire_bytes)
    generated = usage.completion_tokens - resumed
    if generated > 1:
        # By the caller's clock: after a failover, the last decoder knows only its part of the time.
        after_first = seconds["total"] - seconds["ttft"]
        metrics.per_token.labels(model).observe(after_first / (generated - 1), exemplar)
    metrics.kv_saved.labels(*by).inc(usage.kv_bytes_saved)
    metrics.flops_saved.labels(*by).inc(usage.prefill_flops_saved)
    metrics.wire_saved.labels(*by).inc(usage.wire_bytes_saved)
    for stage, value in seconds.items():
        metrics.seconds.labels(model, stage).observe(value, exemplar)
