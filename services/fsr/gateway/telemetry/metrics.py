"""The gateway's Prometheus metrics."""

from __future__ import annotations

import time

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from fsr.common.telemetry.logs import lines_lost

__all__ = ["Metrics"]

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
_PER_TOKEN = (0.001, 0.0025, 0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.25, 0.5, 1)
_TOKENS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096)
_RATIOS = (0.01, 0.02, 0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1)


class Metrics:
    """All metrics, on a registry of their own. Labels hold our own names, never a caller's data."""

    def __init__(self) -> None:
        self.registry = r = CollectorRegistry()
        by = ("model", "method")
        self.requests = Counter(
            "fsr_requests", "Requests by interface, rpc and gRPC code", ("interface", "rpc", "code"), registry=r
        )
        self.in_flight = Gauge("fsr_requests_in_flight", "Requests in flight", registry=r)
        self.waiting = Gauge("fsr_requests_waiting", "Requests that wait for a slot", registry=r)
        self.wait = Histogram("fsr_admission_wait_seconds", "From arrival to the slot", buckets=_SECONDS, registry=r)
        self.slow_readers = Counter(
            "fsr_slow_readers", "Answers cut because their caller took nothing of them", ("interface",), registry=r
        )
        start = Gauge("fsr_start_time_seconds", "When the gateway started, in seconds since 1970", registry=r)
        start.set(time.time())
        Gauge("fsr_log_lines_lost", "Log lines that could not be written, as on a full disk", registry=r).set_function(
            lines_lost
        )
        self.compressed_requests = Counter(
            "fsr_compressed_requests",
            "Requests with images, by who chose the budget and the method: request or policy",
            (*by, "budget_chosen_by", "method_chosen_by"),
            registry=r,
        )
        self.tokens_in = Counter("fsr_visual_tokens_in", "Visual tokens before compression", by, registry=r)
        self.tokens_kept = Counter("fsr_visual_tokens_kept", "Visual tokens kept", (*by, "stage"), registry=r)
        self.tokens_merged = Counter(
            "fsr_visual_tokens_merged", "Dropped tokens merged into a kept one", by, registry=r
        )
        self.tokens_dropped = Counter(
            "fsr_visual_tokens_dropped", "Visual tokens neither kept nor merged", by, registry=r
        )
        self.focus_wanted = Histogram(
            "fsr_focus_wanted_tokens", "K_F of an image before the budget's clamp", by, buckets=_TOKENS, registry=r
        )
        self.focus_kept = Histogram(
            "fsr_focus_kept_tokens", "K_F of an image after the budget's clamp", by, buckets=_TOKENS, registry=r
        )
        self.clamped = Counter("fsr_focus_clamped", "Images whose focus set the budget cut", by, registry=r)
        self.ratio = Histogram(
            "fsr_compression_ratio",
            "Keep ratio of an image: tokens kept over tokens before",
            by,
            buckets=_RATIOS,
            registry=r,
        )
        self.seconds = Histogram(
            "fsr_stage_seconds", "Seconds by stage", ("model", "stage"), buckets=_SECONDS, registry=r
        )
        self.per_token = Histogram(
            "fsr_time_per_output_token_seconds", "Mean of an answer without its first token", ("model",),
            buckets=_PER_TOKEN, registry=r,
        )  # fmt: skip
        self.kv = Counter("fsr_kv_bytes", "KV cache bytes that answers took", by, registry=r)
        self.flops = Counter("fsr_prefill_flops", "Prefill FLOPs that answers took", by, registry=r)
        self.wire = Counter("fsr_wire_bytes", "Bytes of features sent to decoders", by, registry=r)
        self.kv_saved = Counter("fsr_kv_bytes_saved", "KV cache bytes saved by compression", by, registry=r)
        self.flops_saved = Counter("fsr_prefill_flops_saved", "Prefill FLOPs saved by compression", by, registry=r)
        self.wire_saved = Counter(
            "fsr_wire_bytes_saved", "Bytes of features not sent, thanks to compression", by, registry=r
        )
        self.cache_hits = Counter("fsr_feature_cache_hits", "Images whose features were cached", ("model",), registry=r)
        self.failovers = Counter("fsr_failovers", "Answers moved to another replica", ("model",), registry=r)
        self.refused = Counter(
            "fsr_admission_refused",
            "Requests refused, by the bound that they met: in_flight, key, connection, bodies or retry_budget",
            ("reason",),
            registry=r,
        )
        self.retries = Counter("fsr_retries", "Calls repeated, on another replica or later", ("role",), registry=r)
        self.ejections = Counter(
            "fsr_ejections", "Times that a replica's circuit breaker opened", ("role",), registry=r
        )
        self.ejected = Gauge(
            "fsr_replicas_ejected", "Replicas whose circuit breaker is open or half-open", ("role",), registry=r
        )
        compared = (*by, "budget")
        self.canary_answers = Counter(
            "fsr_canary_answers",
            "Answers compared with the uncompressed one, by share of kept tokens",
            compared,
            registry=r,
        )
        self.canary_exact = Counter(
            "fsr_canary_exact", "Of these, those that were equal to the uncompressed one", compared, registry=r
        )
        self.canary_tokens = Counter("fsr_canary_tokens", "Tokens of the longer of both answers", compared, registry=r)
        self.canary_tokens_agreed = Counter(
            "fsr_canary_tokens_agreed", "Of these, those at which both answers agree", compared, registry=r
        )
        self.canary_skipped = Counter(
            "fsr_canary_skipped",
            "Canaries not started (busy), stopped because replicas had work (shed), or failed",
            ("reason",),
            registry=r,
        )
        self.canary_exported = Counter(
            "fsr_canary_exported",
            "The canary's questions for fsr calibrate: written, unsuitable (several turns or pictures), full, failed",
            ("outcome",),
            registry=r,
        )
        self.replicas = Gauge(
            "fsr_replicas_ready", "Replicas that answer; of the decoders, only those with an encoder's checkpoint",
            ("model", "role"), registry=r,
        )  # fmt: skip
        # These series exist from the start, so that a first event shows as an increase.
        for counter in (self.retries, self.ejections):
            for role in ("encoder", "decoder"):
                counter.labels(role)
        for reason in ("in_flight", "key", "connection", "bodies", "retry_budget"):
            self.refused.labels(reason)
        for interface in ("grpc", "http"):
            self.slow_readers.labels(interface)
        for reason in ("busy", "shed", "failed"):
            self.canary_skipped.labels(reason)
        for outcome in ("written", "unsuitable", "full", "failed"):
            self.canary_exported.labels(outcome)
