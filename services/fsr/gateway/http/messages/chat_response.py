"""From the gateway's responses to OpenAI's objects."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from typing import Any

from fsr.gateway.http.messages.facts import image_facts, usage_object
from fsr.gateway.http.schemas.requests import ChatRequest
from fsr.gateway.telemetry.request_record import RequestRecord
from fsr.v1 import decoder_pb2, types_pb2
from fsr.v1 import gateway_pb2 as pb

__all__ = ["ChatResponses"]

_FINISH = {decoder_pb2.FINISH_REASON_STOP: "stop", decoder_pb2.FINISH_REASON_LENGTH: "length"}
_LEAST_LOGPROB = -9999.0  # OpenAI's number for a token that is very unlikely; JSON has no infinity


class ChatResponses:
    """Makes the objects of one answer, which share its id, time and model."""

    def __init__(self, record: RequestRecord, body: ChatRequest) -> None:
        self._record, self._created = record, int(time.time())
        self._logprobs = bool(body.logprobs)
        self._usage_asked = bool(body.stream_options and body.stream_options.include_usage)
        self._resumable = bool(body.fsr and body.fsr.resumable)
        self._first = True

    def chunk(self, response: pb.GenerateResponse) -> dict[str, Any]:
        """An event of a stream; the first call makes the first event."""
        role = {"role": "assistant"} if self._first else {}
        self._first = False
        choice = {
            "index": 0,
            "delta": role | {"content": response.text},
            "logprobs": self._logprobs_object([response]),
            "finish_reason": _FINISH.get(response.finish_reason),
        }
        chunk = self._object("chat.completion.chunk", [choice])
        if extras := self._extras([response]):
            chunk["fsr"] = extras
        return chunk | ({"usage": None} if self._usage_asked else {})

    def usage_chunk(self, usage: pb.Usage) -> dict[str, Any]:
        """The last event of a stream whose request has `stream_options.include_usage`."""
        return self._object("chat.completion.chunk", []) | {"usage": usage_object(usage)}

    def whole(self, responses: Sequence[pb.GenerateResponse]) -> dict[str, Any]:
        """The answer to a request without `stream`."""
        text = "".join(response.text for response in responses)
        choice = {
            "index": 0,
            "message": {"role": "assistant", "content": text, "refusal": None},
            "logprobs": self._logprobs_object(responses),
            "finish_reason": _FINISH.get(responses[-1].finish_reason),
        }
        answer = self._object("chat.completion", [choice]) | {"usage": usage_object(responses[-1].usage)}
        if extras := self._extras(responses):
            answer["fsr"] = extras
        return answer

    def _object(self, kind: str, choices: list[dict[str, Any]]) -> dict[str, Any]:
        return {
            "id": f"chatcmpl-{self._record.request_id}",
            "object": kind,
            "created": self._created,
            "model": self._record.model,
            "choices": choices,
        }

    def _extras(self, responses: Sequence[pb.GenerateResponse]) -> dict[str, Any]:
        """What OpenAI's objects have no place for."""
        first = responses[0]
        extras: dict[str, Any] = {}
        if first.images:
            extras["images"] = [image_facts(image) for image in first.images]
        if self._resumable:
            extras["token_ids"] = [token for response in responses for token in response.token_ids]
            if first.fingerprint:
                extras["fingerprint"] = first.fingerprint
        return extras

    def _logprobs_object(self, responses: Iterable[pb.GenerateResponse]) -> dict[str, Any] | None:
        if not self._logprobs:
            return None
        choices = [choice for response in responses for choice in response.token_choices]
        content = [_token(choice.token) | {"top_logprobs": [_token(t) for t in choice.top]} for choice in choices]
        return {"content": content, "refusal": None}


def _token(token: types_pb2.TokenLogprob) -> dict[str, Any]:
    return {
        "token": token.text.decode(errors="replace"),  # a part of a character shows as a question mark
        "logprob": max(token.logprob, _LEAST_LOGPROB),
        "bytes": list(token.text),
    }
