"""What a call returns."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from fsr.client.kept_tokens import ImageTokens, KeptTokens
from fsr.common.requests.budget_text import budget_text
from fsr.common.wire.transport import DECODERS, ENCODERS, REQUEST_ID
from fsr.v1 import gateway_pb2, types_pb2

__all__ = [
    "Answer",
    "ChosenBy",
    "Chunk",
    "Compression",
    "Route",
    "TokenChoice",
    "TokenLogprob",
    "Usage",
]

ChosenBy = Literal["request", "policy", ""]

_CHOSEN_BY: Mapping[int, ChosenBy] = {
    types_pb2.CHOSEN_BY_REQUEST: "request",
    types_pb2.CHOSEN_BY_POLICY: "policy",
}


def _applied(message: gateway_pb2.Usage | gateway_pb2.CompressResponse) -> dict[str, Any]:
    """The fields about budget and method that `Usage` and `Compression` share."""
    return {
        "budget": budget_text(message.budget),
        "budget_chosen_by": _CHOSEN_BY.get(message.budget_chosen_by, ""),
        "method": message.method,
        "method_chosen_by": _CHOSEN_BY.get(message.method_chosen_by, ""),
    }


@dataclass(frozen=True)
class Route:
    """The id of a request and, for a client with `replicas`, the addresses of the encoders and decoders that it was
    sent to, in order.

    More than one decoder means that some were full, or that the answer moved to another.
    """

    request_id: str
    encoders: tuple[str, ...]
    decoders: tuple[str, ...]

    @classmethod
    def of(cls, trailing: Iterable[tuple[str, str | bytes]]) -> Route | None:
        """From the trailing metadata of a call; None if the gateway did not see the request."""
        metadata = {key: value for key, value in trailing if isinstance(value, str)}
        if REQUEST_ID not in metadata:
            return None
        encoders, decoders = (tuple(filter(None, metadata.get(name, "").split(","))) for name in (ENCODERS, DECODERS))
        return cls(metadata[REQUEST_ID], encoders, decoders)


@dataclass(frozen=True, kw_only=True)
class Usage:
    """What an answer cost and what compression saved, in tokens, bytes, FLOPs and seconds (`seconds` by stage).

    `budget` is the one that was applied to each image: `64`, `0.11`, `auto`, or `auto:16..128` within bounds. `method`
    is the one that was applied. Either was chosen by the "request", or by the "policy" of the gateway where the request
    left it open. The four are empty for a question without images.
    """

    request_id: str
    prompt_tokens: int
    completion_tokens: int
    visual_tokens_in: int
    visual_tokens_kept: int
    kv_bytes_saved: int
    prefill_flops_saved: float
    wire_bytes: int
    wire_bytes_saved: int
    failovers: int
    retries: int
    cached_images: int
    cached_tokens: int
    seconds: Mapping[str, float]
    budget: str = ""
    budget_chosen_by: ChosenBy = ""
    method: str = ""
    method_chosen_by: ChosenBy = ""

    @classmethod
    def of(cls, message: gateway_pb2.Usage) -> Usage:
        converted: dict[str, Any] = {"seconds": dict(message.seconds), **_applied(message)}
        names = cls.__dataclass_fields__.keys() - converted.keys()
        return cls(**{name: getattr(message, name) for name in names}, **converted)


@dataclass(frozen=True, kw_only=True)
class Chunk:
    """A piece of an answer. The last piece has `finish_reason` ("stop" or "length"), `usage` and `route`.

    With `logprobs` there is one of `logprobs` and of `token_choices` for each of `token_ids`. A token's text may come
    with a later piece. With `explain` the first piece has `images`, one for each picture and video.

    The first piece has the `fingerprint` of the checkpoint that answers.

    `resumed` is the number of gateways that failed until now and were made up for by another one. `usage` and `route`
    are those of the last gateway; its `completion_tokens` counts the whole answer, its `seconds` only its own part.
    """

    text: str
    token_ids: tuple[int, ...] = ()
    logprobs: tuple[float, ...] = ()
    token_choices: tuple[TokenChoice, ...] = ()
    images: tuple[KeptTokens, ...] = ()
    finish_reason: str | None = None
    usage: Usage | None = None
    route: Route | None = None
    resumed: int = 0
    fingerprint: str = ""


@dataclass(frozen=True, kw_only=True)
class Answer:
    """A whole answer, with what its pieces have; see `Chunk`.

    The texts of `token_choices`, joined, are `text` in UTF-8, and go on behind it if a stop string has ended it.
    """

    text: str
    token_ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    token_choices: tuple[TokenChoice, ...]
    images: tuple[KeptTokens, ...]
    finish_reason: str
    usage: Usage
    route: Route | None
    resumed: int = 0
    fingerprint: str = ""


@dataclass(frozen=True, kw_only=True)
class TokenLogprob:
    """A token, its text, and the natural logarithm of its probability, before temperature, penalty and truncation.

    `text` is what the token adds to the answer, in UTF-8; it may end or begin within a character. It is empty for a
    special token, such as the end of the sequence.
    """

    id: int
    text: bytes
    logprob: float

    @classmethod
    def of(cls, message: types_pb2.TokenLogprob) -> TokenLogprob:
        return cls(id=message.id, text=message.text, logprob=message.logprob)


@dataclass(frozen=True, kw_only=True)
class TokenChoice:
    """A token of an answer, and the likeliest tokens at its place, likeliest first."""

    token: TokenLogprob
    top: tuple[TokenLogprob, ...]

    @classmethod
    def of(cls, message: types_pb2.TokenChoice) -> TokenChoice:
        return cls(token=TokenLogprob.of(message.token), top=tuple(TokenLogprob.of(one) for one in message.top))


@dataclass(frozen=True, kw_only=True)
class Compression:
    """The kept tokens of each picture and video of a request; for `budget` to `method_chosen_by` see `Usage`."""

    request_id: str
    fingerprint: str
    images: tuple[ImageTokens, ...]
    route: Route | None
    budget: str = ""
    budget_chosen_by: ChosenBy = ""
    method: str = ""
    method_chosen_by: ChosenBy = ""

    @classmethod
    def of(cls, message: gateway_pb2.CompressResponse, route: Route | None) -> Compression:
        return cls(
            request_id=message.request_id,
            fingerprint=message.fingerprint,
            images=tuple(ImageTokens.of(image) for image in message.images),
            route=route,
            **_applied(message),
        )
