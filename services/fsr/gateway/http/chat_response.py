"""From the gateway's responses to OpenAI's objects."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from google.protobuf.json_format import MessageToDict

from fsr.v1 import decoder_pb2, types_pb2
from fsr.v1 import gateway_pb2 as pb

__all__ = ["ChatResponses", "explained_image", "usage_object"]

_FINISH = {decoder_pb2.FINISH_REASON_STOP: "stop", decoder_pb2.FINISH_REASON_LENGTH: "length"}


class ChatResponses:
    """Makes the objects of one answer, which share its id, time and model."""

    def __init__(self, request_id: str, model: str) -> None:
        self._shared = {"id": f"chatcmpl-{request_id}", "created": int(time.time()), "model": model}

    def chunk(self, response: pb.GenerateResponse, first: bool, usage_asked: bool) -> dict[str, Any]:
        """One event of a stream."""
        delta: dict[str, Any] = {"role": "assistant"} if first else {}
        choice = {
            "index": 0,
            "delta": delta | {"content": response.text},
            "logprobs": None,
            "finish_reason": _FINISH.get(response.finish_reason),
        }
        chunk = self._shared | {"object": "chat.completion.chunk", "choices": [choice]}
        if response.images:
            chunk["fsr"] = {"images": [explained_image(image) for image in response.images]}
        return chunk | ({"usage": None} if usage_asked else {})

    def usage_chunk(self, usage: pb.Usage) -> dict[str, Any]:
        """The last event of a stream whose request has `stream_options.include_usage`."""
        return self._shared | {"object": "chat.completion.chunk", "choices": [], "usage": usage_object(usage)}

    def whole(self, responses: Sequence[pb.GenerateResponse]) -> dict[str, Any]:
        """The answer to a request without `stream`."""
        text = "".join(response.text for response in responses)
        choice = {
            "index": 0,
            "message": {"role": "assistant", "content": text, "refusal": None},
            "logprobs": None,
            "finish_reason": _FINISH.get(responses[-1].finish_reason),
        }
        answer = self._shared | {
            "object": "chat.completion",
            "choices": [choice],
            "usage": usage_object(responses[-1].usage),
        }
        if responses[0].images:
            answer["fsr"] = {"images": [explained_image(image) for image in responses[0].images]}
        return answer


def usage_object(usage: pb.Usage) -> dict[str, Any]:
    """OpenAI's usage, with all of ours under `fsr`."""
    return {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
        "prompt_tokens_details": {"cached_tokens": usage.cached_tokens},
        "fsr": MessageToDict(usage, preserving_proto_field_name=True, always_print_fields_with_no_presence=True),
    }


def explained_image(image: types_pb2.CompressedImage) -> dict[str, Any]:
    """Which tokens were kept, by source index, and why."""
    return MessageToDict(image, preserving_proto_field_name=True, always_print_fields_with_no_presence=True)
