"""Checks a request before the gateway spends anything on it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from math import isfinite

from fsr.common.errors import Failed, InvalidRequest
from fsr.common.requests.method_options import check_options
from fsr.common.requests.names import check_name
from fsr.common.requests.sampling_limits import check_sampling
from fsr.gateway.hops.resume import check_resume
from fsr.gateway.options.settings import GatewaySettings
from fsr.v1 import gateway_pb2, types_pb2

__all__ = [
    "check_compress",
    "check_default_method",
    "check_generate",
    "check_method",
    "instruction_as_last_turn",
    "max_fields",
]

# Of a request on the wire, besides those that options bound: the sampling, the method's options and the like.
_OTHER_FIELDS = 2048
_ROLES = {types_pb2.ROLE_SYSTEM, types_pb2.ROLE_USER, types_pb2.ROLE_ASSISTANT}


def max_fields(settings: GatewaySettings) -> int:
    """The most fields of a request as protobuf counts them: two for each message and part, three for each image."""
    in_lists = 2 * settings.max_messages + 2 * settings.max_parts + 3 * settings.max_images + settings.max_frames
    return in_lists + _OTHER_FIELDS


def check_generate(request: gateway_pb2.GenerateRequest, settings: GatewaySettings) -> str:
    """Returns the instruction: the text of the last user turn. Raises InvalidRequest."""
    _check_names(request.model, request.method)
    _check_images(request.images, settings)
    instruction = _check_messages(request.messages, len(request.images), settings)
    check_sampling(request.sampling)
    _check_wire_dtype(request.wire_dtype)
    check_resume(request)
    if request.images:
        _check_budget(request.budget)
    return instruction


def check_compress(request: gateway_pb2.CompressRequest, settings: GatewaySettings) -> None:
    """Raises InvalidRequest."""
    _check_names(request.model, request.method)
    if not request.images:
        raise InvalidRequest("images: is empty; send at least one JPEG, PNG or WebP file")
    _check_images(request.images, settings)
    _check_budget(request.budget)
    _check_wire_dtype(request.wire_dtype)
    if not request.instruction.strip():
        raise InvalidRequest("instruction: is blank; ask a question")
    size = len(request.instruction.encode())
    if size > settings.max_text_bytes:
        raise InvalidRequest(f"instruction: {size} bytes of text exceed {settings.max_text_bytes}; shorten it")


def _check_names(model: str, method: types_pb2.Method) -> None:
    """Raises InvalidRequest."""
    check_name("model", model)
    check_name("method.name", method.name)
    try:
        check_options(method.options, "method.options")
    except ValueError as error:
        raise InvalidRequest(str(error)) from error


def _check_budget(budget: types_pb2.Budget) -> None:
    """Raises InvalidRequest. A budget without a kind is open: the policy chooses."""
    kind = budget.WhichOneof("kind")
    if budget.spread not in types_pb2.Spread.values():
        raise InvalidRequest(f"budget.spread: {budget.spread} is unknown; use even or free")
    if kind == "tokens" and budget.tokens < 1:
        raise InvalidRequest(f"budget.tokens: {budget.tokens} is below 1; keep at least one token")
    if kind == "keep_ratio" and not (isfinite(budget.keep_ratio) and 0 < budget.keep_ratio <= 1):
        raise InvalidRequest(f"budget.keep_ratio: {budget.keep_ratio} is outside (0, 1]; try 0.11")
    if kind == "auto":
        low, high = budget.auto.min_tokens, budget.auto.max_tokens
        if low < 0 or high < 0 or (high and low > high):
            raise InvalidRequest(f"budget.auto: {low}..{high} is no range of tokens; give min_tokens <= max_tokens")
        radius = budget.auto.radius
        if not (isfinite(radius) and 0 <= radius <= 2):
            raise InvalidRequest(f"budget.auto.radius: {radius} is outside [0, 2], the range of a cosine distance")


def _check_images(images: Sequence[types_pb2.Image], settings: GatewaySettings) -> None:
    """Raises InvalidRequest."""
    if len(images) > settings.max_images:
        remedy = "send fewer, and the frames of a video as one image"
        raise InvalidRequest(f"images: {len(images)} are more than {settings.max_images}; {remedy}")
    count = sum(len(image.frames) for image in images)
    if count > settings.max_frames:
        raise InvalidRequest(f"images: their {count} frames are more than {settings.max_frames}; send every second one")
    total = 0
    for i, image in enumerate(images):
        if image.data and image.frames:
            raise InvalidRequest(f"images[{i}]: has both data and frames; send a picture or a video")
        if not (isfinite(image.frames_per_second) and image.frames_per_second >= 0):
            raise InvalidRequest(f"images[{i}].frames_per_second: {image.frames_per_second} is no number of frames")
        for j, file in enumerate(image.frames or (image.data,)):
            field = f"images[{i}].frames[{j}]" if image.frames else f"images[{i}].data"
            if not file:
                raise InvalidRequest(f"{field}: is empty; send a JPEG, PNG or WebP file")
            if len(file) > settings.max_image_bytes:
                raise InvalidRequest(f"{field}: {len(file)} bytes exceed {settings.max_image_bytes}; scale it down")
            total += len(file)
    if total > settings.max_images_bytes:
        size = f"{total} bytes together exceed {settings.max_images_bytes}"
        raise InvalidRequest(f"images: {size}; scale them down or send fewer")


def check_method(method: types_pb2.Method, offered: Sequence[str]) -> None:
    """Raises InvalidRequest, which lists the methods, if the request names another one."""
    if method.name and offered and method.name not in offered:
        raise InvalidRequest(f"method.name: {method.name!r} is unknown; choose one of {', '.join(offered)}")


def check_default_method(method: types_pb2.Method, offered: Sequence[str]) -> None:
    """Raises Failed if no encoder has the method, which the policy has chosen: callers' own are checked before."""
    if offered and method.name not in offered:
        reason = f"the policy's default {method.name!r} is no method of this model"
        raise Failed(f"method.name: {reason}; name one of {', '.join(offered)}, and tell whoever runs the gateway")


