"""What requests and responses look like: OpenAI's fields as far as we have them, and ours under `fsr`."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

__all__ = ["ChatRequest", "CompressionOptions", "ImagePart", "Message", "StreamOptions", "TextPart"]


class _Request(BaseModel):
    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)


class ImageUrl(_Request):
    url: str = Field(description="a data URI of a JPEG, PNG or WebP file")
    detail: Literal["auto", "low", "high"] | None = None


class TextPart(_Request):
    type: Literal["text"]
    text: str


class ImagePart(_Request):
    type: Literal["image_url"]
    image_url: ImageUrl


class Message(_Request):
    role: Literal["system", "user", "assistant"]
    content: str | list[Annotated[TextPart | ImagePart, Field(discriminator="type")]]


class StreamOptions(_Request):
    include_usage: bool = False


class CompressionOptions(_Request):
    """How visual tokens are compressed. What is left out, the gateway's policy decides."""

    budget: int | float | Literal["auto"] | None = None
    method: str = ""
    options: dict[str, Any] = Field(default_factory=dict)
    spread: Literal["even", "free"] = "even"
    explain: bool = False


class ChatRequest(_Request):
    model: str = ""
    messages: list[Message]
    max_tokens: int | None = None
    max_completion_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    repetition_penalty: float | None = None
    seed: int | None = None
    stop: str | list[str] | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = None
    ignore_eos: bool = False
    stream: bool = False
    stream_options: StreamOptions | None = None
    fsr: CompressionOptions = Field(default_factory=CompressionOptions)
