"""A conversation in the checkpoint's own template and tokenizer, with one placeholder token for each visual block."""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import AutoTokenizer

from fsr_core.backbones.checkpoints.checkpoint import Checkpoint, read_json
from fsr_core.backbones.language.templates import ReservedTexts, chat_template
from fsr_core.backbones.prompts import ImagePart, KeptImage, Message, TextPart

__all__ = ["Chat", "stop_ids"]

_ROLES = ("system", "user", "assistant")


def stop_ids(checkpoint: Checkpoint, text_config: Any, tokenizer: Any) -> tuple[int, ...]:
    """Token ids that end an answer: those of generation_config.json, else of the config, else of the tokenizer.

    Raises ValueError if there are none.
    """
    ids = read_json(checkpoint.folder / "generation_config.json").get("eos_token_id")
    ids = getattr(text_config, "eos_token_id", None) if ids is None else ids
    ids = tokenizer.eos_token_id if ids is None else ids
    ends = tuple(ids) if isinstance(ids, list) else (ids,)
    if any(not isinstance(end, int) for end in ends):
        raise ValueError("model: names no end-of-sequence token; add eos_token_id to its generation_config.json")
    return ends


class Chat:
    """Tokenizer, chat template and the tokens that stand for pictures and videos.

    `video_token` is the template's text for a video if the config does not name its token.
    """

    def __init__(self, checkpoint: Checkpoint, video_token: str | None = None) -> None:
        try:
            self.tokenizer: Any = AutoTokenizer.from_pretrained(checkpoint.folder)
        except Exception as error:  # the library and its Rust parser raise many kinds for damaged files
            raise ValueError(f"model: the tokenizer of {checkpoint.name} cannot be read ({error})") from error
        self.template = chat_template(checkpoint, self.tokenizer)
        config = checkpoint.config
        video: Any = self.tokenizer.convert_tokens_to_ids(video_token) if video_token is not None else None
        named = (getattr(config, "image_token_id", None), getattr(config, "video_token_id", video))
        image, *videos = [(token, self.tokenizer.convert_ids_to_tokens(token)) for token in named if token is not None]
        if image[1] is None or self.tokenizer.convert_tokens_to_ids(image[1]) != image[0]:
            raise ValueError(
                f"model: the tokenizer of {checkpoint.name} has no image token {image[0]}; use the tokenizer that"
                " belongs to the checkpoint"
            )
        # A checkpoint for pictures may name a video token that its tokenizer lacks. Then it takes no videos.
        known = [(token, str(text)) for token, text in (image, *videos) if text is not None]
        self.visual_ids: tuple[int, ...] = tuple(token for token, _ in known)
        self.visual_tokens = tuple(text for _, text in known)
        self._reserved = ReservedTexts(self.tokenizer, self._rendered_texts)

    def order(self, messages: Sequence[Message], images: Sequence[KeptImage]) -> list[int]:
        """The image that each image part refers to, in the order of the messages.

        Raises ValueError that names the wrong message or image.
        """
        if not messages:
            raise ValueError("messages: is empty; send at least one user turn")
        order = []
        for turn, message in enumerate(messages):
            for part in message.parts:
                if isinstance(part, ImagePart):
                    if not 0 <= part.image < len(images):
                        raise ValueError(f"messages[{turn}]: image {part.image} is not among the {len(images)} sent")
                    order.append(part.image)
        unused = sorted(set(range(len(images))) - set(order))
        if unused:
            raise ValueError(f"images[{unused[0]}]: no message refers to it; refer to it or leave it out")
        return order

    def tokenise(
        self,
        messages: Sequence[Message],
        images: Sequence[KeptImage],
        order: Sequence[int],
        written: Sequence[str | None],
    ) -> tuple[Tensor, list[int]]:
        """Token ids [n], and the image of each placeholder, in the order of the text.

        A template may change the order of a turn's parts: pictures before videos, and both before the text. Images of
        one kind keep their order.

        Args:
            messages: the conversation.
            images: the images that its parts refer to.
            order: from :meth:`order`.
            written: the text for each image, or None for the template's single placeholder token.

        Raises ValueError that names the wrong message.
        """
        conversation = self._conversation(messages, images)
        try:
            text = self._rendered(conversation, generation=True)
        except Exception as error:  # a template refuses a conversation by raising any kind from Jinja
            raise ValueError(f"messages: the model's chat template refuses them ({error})") from error
        text, order = self._placed(text, order, [image.video for image in images], written)
        return self._ids(text), order

    def _rendered(self, conversation: list[dict[str, Any]], generation: bool) -> str:
        """The text that the template writes; with `generation` it ends where the assistant's turn begins."""
        return str(
            self.tokenizer.apply_chat_template(
                conversation, chat_template=self.template, add_generation_prompt=generation, tokenize=False
            )
        )

    def _rendered_texts(self, turns: Sequence[tuple[str, str]]) -> str:
        parts = [{"role": role, "content": [{"type": "text", "text": text}]} for role, text in turns]
        return self._rendered(parts, generation=False)

    def _conversation(self, messages: Sequence[Message], images: Sequence[KeptImage]) -> list[dict[str, Any]]:
        conversation = []
        for turn, message in enumerate(messages):
            if message.role not in _ROLES:
                raise ValueError(f"messages[{turn}].role: {message.role!r} is unknown; use system, user or assistant")
            content: list[dict[str, str]] = []
            for part in message.parts:
                if isinstance(part, ImagePart):
                    content.append({"type": "video" if images[part.image].video else "image"})
                else:
                    content.append({"type": "text", "text": part.text})
            self._check_text(message, turn)
            conversation.append({"role": message.role, "content": content})
        return conversation

    def _check_text(self, message: Message, turn: int) -> None:
        """Raises ValueError if a message's text holds a placeholder, or would make turns of its own."""
        # A template may write the parts without anything between them, so they are checked as one text.
        text = "".join(part.text for part in message.parts if isinstance(part, TextPart))
        for token in self.visual_tokens:
            if token in text:
                raise ValueError(f"messages[{turn}]: text holds {token}, which stands for an image or a video")
        reserved = self._reserved.find(text, message.role)
        if reserved is not None:
            raise ValueError(
                f"messages[{turn}]: text holds {reserved}, which only the model's chat template may write; take it out,"
                " or put a space into it"
            )

    def _placed(
        self, text: str, order: Sequence[int], videos: Sequence[bool], written: Sequence[str | None]
    ) -> tuple[str, list[int]]:
        """The text with `written` in place of the template's placeholders, and the images in the order of the text."""
        waiting = {token: deque[int]() for token in self.visual_tokens}
        for image in order:
            waiting[self.visual_tokens[-1 if videos[image] else 0]].append(image)
        placed: list[int] = []

        def place(match: re.Match[str]) -> str:
            token = match[0]
            if not waiting[token]:
                raise ValueError("messages: the model's chat template has more placeholders than there are images")
            placed.append(waiting[token].popleft())
            return written[placed[-1]] or token

        text = re.sub("|".join(map(re.escape, self.visual_tokens)), place, text)
        if any(waiting.values()):
            raise ValueError("messages: the model's chat template has no placeholder for one of the images")
        return text, placed

    def _ids(self, text: str) -> Tensor:
        # If the template writes the BOS token, the tokenizer must not add a second one.
        first = self.tokenizer.bos_token
        special = not (first and text.startswith(first))
        ids: Tensor = self.tokenizer(text, add_special_tokens=special, return_tensors="pt")["input_ids"][0]
        return ids.to(torch.int64)