def _check_messages(messages: Sequence[types_pb2.Message], images: int, settings: GatewaySettings) -> str:
    """Returns the instruction: the text of the last user turn. Raises InvalidRequest."""
    if not messages:
        raise InvalidRequest("messages: is empty; send at least one user turn")
    if len(messages) > settings.max_messages:
        raise InvalidRequest(f"messages: {len(messages)} are more than {settings.max_messages}; leave out the earliest")
    parts = sum(len(message.parts) for message in messages)
    if parts > settings.max_parts:
        remedy = "join texts that follow each other, or show fewer images"
        raise InvalidRequest(f"messages: their {parts} parts are more than {settings.max_parts}; {remedy}")
    if messages[-1].role != types_pb2.ROLE_USER:
        raise InvalidRequest(f"messages[{len(messages) - 1}].role: the last turn must be the user's")
    size = sum(len(part.text.encode()) for message in messages for part in message.parts)
    if size > settings.max_text_bytes:
        raise InvalidRequest(f"messages: {size} bytes of text exceed {settings.max_text_bytes}; shorten it")
    shown = set()
    for i, message in enumerate(messages):
        if message.role not in _ROLES:
            raise InvalidRequest(f"messages[{i}].role: is not set or unknown; use system, user or assistant")
        for j, part in enumerate(message.parts):
            kind = part.WhichOneof("kind")
            if kind is None:
                raise InvalidRequest(f"messages[{i}].parts[{j}]: is empty; give text or an image's index")
            if kind == "image":
                shown.add(part.image)
                if part.image >= images:
                    raise InvalidRequest(f"messages[{i}].parts[{j}].image: {part.image} of {images} images")
    unused = sorted(set(range(images)) - shown)
    if unused:
        raise InvalidRequest(f"images[{unused[0]}]: no message shows it; refer to it in messages or leave it out")
    instruction = "\n".join(part.text for part in messages[-1].parts if part.text)
    if not instruction.strip():
        raise InvalidRequest("messages: the last turn asks nothing; add a question")
    return instruction


@contextmanager
def instruction_as_last_turn() -> Iterator[None]:
    """Within this block an encoder's error about the instruction names what it was in the caller's request."""
    try:
        yield
    except InvalidRequest as error:
        if not str(error).startswith("instruction: "):
            raise
        raise InvalidRequest(f"messages: the last turn {str(error).removeprefix('instruction: ')}") from error


def _check_wire_dtype(dtype: int) -> None:
    """Raises InvalidRequest."""
    if dtype not in types_pb2.Dtype.values():
        raise InvalidRequest(f"wire_dtype: {dtype} is unknown; use fp32, fp16, bf16 or int8")
