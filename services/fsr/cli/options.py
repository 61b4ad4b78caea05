"""Arguments and options that several commands share."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, TypedDict

import typer

from fsr.client.errors import InvalidRequestError
from fsr.client.media import ImageSource, Video, is_video_file, local_path
from fsr.client.requests import Budget, Spread

__all__ = [
    "DEFAULT_BUDGET",
    "SCENE",
    "AsJson",
    "BudgetText",
    "CompressionChoice",
    "Fps",
    "GatewayPort",
    "MethodName",
    "MethodOption",
    "ModelName",
    "SceneSeed",
    "SpreadName",
    "Timeout",
    "compression_choice",
    "key_values",
    "media_sources",
    "method_options",
    "parse_budget",
]

DEFAULT_BUDGET = "default"  # leaves the budget to the gateway's policy
SCENE = 1_130_582  # seed of a scene with a red star, which the examples ask about

AsJson = Annotated[bool, typer.Option("--json", help="print one JSON object")]
BudgetText = Annotated[
    str,
    typer.Option(help="budget of each picture or video: tokens (16), a share (0.11), auto, or default: the gateway's"),
]
Fps = Annotated[float | None, typer.Option(help="frames per second of the video; default 2")]
GatewayPort = Annotated[
    int, typer.Option(min=1024, max=65000, help="gateway port; the other services use the ports after it")
]
MethodName = Annotated[str, typer.Option(help="compression method; default: the gateway's")]
MethodOption = Annotated[
    list[str] | None,
    typer.Option("--option", metavar="NAME=VALUE", help="option of the method, such as rho=0.7; may be repeated"),
]
ModelName = Annotated[str, typer.Option(help="model to ask; needed if the gateway serves several")]
SceneSeed = Annotated[int, typer.Option(min=0, help="number of the scene; the default has a red star")]
SpreadName = Annotated[
    Spread,
    typer.Option(help="divide the budget evenly among tiles or frames, or freely, as the evidence asks"),
]
Timeout = Annotated[float, typer.Option(help="longest wait for the answer, in seconds")]


class CompressionChoice(TypedDict):
    """Those of the SDK's `CompressionOptions` that commands offer."""

    budget: Budget | None
    spread: Spread
    model: str
    method: str
    options: dict[str, Any]


def compression_choice(
    budget: str, spread: Spread, model: str, method: str, option: list[str] | None = None
) -> CompressionChoice:
    """The choice with its budget and the method's options parsed. Raises InvalidRequestError."""
    return {
        "budget": parse_budget(budget),
        "spread": spread,
        "model": model,
        "method": method,
        "options": method_options(option),
    }


def method_options(option: list[str] | None) -> dict[str, Any]:
    """The values of `--option`. Raises InvalidRequestError."""
    return {name: _value(text) for name, text in key_values("--option", option or []).items()}


def _value(text: str) -> Any:
    """A number, a boolean or a list as in JSON, else the text itself."""
    try:
        return json.loads(text)
    except ValueError:
        return text


def parse_budget(text: str) -> Budget | None:
    """A budget as people write it; None for the gateway's default. Raises InvalidRequestError."""
    if text == DEFAULT_BUDGET:
        return None
    if text == "auto":
        return "auto"
    try:
        return float(text) if "." in text or "e" in text.lower() else int(text)
    except ValueError as error:
        raise InvalidRequestError(f"--budget: {text!r} is not tokens (16), a share (0.11), auto or default") from error


def media_sources(given: Sequence[str | Path], fps: float | None) -> list[ImageSource]:
    """Folders and video files as videos, other files and URLs as pictures. Raises InvalidRequestError."""
    sources = [_source(one, 2.0 if fps is None else fps) for one in given]
    if fps is not None and not any(isinstance(source, Video) for source in sources):
        raise InvalidRequestError("--fps: there is no video; give a video file or a folder of frames, or leave it out")
    return sources


def _source(given: str | Path, fps: float) -> ImageSource:
    path = local_path(given)
    if path is None:  # a URL
        return given
    if path.is_dir():
        return Video.from_folder(path, fps)
    return Video.from_file(path, fps) if is_video_file(path) else path


def key_values(option: str, texts: list[str]) -> dict[str, str]:
    """`["k=v"]` as a mapping. Raises InvalidRequestError, naming the option, for a text without a name or an equals."""
    values = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not name.strip() or not equals:
            raise InvalidRequestError(f"{option}: {text!r} is no name=value; write one for each {option}")
        values[name.strip()] = value
    return values
