"""What requests look like: OpenAI's fields as far as we have them, and ours under `fsr`.

Types are strict: `true` is no number, and "3" is none either. Unknown names are refused. Ranges are checked where the
request is translated, so that their messages are the same as by gRPC. The check of a list ends with its first mistake,
which is the one that the caller reads: thousands of them would take seconds.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Discriminator, Field, Tag

__all__ = [
    "AssistantMessage",
    "AutoBudget",
    "ChatOptions",
    "ChatRequest",
    "CompressRequest",
    "CompressionOptions",
    "ImagePart",
    "Part",
    "Resume",
    "StreamOptions",
    "SystemMessage",
    "TextPart",
    "UserMessage",
    "VideoPart",
    "VideoUrl",
    "VisualPart",
]


class _Request(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


class ImageUrl(_Request):
    url: str = Field(
        description="data URI of a JPEG, PNG or WebP file, data:image/png;base64,..., or an http(s) URL if the "
        "service allows its host"
    )
    detail: Literal["auto", "high"] | None = Field(
        default=None, description="without effect: a picture is always read in full; `fsr.budget` sets what it may cost"
    )


class TextPart(_Request):
    type: Literal["text"]
    text: str


class ImagePart(_Request):
    type: Literal["image_url"]
    image_url: ImageUrl


class VideoUrl(_Request):
    """A video by its frames, in one of two forms."""

    frames: Annotated[list[str], Field(fail_fast=True)] | None = Field(
        None, description="the frames in order, each as a data URI of a JPEG, PNG or WebP file"
    )
    url: str | None = Field(
        None,
        description="the frames as vLLM takes them: JPEG files in base64, separated by commas, after "
        "data:video/jpeg;base64,",
    )
    fps: float | None = Field(None, ge=1e-6, le=1e6, description="frames per second; default: 2")


class VideoPart(_Request):
    type: Literal["video_url"]
    video_url: VideoUrl


VisualPart = Annotated[ImagePart | VideoPart, Field(discriminator="type")]
Part = Annotated[TextPart | ImagePart | VideoPart, Field(discriminator="type")]


def _form(content: object) -> str:
    return "parts" if isinstance(content, list) else "text"


_Text = Annotated[
    Annotated[str, Tag("text")] | Annotated[list[TextPart], Field(fail_fast=True), Tag("parts")],
    Discriminator(_form),
]
_TextAndPictures = Annotated[
    Annotated[str, Tag("text")] | Annotated[list[Part], Field(fail_fast=True), Tag("parts")],
    Discriminator(_form),
]


class SystemMessage(_Request):
    role: Literal["system", "developer"] = Field(description="both mean the same: instructions for the whole answer")
    content: _Text


class UserMessage(_Request):
    role: Literal["user"]
    content: _TextAndPictures = Field(description="a text, or parts in order: texts and pictures")


class AssistantMessage(_Request):
    role: Literal["assistant"]
    content: _Text


Message = Annotated[SystemMessage | UserMessage | AssistantMessage, Field(discriminator="role")]


class StreamOptions(_Request):
    include_usage: bool | None = Field(default=None, description="send a last chunk with `usage`")
    include_obfuscation: Literal[False] | None = None


class AutoBudget(_Request):
    """As many tokens as the evidence asks for, within bounds."""

    min_tokens: int = Field(default=0, ge=0, lt=2**31, description="fewest tokens to keep; 0 means 1")
    max_tokens: int = Field(default=0, ge=0, lt=2**31, description="most tokens to keep; 0 means no limit")
    radius: float | None = Field(default=None, description="covering radius as a cosine distance, in [0, 2]")


def _budget(value: object) -> object:
    """Refuses what is no budget. Its range is checked later."""
    if value is None or value in ("auto", "all") or isinstance(value, dict):
        return value
    if isinstance(value, bool | str) or not isinstance(value, int | float):
        raise ValueError("is no budget; give a number of tokens such as 64, a share such as 0.11, 'auto' or 'all'")
    if isinstance(value, int) and not -(2**31) <= value < 2**31:
        raise ValueError("is out of range; to keep all tokens use 'all'")
    return value


def _option(value: object) -> object:
    """Refuses what is no value of an option."""
    for one in value if isinstance(value, list) else [value]:
        if not isinstance(one, bool | int | float | str):
            raise ValueError("is no value of an option; give a number, a text, true, false or a list of them")
    return value


Budget = Annotated[
    Annotated[int | float | Literal["auto", "all"] | None, Tag("value")] | Annotated[AutoBudget, Tag("auto")],
    Discriminator(lambda value: "auto" if isinstance(value, dict) else "value"),
    BeforeValidator(_budget),
]
Option = bool | int | float | str


class CompressionOptions(_Request):
    """How the visual tokens of each picture are compressed. What is left out, the gateway's policy decides."""

    budget: Budget = Field(
        default=None,
        description="tokens to keep (64), a share of them (0.11; 1.0 keeps all), 'all', or 'auto': as many as the "
        "evidence asks for. In JSON 1 is one token and 1.0 is all; JavaScript writes both as 1, so it says 'all'",
    )
    method: str | None = Field(default=None, description="name of the compression method; `GET /v1/models` lists them")
    options: dict[str, Annotated[Option | list[Option], BeforeValidator(_option)]] | None = Field(
        default=None, description="options of the method: {'rho': 0.7}"
    )
    spread: Literal["even", "free"] | None = Field(
        default=None,
        description="how a budget is divided among tiles or frames: evenly (default), or as the evidence asks",
    )
    explain: bool | None = Field(default=None, description="say which tokens of each picture were kept, and why")
    timeout: float | None = Field(default=None, gt=0, description="seconds that the caller waits for the whole answer")
    wire_dtype: Literal["fp32", "fp16", "bf16", "int8"] | None = Field(
        default=None, description="number format of the features; default: the gateway's own setting"
    )


