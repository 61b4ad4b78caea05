"""The turns of a conversation, as callers write them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import inf
from typing import Any, Literal, get_args

from fsr.client.errors import InvalidRequestError
from fsr.client.media import Images, Video, image_messages
from fsr.client.media.pictures import local_path
from fsr.v1 import types_pb2

__all__ = ["Message", "Messages", "Role", "check_text", "conversation"]

Role = Literal["system", "user", "assistant"]


@dataclass(frozen=True)
class Message:
    """One turn of a conversation: who speaks, the text, and the pictures and videos that come before the text."""

    role: Role
    text: str
    images: Images = ()


#: A conversation, the user's question last. A turn may also be a dictionary {"role": ..., "content": ...}, as OpenAI's
#: API and the chat templates of transformers have it; there pictures may stand anywhere between the texts.
Messages = Sequence[Message | Mapping[str, Any]]

_ROLES: Mapping[str, types_pb2.Role.ValueType] = {
    "system": types_pb2.ROLE_SYSTEM,
    "developer": types_pb2.ROLE_SYSTEM,  # the newer name in OpenAI's API
    "user": types_pb2.ROLE_USER,
    "assistant": types_pb2.ROLE_ASSISTANT,
}
_EXAMPLE = '{"type": "text", "text": "..."} or {"type": "image", "image": "scene.png"}'
# Where a part of each type holds its picture or video, in the order in which they are looked for.
_VISUAL = {
    "image": ("image", "url", "path"),
    "image_url": ("image_url",),
    "video": ("video", "path"),
}


def conversation(messages: Messages, deadline: float = inf) -> tuple[list[types_pb2.Message], list[types_pb2.Image]]:
    """The turns, and the pictures and videos that they refer to.

    Args:
        messages: see `Messages`.
        deadline: moment of `time.monotonic()` until which URLs may be fetched.

    Raises:
        InvalidRequestError: a turn cannot be understood or a picture cannot be read; the message names it.
        DeadlineExceeded: the deadline has passed.
    """
    if isinstance(messages, str | bytes | Mapping | Message) or not isinstance(messages, Iterable):
        raise InvalidRequestError("messages: expected a list of turns: [Message('user', 'Where is the star?')]")
    turns: list[types_pb2.Message] = []
    images: list[types_pb2.Image] = []
    for i, message in enumerate(messages):
        turns.append(_turn(message, f"messages[{i}]", images, deadline))
    if not turns:
        raise InvalidRequestError("messages: is empty; end it with a question: Message('user', 'Where is the star?')")
    return turns, images


def check_text(field: str, value: object) -> str:
    """The text. Raises InvalidRequestError if it is none, or cannot be written in UTF-8."""
    if not isinstance(value, str):
        raise InvalidRequestError(f"{field}: expected a text, got {type(value).__name__}")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise InvalidRequestError(f"{field}: is no Unicode text ({error.reason}); check where it comes from") from error
    return value


def _turn(message: Any, field: str, images: list[types_pb2.Image], deadline: float) -> types_pb2.Message:
    """One turn. Its pictures join `images`."""
    if isinstance(message, Message):
        role: Any = message.role
        content: Any = message.text
        before = image_messages(message.images, f"{field}.images", deadline)
    elif isinstance(message, Mapping):
        role, content, before = message.get("role"), message.get("content"), []
    else:
        name = type(message).__name__
        raise InvalidRequestError(f"{field}: {name} is no turn; give a Message, or a dictionary with role and content")
    if not isinstance(role, str) or role not in _ROLES:
        raise InvalidRequestError(f"{field}.role: {role!r} is unknown; use {', '.join(get_args(Role))}")
    parts = [_shown(image, images) for image in before]
    if isinstance(message, Mapping) and isinstance(content, list | tuple):
        for j, part in enumerate(content):
            parts.append(_part(part, f"{field}.content[{j}]", images, deadline))
    else:
        name = "text" if isinstance(message, Message) else "content"
        parts.append(types_pb2.Part(text=check_text(f"{field}.{name}", content)))
    return types_pb2.Message(role=_ROLES[role], parts=parts)


def _part(part: Any, field: str, images: list[types_pb2.Image], deadline: float) -> types_pb2.Part:
    kind = part.get("type") if isinstance(part, Mapping) else None
    if kind == "text":
        return types_pb2.Part(text=check_text(f"{field}.text", part.get("text")))
    if not isinstance(kind, str) or kind not in _VISUAL:
        raise InvalidRequestError(f"{field}: is no part of a turn; write {_EXAMPLE}")
    source = next((part[key] for key in _VISUAL[kind] if part.get(key) is not None), None)
    if kind == "image_url" and isinstance(source, Mapping):
        source = source.get("url")
    if (
        kind == "image_url" and local_path(source) is not None
    ):  # it often comes from someone else, who may read no files
        raise InvalidRequestError(f"{field}: is no URL; a path is {{'type': 'image', 'image': path}}")
    if source is None:
        raise InvalidRequestError(f"{field}: the {kind} is missing; write {_EXAMPLE}")
    if kind == "video" and isinstance(source, Sequence) and not isinstance(source, str | bytes):
        source = Video(source)
    (image,) = image_messages([source], f"{field}.{kind}s", deadline)
    return _shown(image, images)


def _shown(image: types_pb2.Image, images: list[types_pb2.Image]) -> types_pb2.Part:
    """The part that shows an image, which joins `images`."""
    images.append(image)
    return types_pb2.Part(image=len(images) - 1)
