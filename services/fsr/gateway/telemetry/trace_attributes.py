"""What the spans of the gateway say of a request.

`gen_ai.*` by the semantic conventions (https://opentelemetry.io/docs/specs/semconv/gen-ai/), `fsr.*` our own, named as
in logs and metrics. None holds a question, a picture, an answer or a stop string.
"""

from __future__ import annotations

from collections.abc import Mapping

from fsr.common.telemetry.spans import Attributes
from fsr.gateway.telemetry.request_record import RequestRecord
from fsr.v1 import decoder_pb2, types_pb2
from fsr.v1 import gateway_pb2 as pb

__all__ = [
    "answer_attributes",
    "chat_attributes",
    "failover_attributes",
    "record_attributes",
    "retry_attributes",
]

_FINISH_REASONS = {decoder_pb2.FINISH_REASON_STOP: "stop", decoder_pb2.FINISH_REASON_LENGTH: "length"}


def chat_attributes(sampling: types_pb2.Sampling) -> Attributes:
    """Of a question: how its answer is to be generated, as far as the caller says it."""
    attributes: dict[str, int | float | str] = {"gen_ai.operation.name": "chat", "gen_ai.provider.name": "fsr"}
    for name in ("max_tokens", "temperature", "top_p", "top_k"):
        if value := getattr(sampling, name):
            attributes[f"gen_ai.request.{name}"] = round(value, 6)  # of fp32
    if sampling.HasField("seed"):
        attributes["gen_ai.request.seed"] = str(sampling.seed)  # it may exceed the 63 bits of an attribute's number
    return attributes


def answer_attributes(
    usage: pb.Usage, reason: decoder_pb2.FinishReason.ValueType, seconds: Mapping[str, float]
) -> Attributes:
    """Of a complete answer."""
    return {
        "gen_ai.response.finish_reasons": [_FINISH_REASONS.get(reason, "")],
        "gen_ai.response.time_to_first_chunk": seconds["ttft"],
        "gen_ai.usage.input_tokens": usage.prompt_tokens,
        "gen_ai.usage.cache_read.input_tokens": usage.cached_tokens,
        "fsr.kv_bytes_saved": usage.kv_bytes_saved,
        "fsr.prefill_flops_saved": usage.prefill_flops_saved,
        "fsr.wire_bytes_saved": usage.wire_bytes_saved,
        "fsr.cached_images": usage.cached_images,
    }


def record_attributes(record: RequestRecord, interface: str) -> Attributes:
    """Of a request that has ended, well or not."""
    attributes: dict[str, int | str] = {
        "fsr.interface": interface,
        "fsr.failovers": record.failovers,
        "fsr.retries": record.retries,
        "gen_ai.response.id": record.request_id,
        "gen_ai.usage.output_tokens": record.completion_tokens,
    }
    if record.model:
        attributes |= {"gen_ai.request.model": record.model, "gen_ai.response.model": record.model}
    if record.key_name:
        attributes["fsr.key_name"] = record.key_name
    if record.visual_tokens_in:
        attributes |= {
            "fsr.visual_tokens_in": record.visual_tokens_in,
            "fsr.visual_tokens_kept": record.visual_tokens_kept,
            "fsr.visual_tokens_saved": record.visual_tokens_in - record.visual_tokens_kept,
        }
    if record.method:
        attributes |= {"fsr.budget": record.budget, "fsr.method": record.method}
    return attributes


def retry_attributes(*, role: str, replica: str, reason: str) -> Attributes:
    """Of a call that is repeated at the replica with this address."""
    return {"fsr.role": role, "fsr.replica": replica, "fsr.reason": reason}


def failover_attributes(*, replica: str, emitted: int) -> Attributes:
    """Of an answer that goes on at the replica with this address, after so many tokens."""
    return {"fsr.replica": replica, "fsr.emitted_tokens": emitted}
