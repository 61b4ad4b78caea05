"""What responses look like, for /openapi.json. Tests hold real responses against it."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

__all__ = ["ChatAnswer", "ChatChunk", "Compression", "Error", "ModelList", "ServedModel", "Status"]


class _Response(BaseModel):
    model_config = ConfigDict(extra="forbid")


class ErrorFacts(_Response):
    message: str = Field(description="names the field and the remedy")
    type: str
    param: str | None = Field(description="the field of the request that is wrong")
    code: str | None


class Error(_Response):
    """OpenAI's error object."""

    error: ErrorFacts


class Bounds(_Response):
    min_tokens: int | None = None
    max_tokens: int | None = None
    radius: float | None = None


class Applied(_Response):
    budget: int | float | str | Bounds | None = Field(description="what was applied; null without images")
    spread: Literal["even", "free"] | None
    budget_chosen_by: Literal["request", "policy"] | None
    method: str | None
    method_chosen_by: Literal["request", "policy"] | None


class FsrUsage(Applied):
    """What the answer took, and what compression saved: differences to the same prompt with all visual tokens."""

    request_id: str
    prompt_tokens: int
    completion_tokens: int
    visual_tokens_in: int = Field(description="of all images, before compression")
    visual_tokens_kept: int
    kv_bytes_saved: int
    prefill_flops_saved: float
    wire_bytes_saved: int
    wire_bytes: int
    seconds: dict[str, float] = Field(
        description="by stage: encode, compress, ship, queue, prefill, decode, ttft, total"
    )
    failovers: int
    retries: int
    cached_images: int
    cached_tokens: int


class PromptDetails(_Response):
    cached_tokens: int


class Usage(_Response):
    prompt_tokens: int = Field(description="kept visual tokens included")
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptDetails
    fsr: FsrUsage


class TokenLogprob(_Response):
    token: str
    logprob: float
    bytes: list[int]


class TokenChoice(TokenLogprob):
    top_logprobs: list[TokenLogprob]


class Logprobs(_Response):
    content: list[TokenChoice]
    refusal: None


class AnswerMessage(_Response):
    role: Literal["assistant"]
    content: str
    refusal: None


class Choice(_Response):
    index: int
    message: AnswerMessage
    logprobs: Logprobs | None
    finish_reason: Literal["stop", "length"]


class Delta(_Response):
    role: Literal["assistant"] | None = Field(None, description="in the first chunk")
    content: str


class ChunkChoice(_Response):
    index: int
    delta: Delta
    logprobs: Logprobs | None
    finish_reason: Literal["stop", "length"] | None = Field(description="in the last chunk with a choice")


class Image(_Response):
    """Which tokens of an image were kept. All indices are of tokens before compression, from 0."""

    index: list[int] = Field(description="the kept tokens, ascending")
    source_tokens: int
    focus_count: int
    focus_wanted: int
    merged_count: int
    video: bool
    step_seconds: list[float]
    explanation: dict[str, Any] | None = Field(
        None,
        description="stage of each kept token (0 focus, 1 scan), merged_into and priority of each source token, and "
        "the grids that the tokens lie in: rows, columns, crop, views",
    )


class Extras(_Response):
    images: list[Image] | None = Field(None, description="with `fsr.explain`")
    token_ids: list[int] | None = Field(None, description="with `fsr.resumable`: ids of the tokens of this response")
    fingerprint: str | None = Field(None, description="with `fsr.resumable`: of the checkpoint that answers")


class ChatAnswer(_Response):
    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    choices: list[Choice]
    usage: Usage
    fsr: Extras | None = Field(None, description="with `fsr.explain` or `fsr.resumable`")


class ChatChunk(_Response):
    """The data of a server-sent event. The last event is `[DONE]`."""

    id: str
    object: Literal["chat.completion.chunk"]
    created: int
    model: str
    choices: list[ChunkChoice]
    usage: Usage | None = Field(None, description="in the last chunk, if the request has stream_options.include_usage")
    fsr: Extras | None = Field(
        None,
        description="with `fsr.explain`: `images` in the first chunk; with `fsr.resumable`: `token_ids`, and "
        "`fingerprint` in the first chunk",
    )


class Tensor(_Response):
    dtype: Literal["fp32", "fp16", "bf16", "int8"]
    shape: list[int]
    data: str = Field(description="base64 of little-endian numbers in row-major order")
    scales: str = Field(description="for int8: base64 of an fp32 scale for each row")


class CompressedImage(Image):
    features: Tensor | None = Field(None, description="[rows, D]; this and what follows with `features` alone")
    newlines: list[int] | None = Field(None, description="rows of features that are newlines")
    source_newlines: int | None = None
    positions: list[int] | None = Field(None, description="time, row and column of each kept token")
    grid: dict[str, int] | None = None
    deepstack: list[Tensor] | None = None


class Compression(Applied):
    object: Literal["compression"]
    model: str
    request_id: str
    fingerprint: str = Field(description="of the checkpoint")
    images: list[CompressedImage]


class Policy(_Response):
    default_budget: int | float | str | Bounds | None
    default_method: str
    default_options: dict[str, Any] = Field(description="of that method")
    min_tokens: int | None
    max_tokens: int | None


class ModelFacts(_Response):
    methods: list[str]
    encoders: int = Field(description="that answer")
    decoders: int = Field(description="that answer and hold the same checkpoint")
    policy: Policy = Field(description="what applies to the caller's requests")


class ServedModel(_Response):
    id: str
    object: Literal["model"]
    created: int = Field(description="0: a checkpoint has no date")
    owned_by: str
    fsr: ModelFacts


class ModelList(_Response):
    object: Literal["list"]
    data: list[ServedModel]


class Status(_Response):
    status: str
