"""Builds requests from what a caller has: pictures, a budget, a method, sampling."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import inf
from typing import Any, Literal, TypedDict, Unpack, get_args

from fsr.client.budgets import Budget, Spread, budget_of
from fsr.client.errors import InvalidRequestError
from fsr.client.media import Images, image_messages
from fsr.client.messages import Messages, check_text, conversation
from fsr.common.requests.method_options import check_options
from fsr.v1 import gateway_pb2, types_pb2

__all__ = [
    "Budget",
    "CompressOptions",
    "CompressionOptions",
    "GenerateOptions",
    "SamplingOptions",
    "Spread",
    "WireDtype",
    "chat_request",
    "compress_request",
    "generate_request",
]

WireDtype = Literal["fp32", "fp16", "bf16", "int8"]


class CompressionOptions(TypedDict, total=False):
    """How the visual tokens of each picture or video are compressed. Every option may be left out."""

    #: Tokens to keep (int), a share of them (float), or "auto": as many as the evidence asks for. None (default) leaves
    #: it to the gateway's policy.
    budget: Budget | None
    #: How the budget is divided among tiles or frames: "even" (default), or "free", which follows the evidence.
    spread: Spread
    #: Name of the compression method; None (default) leaves it to the gateway's policy.
    method: str | None
    #: Options of the method, such as {"rho": 0.7}.
    options: Mapping[str, Any] | None
    #: Name of the model; needed if the gateway serves several.
    model: str
    #: Format of the features on the wire; None (default) takes the gateway's own setting.
    wire_dtype: WireDtype | None


class SamplingOptions(TypedDict, total=False):
    """How the answer is decoded. Every option may be left out."""

    #: Most tokens to generate; 0 (default) takes the decoder's default.
    max_tokens: int
    #: 0 (default) is greedy; otherwise logits are divided by it: 1e-6 to 10.
    temperature: float
    #: Sample from the likeliest tokens that together reach this probability; 0 (default) means 1.
    top_p: float
    #: Sample from this many of the likeliest tokens; 0 (default) means all.
    top_k: int
    #: Above 1 discourages repetition: 1e-6 to 10; 0 (default) means 1.
    repetition_penalty: float
    #: Makes a sampled answer repeatable.
    seed: int | None
    #: The answer ends before this string, or before the first of these.
    stop: str | Sequence[str]
    #: Go on after an end-of-sequence token until `max_tokens`.
    ignore_eos: bool
    #: Return the log probability and the text of each token.
    logprobs: bool
    #: With `logprobs`: return so many of the likeliest tokens at each place of the answer; at most 20.
    top_logprobs: int


class GenerateOptions(CompressionOptions, SamplingOptions, total=False):
    """Options of a question: `CompressionOptions`, `SamplingOptions` and `explain`."""

    #: Return which tokens of each picture and video were kept, and why, as `images` of the answer.
    explain: bool


class CompressOptions(CompressionOptions, total=False):
    """Options of a compression: `CompressionOptions` and `explain`."""

    #: Return why each token was kept.
    explain: bool


def generate_request(
    images: Images, question: str, *, deadline: float = inf, **arguments: Unpack[GenerateOptions]
) -> gateway_pb2.GenerateRequest:
    """One question about pictures and videos. URLs may be fetched until `deadline`, a moment of `time.monotonic()`.

    Raises InvalidRequestError naming the argument; DeadlineExceeded; TypeError for an argument that does not exist.
    """
    request = _generate_request(arguments)
    text = types_pb2.Part(text=check_text("question", question))
    request.images.extend(image_messages(images, deadline=deadline))
    parts = [*(types_pb2.Part(image=i) for i in range(len(request.images))), text]
    request.messages.add(role=types_pb2.ROLE_USER, parts=parts)
    return request


def chat_request(
    messages: Messages, *, deadline: float = inf, **arguments: Unpack[GenerateOptions]
) -> gateway_pb2.GenerateRequest:
    """A conversation of several turns. For `deadline` and errors see `generate_request`."""
    request = _generate_request(arguments)
    turns, images = conversation(messages, deadline)
    request.messages.extend(turns)
    request.images.extend(images)
    return request


def compress_request(
    images: Images, instruction: str, *, deadline: float = inf, **arguments: Unpack[CompressOptions]
) -> gateway_pb2.CompressRequest:
    """Pictures and videos to compress for one instruction. For `deadline` and errors see `generate_request`."""
    _check_names(arguments, CompressOptions)
    request = gateway_pb2.CompressRequest(
        instruction=check_text("instruction", instruction),
        explain=bool(arguments.get("explain")),
        **_compression(arguments),
    )
    request.images.extend(image_messages(images, deadline=deadline))
    return request


def _generate_request(arguments: GenerateOptions) -> gateway_pb2.GenerateRequest:
    """The request without its messages and images."""
    _check_names(arguments, GenerateOptions)
    return gateway_pb2.GenerateRequest(
        sampling=_sampling(arguments), explain=bool(arguments.get("explain")), **_compression(arguments)
    )


def _check_names(arguments: Mapping[str, object], declared: type) -> None:
    """Python itself does not check the names behind `**arguments`."""
    unknown = sorted(arguments.keys() - declared.__annotations__.keys())
    if unknown:
        raise TypeError(f"{unknown[0]}: unknown argument; use {', '.join(declared.__annotations__)}")


def _compression(arguments: CompressionOptions) -> dict[str, Any]:
    """The fields that both requests share."""
    return {
        "model": check_text("model", arguments.get("model") or ""),
        "budget": budget_of(arguments.get("budget"), arguments.get("spread", "even")),
        "method": _method(check_text("method", arguments.get("method") or ""), arguments.get("options")),
        "wire_dtype": _wire_dtype(arguments.get("wire_dtype")),
    }


def _sampling(arguments: Mapping[str, Any]) -> types_pb2.Sampling:
    sampling = types_pb2.Sampling()
    for name in SamplingOptions.__annotations__:
        value: Any = arguments.get(name)
        if value is None:
            continue
        field: dict[str, Any] = {name: [value] if name == "stop" and isinstance(value, str) else value}
        try:
            sampling.MergeFrom(types_pb2.Sampling(**field))
        except (TypeError, ValueError) as error:
            raise InvalidRequestError(f"{name}: {value!r} is out of range or of the wrong type ({error})") from error
    return sampling


def _method(name: str, options: Mapping[str, Any] | None) -> types_pb2.Method:
    method = types_pb2.Method(name=name)
    try:
        method.options.update(dict(options or {}))
    except (TypeError, ValueError) as error:
        raise InvalidRequestError(f"options: {error}; values are numbers, texts, booleans or lists of them") from error
    try:
        check_options(method.options, "options")
    except ValueError as error:
        raise InvalidRequestError(str(error)) from error
    return method


def _wire_dtype(name: WireDtype | None) -> types_pb2.Dtype.ValueType:
    if name is None:
        return types_pb2.DTYPE_UNSPECIFIED
    if name not in get_args(WireDtype):
        raise InvalidRequestError(f"wire_dtype: {name!r} is unknown; use fp32, fp16, bf16 or int8")
    return types_pb2.Dtype.Value(f"DTYPE_{name.upper()}")
