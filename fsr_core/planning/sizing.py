"""From a load to replicas, memory, bandwidth and cost, by the formulas of docs/plan.md."""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil

from fsr_core.planning.figures import ModelFigures
from fsr_core.planning.gpus import Gpu
from fsr_core.planning.service_times import ServiceTimes, feature_bytes, roofline
from fsr_core.planning.workload import Assumptions, Workload

__all__ = ["CasePlan", "Tier", "plan_case"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Tier:
    """One tier of a plan.

    Attributes:
        replicas: decoders, encoder GPUs, encoder cores, or gateways.
        seconds: what a request takes of a replica's time, at its full capacity.
        busy: share of its capacity that the load takes.
        binds: what its number of replicas follows from.
    """

    replicas: int
    seconds: float
    busy: float
    binds: str


@dataclass(frozen=True, slots=True, kw_only=True)
class CasePlan:
    """What a load needs if ``kept`` of the visual tokens stay.

    Attributes:
        kept: visual tokens of a prompt.
        times: service times that the numbers follow from.
        decoders, encoders, encoder_cores, gateways: the tiers; an encoder has one GPU, a gateway one core.
        kv_capacity_bytes: KV memory of a decoder.
        kv_bytes: KV memory of a request at the end of its answer.
        answers_at_a_time: most answers that a decoder generates at a time.
        running: answers that it generates at a time under this load, on average.
        kv_used_bytes: KV memory of a decoder that these take.
        answer_seconds: mean time of an answer, without waiting in queues.
        bytes_per_second: through the gateways, in and out.
        gpus: of decoders and encoders.
        dollars_per_hour, dollars_per_million: of GPUs and cores; per million answers.
    """

    kept: int
    times: ServiceTimes
    decoders: Tier
    encoders: Tier
    encoder_cores: Tier
    gateways: Tier
    kv_capacity_bytes: float
    kv_bytes: int
    answers_at_a_time: int
    running: float
    kv_used_bytes: float
    answer_seconds: float
    bytes_per_second: float
    gpus: int
    dollars_per_hour: float
    dollars_per_million: float


def plan_case(model: ModelFigures, gpu: Gpu, workload: Workload, kept: int, assumed: Assumptions) -> CasePlan:
    """The plan for ``kept`` visual tokens of each picture.

    Raises:
        ValueError: the model does not fit the GPU.
    """
    times = roofline(model, gpu, workload, kept, assumed)
    rate, length = workload.rate, workload.text_tokens + kept + workload.answer_tokens
    kv_capacity, kv_bytes = _kv_memory(model, gpu, assumed), model.geometry.cost_model().kv_bytes(length)
    slots = _slots(gpu, kv_capacity, kv_bytes, length, assumed)

    decoders = _decoders(times, workload, slots, assumed)
    encoders = _tier(rate, times.tower, "compute, for the vision tower", assumed)
    cores = _tier(rate, times.picture, "CPU, for decoding and resizing pictures", assumed)
    running = _running(times, rate / decoders.replicas, workload.answer_tokens, slots)
    waiting_for_tokens = running * decoders.replicas / rate
    seconds = times.gateway + times.picture + times.tower + times.prefill + waiting_for_tokens
    gateways = _gateways(times, rate, rate * seconds, assumed)

    gpus = decoders.replicas * assumed.gpus_per_decoder + encoders.replicas
    dollars = gpus * gpu.price + (cores.replicas + gateways.replicas) * assumed.core_price
    return CasePlan(
        kept=kept,
        times=times,
        decoders=decoders,
        encoders=encoders,
        encoder_cores=cores,
        gateways=gateways,
        kv_capacity_bytes=kv_capacity,
        kv_bytes=kv_bytes,
        answers_at_a_time=slots,
        running=running,
        kv_used_bytes=running * kv_bytes,
        answer_seconds=seconds,
        bytes_per_second=2 * rate * (workload.picture_bytes + feature_bytes(model, kept)),
        gpus=gpus,
        dollars_per_hour=dollars,
        dollars_per_million=dollars / (rate * 3600) * 1e6,
    )


def _kv_memory(model: ModelFigures, gpu: Gpu, assumed: Assumptions) -> float:
    """Bytes of a decoder's KV memory; the rule is that of the decoder's --kv-memory."""
    free = gpu.memory * assumed.gpus_per_decoder - model.decoder_bytes
    if free <= 0:
        raise ValueError(
            f"gpus_per_decoder: the weights of {model.name} take {model.decoder_bytes / 1e9:.1f} GB, and"
            f" {assumed.gpus_per_decoder} x {gpu.name} have {gpu.memory * assumed.gpus_per_decoder / 1e9:.0f} GB; give"
            " a decoder more GPUs, or choose a larger GPU"
        )
    return free * assumed.kv_share


def _slots(gpu: Gpu, kv_capacity: float, kv_bytes: int, length: int, assumed: Assumptions) -> int:
    """Most answers at a time: as many as fit the KV memory at their full length, at most ``max_running``."""
    slots = min(assumed.max_running, int(kv_capacity // kv_bytes))
    if slots < 1:
        raise ValueError(
            f"gpus_per_decoder: the {kv_capacity / 1e9:.1f} GB of KV memory beside the weights on"
            f" {assumed.gpus_per_decoder} x {gpu.name} hold no prompt and answer of {length} tokens"
            f" ({kv_bytes / 1e9:.2f} GB); give a decoder more GPUs, or choose a larger GPU"
        )
    return slots


def _tier(rate: float, seconds: float, reason: str, assumed: Assumptions) -> Tier:
    needed = ceil(rate * seconds / assumed.fill - 1e-9)
    replicas = max(needed, assumed.min_replicas)
    return Tier(
        replicas=replicas,
        seconds=seconds,
        busy=rate * seconds / replicas,
        binds=reason if needed == replicas else f"availability: at least {assumed.min_replicas}",
    )


def _decoders(times: ServiceTimes, workload: Workload, slots: int, assumed: Assumptions) -> Tier:
    """A request costs its prefill and its share of the steps in which ``slots`` answers run together."""
    answer, reads = workload.answer_tokens, times.step / slots + times.step_answer
    seconds = times.prefill + answer * max(reads, times.step_compute)
    if times.step_compute > reads:
        parts = {"compute, for prefill": times.prefill, "compute, for decoding": answer * times.step_compute}
    else:
        limit = "more KV memory helps" if slots < assumed.max_running else "a higher max_running helps"
        parts = {
            "compute, for prefill": times.prefill,
            "memory bandwidth, for reading the KV cache": answer * times.step_answer,
            f"memory bandwidth, for reading the weights for few answers at a time; {limit}": answer
            * times.step
            / slots,
        }
    reason = max(parts, key=lambda name: parts[name])
    share = parts[reason] / seconds
    return _tier(workload.rate, seconds, f"{reason} ({share:.0%} of a request)", assumed)


def _running(times: ServiceTimes, rate: float, answer: int, slots: int) -> float:
    """Mean number of running answers of one decoder with this rate.

    An answer runs for ``answer`` steps, each with the prefill of others in between. So it runs for answer * step /
    (1 - rate * prefill) seconds, and Little's law gives the number, on which the step depends itself. It is solved for
    the step that memory bounds: where compute bounds the step, time grows as the number does, and the load settles
    below that point.
    """
    left = 1 - rate * (times.prefill + answer * times.step_answer)
    return min(float(slots), rate * answer * times.step / left) if left > 0 else float(slots)


def _gateways(times: ServiceTimes, rate: float, in_flight: float, assumed: Assumptions) -> Tier:
    tier = _tier(rate, times.gateway, "CPU, for relaying requests and features", assumed)
    by_requests = ceil(in_flight / assumed.gateway_requests)
    if by_requests <= tier.replicas:
        return tier
    return Tier(
        replicas=by_requests,
        seconds=times.gateway,
        busy=in_flight / by_requests / assumed.gateway_requests * assumed.fill,
        binds="requests in flight",
    )
