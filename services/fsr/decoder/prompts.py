"""From a request's messages and compressed tokens to a prompt of embeddings."""

from __future__ import annotations

import torch

from fsr.common.errors import InvalidRequest, Mismatch
from fsr.common.wire import codec
from fsr.v1 import decoder_pb2, types_pb2
from fsr_core.backbones import ImagePart, KeptImage, LanguageDecoder, Message, Prompt, TextPart

__all__ = ["prompt_of", "visual_rows"]

_ROLES = {types_pb2.ROLE_SYSTEM: "system", types_pb2.ROLE_USER: "user", types_pb2.ROLE_ASSISTANT: "assistant"}


def visual_rows(request: decoder_pb2.DecodeRequest) -> int:
    """Visual tokens in the prompt: each image counts as often as it is shown.

    It reads the shapes that the request states, and checks nothing.
    """
    rows = [image.features.shape[0] if image.features.shape else 0 for image in request.images]
    images = (part.image for message in request.messages for part in message.parts if part.HasField("image"))
    return sum(rows[image] for image in images if image < len(rows))


def prompt_of(request: decoder_pb2.DecodeRequest, model: LanguageDecoder) -> Prompt:
    """The prompt of a request.

    Raises:
        Mismatch: the request belongs to another checkpoint.
        InvalidRequest: something else is wrong; the message names the field.
    """
    if request.fingerprint != model.fingerprint and (request.images or request.fingerprint):
        raise Mismatch(
            f"fingerprint: the request belongs to {request.fingerprint[:12] or 'an unnamed checkpoint'}, this replica"
            f" holds {model.fingerprint[:12]}; start encoder and decoder with the same checkpoint"
        )
    images = [_kept_image(image, f"images[{i}]") for i, image in enumerate(request.images)]
    messages = []
    for turn, message in enumerate(request.messages):
        if message.role not in _ROLES:
            raise InvalidRequest(f"messages[{turn}].role: is not set; choose system, user or assistant")
        parts = [
            ImagePart(part.image) if part.WhichOneof("kind") == "image" else TextPart(part.text)
            for part in message.parts
        ]
        messages.append(Message(_ROLES[message.role], tuple(parts)))
    try:
        return model.prompt(messages, images)
    except ValueError as error:
        raise InvalidRequest(str(error)) from error


def _kept_image(image: types_pb2.CompressedImage, field: str) -> KeptImage:
    features = codec.decode(image.features, f"{field}.features")
    positions, grid, deepstack = None, None, None
    if image.positions:
        if len(image.positions) % 3 or len(image.positions) > 3 * len(features):
            raise InvalidRequest(f"{field}.positions: hold {len(image.positions)} numbers; send three a kept token")
        positions = torch.tensor(list(image.positions), dtype=torch.int64).view(-1, 3)
    if image.HasField("grid"):
        grid = (image.grid.steps, image.grid.rows, image.grid.columns)
    if image.deepstack:
        layers = [codec.decode(layer, f"{field}.deepstack[{i}]") for i, layer in enumerate(image.deepstack)]
        if any(layer.shape != features.shape for layer in layers):
            raise InvalidRequest(
                f"{field}.deepstack: each layer must have the shape of features, {list(features.shape)}"
            )
        deepstack = torch.stack(layers)
    return KeptImage(
        features=features,
        positions=positions,
        grid=grid,
        deepstack=deepstack,
        video=image.video,
        frame_seconds=tuple(image.step_seconds),
    )
