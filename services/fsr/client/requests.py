"""Builds requests from what a caller has: pictures, a budget, a method, sampling."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from numbers import Integral, Real
from typing import Any, Literal, TypedDict, Unpack, get_args

from fsr.client.errors import InvalidRequestError
from fsr.client.media import ImageSource, image_messages
from fsr.common.method_options import check_options
from fsr.v1 import gateway_pb2, types_pb2

__all__ = [
    "Budget",
    "CompressOptions",
    "CompressionOptions",
    "GenerateOptions",
    "SamplingOptions",
    "Spread",
    "WireDtype",
    "budget_of",
    "compress_request",
    "generate_request",
]

Budget = int | float | Literal["auto"]
Spread = Literal["even", "free"]
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
    #: The answer ends before the first of these strings.
    stop: Sequence[str]
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
    images: ImageSource | Sequence[ImageSource], question: str, **options: Unpack[GenerateOptions]
) -> gateway_pb2.GenerateRequest:
    """One question about pictures and videos.

    Raises InvalidRequestError naming the argument; TypeError for an option that does not exist.
    """
    _check_names(options, GenerateOptions)
    pictures = image_messages(images)
    with _named_refusals():
        parts = [*(types_pb2.Part(image=i) for i in range(len(pictures))), types_pb2.Part(text=question)]
        return gateway_pb2.GenerateRequest(
            images=pictures,
            messages=[types_pb2.Message(role=types_pb2.ROLE_USER, parts=parts)],
            sampling=_sampling(options),
            explain=options.get("explain", False),
            **_compression(options),
        )


def compress_request(
    images: ImageSource | Sequence[ImageSource], instruction: str, **options: Unpack[CompressOptions]
) -> gateway_pb2.CompressRequest:
    """Pictures and videos to compress for one instruction. Raises as `generate_request` does."""
    _check_names(options, CompressOptions)
    pictures = image_messages(images)
    with _named_refusals():
        return gateway_pb2.CompressRequest(
            images=pictures,
            instruction=instruction,
            explain=options.get("explain", False),
            **_compression(options),
        )


def _check_names(options: Mapping[str, object], declared: type) -> None:
    """Python itself does not check the names behind `**options`."""
    unknown = sorted(options.keys() - declared.__annotations__.keys())
    if unknown:
        raise TypeError(f"{unknown[0]}: unknown option; use {', '.join(declared.__annotations__)}")


@contextmanager
def _named_refusals() -> Iterator[None]:
    """Turns what protobuf refuses (a number out of range, a wrong type) into InvalidRequestError."""
    try:
        yield
    except (TypeError, ValueError) as error:
        raise InvalidRequestError(f"request: {error}; check the arguments' types and ranges") from error


def _compression(options: CompressionOptions) -> dict[str, Any]:
    """The fields that both requests share."""
    return {
        "model": options.get("model", ""),
        "budget": budget_of(options.get("budget"), options.get("spread", "even")),
        "method": _method(options.get("method") or "", options.get("options")),
        "wire_dtype": _wire_dtype(options.get("wire_dtype")),
    }


def _sampling(options: Mapping[str, object]) -> types_pb2.Sampling:
    sampling = types_pb2.Sampling()
    for name in SamplingOptions.__annotations__:
        if name not in options:
            continue
        value: Any = options[name]
        try:
            sampling.MergeFrom(types_pb2.Sampling(**{name: value}))
        except (TypeError, ValueError) as error:
            raise InvalidRequestError(f"{name}: {value!r} is out of range or of the wrong type ({error})") from error
    return sampling


def budget_of(budget: Budget | None, spread: Spread = "even") -> types_pb2.Budget:
    """An int is a number of tokens, a float a share of them, "auto" as many as the evidence asks for. None is open: the
    gateway's policy chooses.

    `spread` divides it among the tiles of a picture or the frames of a video: evenly, or as the evidence asks ("free").
    Raises InvalidRequestError naming the argument.
    """
    if spread not in get_args(Spread):
        raise InvalidRequestError(f"spread: {spread!r} is unknown; use even or free")
    message = _budget_message(budget)
    message.spread = types_pb2.Spread.Value(f"SPREAD_{spread.upper()}")
    return message


def _budget_message(budget: Budget | None) -> types_pb2.Budget:
    if budget is None:
        return types_pb2.Budget()
    if budget == "auto":
        return types_pb2.Budget(auto=types_pb2.AutoBudget())
    if isinstance(budget, bool) or not isinstance(budget, Real):  # Real and Integral include NumPy's numbers
        raise InvalidRequestError(f"budget: expected tokens (int), a share (float) or 'auto', got {budget!r}")
    if not isinstance(budget, Integral):
        return types_pb2.Budget(keep_ratio=float(budget))
    if not -(2**31) <= budget < 2**31:
        raise InvalidRequestError(f"budget: {budget} tokens is out of range; to keep all tokens use 1.0")
    return types_pb2.Budget(tokens=int(budget))


def _method(name: str, options: Mapping[str, Any] | None) -> types_pb2.Method:
    method = types_pb2.Method(name=name)
    try:
        method.options.update(dict(options or {}))
    except ValueError as error:
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
