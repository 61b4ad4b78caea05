"""What a load run measured: rates, latencies, goodput."""

from __future__ import annotations

import re
import statistics
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from math import nan

from fsr.cli.load_generator import Outcome, Plan

__all__ = ["Summary", "percentiles", "summarise"]

_MOST_REASONS = 10


@dataclass(frozen=True, kw_only=True)
class Summary:
    """One run. Rates are per second; latencies are in seconds, of answers without error.

    `errors` counts requests that failed, by kind; `reasons` by what was said of them, the most frequent first.
    """

    requests: int
    errors: dict[str, int]
    reasons: dict[str, int]
    seconds: float
    requests_per_second: float
    tokens_per_second: float
    goodput: float
    good_share: float
    latency: dict[str, float]
    ttft: dict[str, float]
    time_per_output_token: float
    visual_tokens: float
    prompt_tokens: float
    cached_images: int
    failovers: int
    retries: int


def percentiles(values: Sequence[float]) -> dict[str, float]:
    """p50, p90, p95, p99 (interpolated linearly) and max; NaN without values."""
    values = values if len(values) > 1 else [*values, nan][:1] * 2  # quantiles needs two values
    cuts = statistics.quantiles(values, n=100, method="inclusive")
    return {f"p{share}": cuts[share - 1] for share in (50, 90, 95, 99)} | {"max": max(values)}


def _reasons(outcomes: Sequence[Outcome]) -> dict[str, int]:
    """Messages that differ in numbers alone count as the first of them."""
    first: dict[str, str] = {}
    counts: Counter[str] = Counter()
    for outcome in outcomes:
        if outcome.error is not None:
            message = f"{outcome.error}: {outcome.reason}".removesuffix(": ")
            counts[first.setdefault(re.sub(r"\d+", "0", message), message)] += 1
    return dict(counts.most_common(_MOST_REASONS))


def summarise(outcomes: Sequence[Outcome], plan: Plan) -> Summary:
    """Counts everything after the warm-up; rates are over the time from its first due request to its last answer."""
    counted = outcomes[plan.warmup :]
    answered = [outcome for outcome in counted if outcome.error is None]
    usages = [outcome.usage for outcome in answered if outcome.usage is not None]
    good = sum(outcome.total <= plan.bound for outcome in answered)
    seconds = max((o.due + o.total for o in counted), default=0.0) - min((o.due for o in counted), default=0.0)
    per_second = 1 / seconds if seconds > 0 else nan
    gaps = [(o.total - o.ttft) / (o.tokens - 1) for o in answered if o.ttft is not None and o.tokens > 1]
    return Summary(
        requests=len(counted),
        errors=dict(Counter(o.error for o in counted if o.error is not None)),
        reasons=_reasons(counted),
        seconds=seconds,
        requests_per_second=len(answered) * per_second,
        tokens_per_second=sum(o.tokens for o in answered) * per_second,
        goodput=good * per_second,
        good_share=good / len(counted) if counted else nan,
        latency=percentiles([o.total for o in answered]),
        ttft=percentiles([o.ttft for o in answered if o.ttft is not None]),
        time_per_output_token=statistics.median(gaps) if gaps else nan,
        visual_tokens=statistics.fmean(u.visual_tokens_kept for u in usages) if usages else nan,
        prompt_tokens=statistics.fmean(u.prompt_tokens for u in usages) if usages else nan,
        cached_images=sum(u.cached_images for u in usages),
        failovers=sum(u.failovers for u in usages),
        retries=sum(u.retries for u in usages),
    )
