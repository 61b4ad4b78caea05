"""What is asked of a deployment, and what the plan assumes of its machines."""

from __future__ import annotations

from dataclasses import dataclass

from fsr_core.checks import check_number, check_whole

__all__ = ["Assumptions", "Workload"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """Requests with one picture each.

    Attributes:
        rate: requests a second.
        visual_tokens: tokens of a picture before compression, newlines left out.
        text_tokens: other tokens of a prompt.
        answer_tokens: tokens of an answer.
        picture_bytes: size of a picture's file.
        picture_seconds: CPU seconds of decoding and preprocessing it.
    """

    rate: float
    visual_tokens: int
    text_tokens: int = 60
    answer_tokens: int = 128
    picture_bytes: int = 274_000
    picture_seconds: float = 0.019

    def __post_init__(self) -> None:
        check_number("rate", self.rate, 1e-3, 1e7, "requests a second")
        for name in ("visual_tokens", "answer_tokens", "picture_bytes"):
            check_whole(name, getattr(self, name), 1)
        check_whole("text_tokens", self.text_tokens, 0)
        check_number("picture_seconds", self.picture_seconds, 1e-6, 1e3)


@dataclass(frozen=True, slots=True, kw_only=True)
class Assumptions:
    """What the plan takes for granted. docs/plan.md says where the defaults come from.

    Attributes:
        fill: share of its capacity to which each tier is filled.
        min_replicas: fewest replicas of a tier.
        compute_share: share of a GPU's peak compute that is reached.
        bandwidth_share: share of its peak bandwidth that is reached.
        kv_share: share of the memory that the weights leave free which holds KV cache.
        max_running: most answers that a decoder generates at a time.
        prefill_tokens: prompt tokens that a decoder takes in between two steps of its running answers.
        gpus_per_decoder: GPUs over which the layers of one decoder are spread (tensor parallelism).
        gateway_requests: requests in flight at a gateway, above which another gateway is due.
        core_price: US dollars an hour of a CPU core.
    """

    fill: float = 0.7
    min_replicas: int = 2
    compute_share: float = 0.4
    bandwidth_share: float = 1.0
    kv_share: float = 0.8
    max_running: int = 512
    prefill_tokens: int = 2048
    gpus_per_decoder: int = 1
    gateway_requests: int = 700
    core_price: float = 0.0408

    def __post_init__(self) -> None:
        for name in ("fill", "compute_share", "bandwidth_share", "kv_share"):
            check_number(name, getattr(self, name), 0.01, 1, "a share, such as 0.7")
        for name in ("min_replicas", "max_running", "prefill_tokens", "gpus_per_decoder", "gateway_requests"):
            check_whole(name, getattr(self, name), 1)
        check_number("core_price", self.core_price, 0, 1e6, "dollars an hour")
