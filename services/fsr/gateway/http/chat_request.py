"""From a chat request to the gateway's own request."""

from __future__ import annotations

import base64
import binascii

from fsr.common.errors import InvalidRequest
from fsr.gateway.http.schemas import ChatRequest, CompressionOptions, TextPart
from fsr.v1 import gateway_pb2 as pb
from fsr.v1 import types_pb2

__all__ = ["budget_message", "generate_request", "method_message"]

_ROLES = {"system": types_pb2.ROLE_SYSTEM, "user": types_pb2.ROLE_USER, "assistant": types_pb2.ROLE_ASSISTANT}


def generate_request(body: ChatRequest) -> pb.GenerateRequest:
    """Raises InvalidRequest, which names the field of the HTTP request."""
    request = pb.GenerateRequest(
        model=body.model,
        method=method_message(body.fsr),
        sampling=_sampling(body),
        explain=body.fsr.explain,
        budget=budget_message(body.fsr),
    )
    for i, message in enumerate(body.messages):
        turn = request.messages.add(role=_ROLES[message.role])
        if isinstance(message.content, str):
            turn.parts.add(text=message.content)
            continue
        for j, part in enumerate(message.content):
            if isinstance(part, TextPart):
                turn.parts.add(text=part.text)
            else:
                field = f"messages[{i}].content[{j}].image_url.url"
                turn.parts.add(image=len(request.images))
                request.images.add(data=_file_of(part.image_url.url, field))
    return request


def _file_of(url: str, field: str) -> bytes:
    """The bytes of a data URI. Raises InvalidRequest."""
    header, comma, data = url.partition(",")
    if not header.startswith("data:") or not header.endswith(";base64") or not comma:
        raise InvalidRequest(f"{field}: is no data URI; write data:image/png;base64,... with the file in base64")
    try:
        return base64.b64decode(data, validate=True)
    except (binascii.Error, ValueError) as error:
        raise InvalidRequest(f"{field}: is no base64 ({error}); encode the whole file") from error


def budget_message(options: CompressionOptions) -> types_pb2.Budget:
    """The budget; without a kind if the request leaves it to the policy."""
    spread = types_pb2.Spread.Value(f"SPREAD_{options.spread.upper()}")
    if options.budget is None:
        return types_pb2.Budget(spread=spread)
    if options.budget == "auto":
        return types_pb2.Budget(auto=types_pb2.AutoBudget(), spread=spread)
    if isinstance(options.budget, int):
        return types_pb2.Budget(tokens=options.budget, spread=spread)
    return types_pb2.Budget(keep_ratio=options.budget, spread=spread)


def method_message(options: CompressionOptions) -> types_pb2.Method:
    """The method and its options."""
    method = types_pb2.Method(name=options.method)
    method.options.update(options.options)
    return method


def _sampling(body: ChatRequest) -> types_pb2.Sampling:
    return types_pb2.Sampling(
        max_tokens=body.max_completion_tokens or body.max_tokens or 0,
        temperature=body.temperature or 0.0,
        top_p=body.top_p or 0.0,
        top_k=body.top_k or 0,
        repetition_penalty=body.repetition_penalty or 0.0,
        seed=body.seed,
        stop=[body.stop] if isinstance(body.stop, str) else body.stop,
        ignore_eos=body.ignore_eos,
        logprobs=bool(body.logprobs),
        top_logprobs=body.top_logprobs or 0,
    )
