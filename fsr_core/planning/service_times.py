"""Seconds that a request takes at each tier, alone: measured ones, or those of the roofline of docs/scaling.md."""

from __future__ import annotations

from dataclasses import dataclass

from fsr_core.planning.figures import ModelFigures
from fsr_core.planning.gpus import Gpu
from fsr_core.planning.workload import Assumptions, Workload
from fsr_core.savings import wire_bytes_per_token

__all__ = ["ServiceTimes", "feature_bytes", "roofline"]

# CPU of a gateway, measured: on the request itself by benchmarks/costs.py, on the features by benchmarks/relay.py
# (1.2 ms for 0.52 MB, 5.6 ms for 4.72 MB).
_GATEWAY_SECONDS = 2.7e-3
_RELAY_SECONDS = 0.65e-3
_RELAY_SECONDS_PER_BYTE = 1.05e-9


@dataclass(frozen=True, slots=True, kw_only=True)
class ServiceTimes:
    """Seconds of work, of one core or one GPU.

    Attributes:
        gateway: CPU of a gateway for a request.
        relay_step, relay: CPU of a gateway for relaying the tokens of a decoder's step: whatever their number, and for
            each of them.
        picture: CPU of an encoder for a picture before the vision tower.
        tower_batch, tower: vision tower and compression, for each batch and for each picture in it.
        prefill_pass, prefill: a decoder's prefill, for each pass and for each prompt in it.
        step, step_answer: a decoder's step, which gives each running answer a token: whatever their number, and for
            each of them. Memory traffic, where it bounds the step.
        step_compute: the compute of a step for each answer, where that bounds it.
        delay: seconds that pass without work.
    """

    gateway: float
    picture: float
    tower: float
    prefill: float
    step: float
    step_answer: float
    step_compute: float = 0.0
    relay_step: float = 0.0
    relay: float = 0.0
    tower_batch: float = 0.0
    prefill_pass: float = 0.0
    delay: float = 0.0

    def step_seconds(self, answers: int) -> float:
        """Seconds of one step over so many running answers."""
        return max(self.step + answers * self.step_answer, answers * self.step_compute)


def feature_bytes(model: ModelFigures, tokens: int) -> int:
    """Bytes of a picture's features on the wire, in 16 bits."""
    return tokens * wire_bytes_per_token(model.geometry.hidden, "bf16") * (1 + model.deepstack_layers)


def roofline(model: ModelFigures, gpu: Gpu, workload: Workload, kept: int, assumed: Assumptions) -> ServiceTimes:
    """The service times of a picture of which ``kept`` tokens stay.

    Prefill, decoding and the vision tower take their FLOPs over what the GPU reaches. A step reads the weights once
    and the KV cache of every running answer at its full length, over the bandwidth.
    """
    flops, bandwidth = gpu.flops * assumed.compute_share, gpu.bandwidth * assumed.bandwidth_share
    costs = model.geometry.cost_model()
    prompt = workload.text_tokens + kept
    decoder_flops, decoder_bandwidth = flops * assumed.gpus_per_decoder, bandwidth * assumed.gpus_per_decoder
    return ServiceTimes(
        gateway=_GATEWAY_SECONDS + _RELAY_SECONDS + _RELAY_SECONDS_PER_BYTE * feature_bytes(model, kept),
        picture=workload.picture_seconds,
        tower=model.tower_flops_of(workload.visual_tokens) / flops,
        prefill=costs.prefill_flops(prompt) / decoder_flops,
        step=model.decoder_bytes / decoder_bandwidth,
        step_answer=costs.kv_bytes(prompt + workload.answer_tokens) / decoder_bandwidth,
        step_compute=(costs.flops_constant + costs.flops_linear) / decoder_flops,
    )