class Resume(_Request):
    """What the caller has of an answer whose stream broke."""

    token_ids: Annotated[list[Annotated[int, Field(ge=0, lt=2**32)]], Field(fail_fast=True)] = Field(
        description="`fsr.token_ids` of all chunks that came, in order"
    )
    fingerprint: str | None = Field(
        default=None, description="`fsr.fingerprint` of the first chunk; another checkpoint does not go on"
    )


class ChatOptions(CompressionOptions):
    """The same, and what lets an answer go on after its connection has broken."""

    resumable: bool | None = Field(default=None, description="send with each chunk what `resume` needs")
    resume: Resume | None = Field(
        default=None, description="send only what comes after these tokens; the rest of the request stays as it was"
    )


class ChatRequest(_Request):
    """A conversation. Its last message is the user's; the text of that one guides the compression."""

    model: str | None = Field(default=None, description="may be left out if only one model is served")
    messages: Annotated[list[Message], Field(fail_fast=True)]
    max_completion_tokens: int | None = Field(
        default=None, description="most tokens of the answer; default: the decoder's"
    )
    max_tokens: int | None = Field(default=None, description="the older name of `max_completion_tokens`")
    temperature: float | None = Field(default=None, description="0 to 10; 0, the default here, is greedy decoding")
    top_p: float | None = Field(default=None, description="above 0, up to 1")
    top_k: int | None = Field(default=None, description="number of likeliest tokens to choose from; 0 or -1: all")
    repetition_penalty: float | None = Field(default=None, description="1e-6 to 10; 1 changes nothing")
    seed: int | None = Field(default=None, description="makes a sampled answer repeatable")
    stop: str | Annotated[list[str], Field(fail_fast=True)] | None = Field(
        default=None, description="at most 16 texts; the answer ends before the first of them"
    )
    logprobs: bool | None = Field(default=None, description="send the log probability of each token")
    top_logprobs: int | None = Field(
        default=None, description="with `logprobs`: likeliest tokens at each place, at most 20"
    )
    ignore_eos: bool | None = Field(default=None, description="go on after an end-of-sequence token")
    stream: bool | None = Field(default=None, description="send the answer as server-sent events")
    stream_options: StreamOptions | None = None
    fsr: ChatOptions | None = None


_Image = Annotated[
    Annotated[str, Tag("uri")] | Annotated[VisualPart, Tag("part")],
    Discriminator(lambda value: "uri" if isinstance(value, str) else "part"),
]


class CompressRequest(_Request):
    """Pictures, and the question to compress them for."""

    model: str | None = Field(default=None, description="may be left out if only one model is served")
    images: list[_Image] = Field(fail_fast=True, description="URIs of pictures, or the same parts as in a chat")
    instruction: str = Field(description="the question; not blank")
    format: Literal["json", "safetensors"] | None = Field(
        default=None, description="of the response; default: what the header Accept asks for, or else json"
    )
    features: bool | None = Field(default=None, description="send the features in a JSON response too, in base64")
    fsr: CompressionOptions | None = None
