"""From a chat request to the gateway's own request."""

from __future__ import annotations

from fsr.common.errors import InvalidRequest
from fsr.gateway.http.field_names import FieldNames
from fsr.gateway.http.messages.options import budget_message, method_message, wire_dtype
from fsr.gateway.http.pictures.pictures import Pictures
from fsr.gateway.http.schemas.body import parse_json, validated
from fsr.gateway.http.schemas.requests import ChatOptions, ChatRequest, ImagePart, TextPart, VisualPart
from fsr.gateway.http.schemas.unsupported import MESSAGE, REQUEST, WITHOUT_EFFECT, without_unsupported
from fsr.gateway.requests.deadline import Deadline
from fsr.v1 import gateway_pb2 as pb
from fsr.v1 import types_pb2

__all__ = ["chat_request", "generate_request", "sampling_message"]

_ROLES = {
    "system": types_pb2.ROLE_SYSTEM,
    "developer": types_pb2.ROLE_SYSTEM,
    "user": types_pb2.ROLE_USER,
    "assistant": types_pb2.ROLE_ASSISTANT,
}
_MOST_ALTERNATIVES = 20
_SMALLEST = 1e-6  # of the numbers below; a much smaller one is 0 as a float, which stands for "not set"


def chat_request(raw: bytes | bytearray, most_values: int) -> ChatRequest:
    """The request in a body of at most so many values. Raises InvalidRequest, which names the field."""
    body = without_unsupported(parse_json(raw, most_values), REQUEST, WITHOUT_EFFECT)
    messages = body.get("messages")
    if isinstance(messages, list):
        body["messages"] = [
            without_unsupported(message, MESSAGE, prefix=f"messages[{i}].") if isinstance(message, dict) else message
            for i, message in enumerate(messages)
        ]
    return validated(ChatRequest, body)


async def generate_request(
    body: ChatRequest, pictures: Pictures, names: FieldNames, deadline: Deadline
) -> pb.GenerateRequest:
    """The request of the gateway. Tells `names` where the HTTP request has its fields.

    Raises InvalidRequest, which names the field of the HTTP request, and what `pictures` raises.
    """
    options = body.fsr or ChatOptions()
    request = pb.GenerateRequest(
        model=body.model or "",
        method=method_message(options, names),
        sampling=sampling_message(body),
        explain=bool(options.explain),
        budget=budget_message(options),
        wire_dtype=wire_dtype(options),
    )
    if options.resume is not None:
        request.resume.token_ids.extend(options.resume.token_ids)
        request.resume.fingerprint = options.resume.fingerprint or ""
    if body.max_completion_tokens is not None:
        names.rename("sampling.max_tokens", "max_completion_tokens")
    shown: list[tuple[VisualPart, str]] = []
    for i, message in enumerate(body.messages):
        turn = request.messages.add(role=_ROLES[message.role])
        if isinstance(message.content, str):
            turn.parts.add(text=message.content)
            continue
        for j, part in enumerate(message.content):
            if isinstance(part, TextPart):
                turn.parts.add(text=part.text)
            else:
                turn.parts.add(image=len(shown))
                kind = "image_url.url" if isinstance(part, ImagePart) else "video_url"
                shown.append((part, f"messages[{i}].content[{j}].{kind}"))
    names.rename("images", "messages: images")
    names.images = [field for _, field in shown]
    request.images.extend(await pictures.images(shown, deadline))
    return request


def sampling_message(body: ChatRequest) -> types_pb2.Sampling:
    """The sampling options. 0 stands for "not set" in the message, so an explicit 0 is checked here.

    Raises InvalidRequest.
    """
    alternatives = body.top_logprobs or 0
    if not 0 <= alternatives <= _MOST_ALTERNATIVES:
        raise InvalidRequest(f"top_logprobs: {alternatives} is outside 0..{_MOST_ALTERNATIVES}; ask for fewer")
    if alternatives and not body.logprobs:
        raise InvalidRequest("top_logprobs: needs logprobs; set it to true")
    for name in ("temperature", "top_p", "repetition_penalty"):
        value = getattr(body, name)
        if value and abs(value) < _SMALLEST:
            raise InvalidRequest(f"{name}: {value:.3g} is too small; give at least {_SMALLEST:g}")
    for name in ("top_p", "repetition_penalty"):
        if getattr(body, name) == 0:
            raise InvalidRequest(f"{name}: must be above 0; leave it out for 1")
    top_k = body.top_k or 0
    if top_k < -1 or top_k >= 2**31:
        raise InvalidRequest(f"top_k: {top_k} is no number of tokens; leave it out to keep all")
    seed = body.seed
    if seed is not None and not -(2**63) <= seed < 2**64:
        raise InvalidRequest("seed: does not fit into 64 bits; give a smaller number")
    return types_pb2.Sampling(
        max_tokens=_max_tokens(body),
        temperature=body.temperature or 0.0,
        top_p=body.top_p or 0.0,
        top_k=max(0, top_k),
        repetition_penalty=body.repetition_penalty or 0.0,
        seed=None if seed is None else seed % 2**64,
        stop=[body.stop] if isinstance(body.stop, str) else body.stop,
        ignore_eos=bool(body.ignore_eos),
        logprobs=bool(body.logprobs),
        top_logprobs=alternatives,
    )


def _max_tokens(body: ChatRequest) -> int:
    """The most tokens of the answer, or 0 if the request leaves it to the decoder. Raises InvalidRequest."""
    both = {name: getattr(body, name) for name in ("max_completion_tokens", "max_tokens")}
    given = {name: value for name, value in both.items() if value is not None}
    for name, value in given.items():
        if not 1 <= value < 2**31:
            raise InvalidRequest(f"{name}: {value} is no length of an answer; ask for at least 1")
    if len(set(given.values())) > 1:
        raise InvalidRequest("max_tokens: differs from max_completion_tokens, its newer name; send one of them")
    return next(iter(given.values()), 0)
