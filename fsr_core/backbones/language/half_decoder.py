"""The decoder half that all families share: a language model, its tokenizer and template, and its prompts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM
from transformers.modeling_outputs import CausalLMOutputWithPast

from fsr_core.backbones.base import LanguageDecoder
from fsr_core.backbones.checkpoints.checkpoint import Checkpoint
from fsr_core.backbones.checkpoints.model_info import model_info
from fsr_core.backbones.checkpoints.weights import Placement, load_half, materialise
from fsr_core.backbones.language.chat import Chat, stop_ids
from fsr_core.backbones.language.splice import splice
from fsr_core.backbones.prompts import KeptImage, Message, Prompt

__all__ = ["HalfDecoder", "TextForCausalLM"]


class TextForCausalLM(nn.Module):
    """A text model and its head, for families whose class in the library ties both to the vision tower.

    It is called like the library's causal language models. Extra keyword arguments go to the text model.
    """

    def __init__(self, build: Callable[[Any], Any], config: Any) -> None:
        super().__init__()
        self.config = config
        self.model = build(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)

    def get_input_embeddings(self) -> nn.Module:
        """The embedding of token ids."""
        embeddings: nn.Module = self.model.embed_tokens
        return embeddings

    def forward(self, logits_to_keep: int | Tensor = 0, **inputs: Any) -> CausalLMOutputWithPast:
        """Logits of the last `logits_to_keep` places, of all places if it is 0, or of the places [n] that it names."""
        out = self.model(**inputs)
        places = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        logits = self.lm_head(out.last_hidden_state[:, places])
        return CausalLMOutputWithPast(logits=logits, past_key_values=out.past_key_values)


class HalfDecoder(LanguageDecoder):
    """The language model of a checkpoint, without its vision tower.

    A family sets `text_model` if the library has no causal language model for its text config, `multi_axis` if its
    positions have three axes, and `video_token` if its config does not name the token that its template writes for a
    video.
    """

    text_model: Callable[[Any], Any] | None = None
    multi_axis = False
    video_token: str | None = None

    def __init__(self, checkpoint: Checkpoint, place: Placement) -> None:
        self.info = model_info(checkpoint, place.dtype, None)
        self.fingerprint = checkpoint.fingerprint
        self.device, self.dtype = place.device, place.dtype
        self.chat = Chat(checkpoint, self.video_token)
        self.tokenizer = self.chat.tokenizer
        config = checkpoint.config.text_config
        config._attn_implementation = place.attention
        self.deepstack_layers = len(getattr(checkpoint.config.vision_config, "deepstack_visual_indexes", ()))
        self.eos_token_ids = stop_ids(checkpoint, config, self.tokenizer)
        parts = load_half(checkpoint.folder, ("language", "head"), place)
        tensors = {f"model.{name}": tensor for name, tensor in parts["language"].items()}
        head = parts["head"].get("weight")
        tied = head is None and "model.embed_tokens.weight" in tensors
        if tied:
            head = tensors["model.embed_tokens.weight"]
        if head is not None:
            tensors["lm_head.weight"] = head
        self.model: Any = materialise(self._build, config, tensors, self.device, "language model")
        if tied:
            self.model.lm_head.weight = self.model.get_input_embeddings().weight

    def _build(self, config: Any) -> Any:
        text_model = type(self).text_model
        return AutoModelForCausalLM.from_config(config) if text_model is None else TextForCausalLM(text_model, config)

    def embed(self, token_ids: Tensor) -> Tensor:
        embeddings: Tensor = self.model.get_input_embeddings()(token_ids.to(self.device))
        return embeddings

    @torch.inference_mode()
    def prompt(self, messages: Sequence[Message], images: Sequence[KeptImage] = ()) -> Prompt:
        for i, image in enumerate(images):
            self._check_image(image, f"images[{i}]")
        images = [self._to_model(image) for image in images]
        order = self.chat.order(messages, images)
        written = [self.placeholder(image) for image in images]
        blocks = [self.blocks(image) for image in images]
        # A conversation may show an image many times, so the length is checked before anything is laid out. A frame
        # without tokens still takes the tokens of its time, so it counts at least one.
        places = [sum(max(1, len(block.features)) for block in of_image) for of_image in blocks]
        self._check_length(sum(places[i] for i in order), "images alone take")
        ids, order = self.chat.tokenise(messages, images, order, written)
        shown = [block for i in order for block in blocks[i]]
        self._check_length(len(ids) + sum(len(block.features) - 1 for block in shown), "prompt takes")
        return splice(ids, shown, self.chat.visual_ids, self.embed, self.multi_axis)

    def _check_length(self, tokens: int, what: str) -> None:
        if tokens >= self.info.context_length:
            raise ValueError(
                f"messages: the {what} {tokens} tokens of the model's {self.info.context_length};"
                " ask shorter, show fewer images, or lower the budget"
            )

    def placeholder(self, image: KeptImage) -> str | None:
        """The text that stands for this image, or None for the template's single placeholder."""
        return None

    def blocks(self, image: KeptImage) -> Sequence[KeptImage]:
        """The blocks of visual rows that replace this image's placeholders, one each."""
        return (image,)

    def _check_image(self, image: KeptImage, field: str) -> None:
        """Raises ValueError that names the part of the image that does not fit the model."""
        kept, width = len(image.features), self.info.feature_dim
        if image.features.dim() != 2 or image.features.shape[1] != width or kept == 0:
            raise ValueError(f"{field}.features: expected [K, {width}], got {list(image.features.shape)}")
        if image.video and len(self.chat.visual_ids) < 2:
            raise ValueError(
                f"{field}: is a video, but {self.info.family} takes pictures only; send its frames as pictures"
            )
        if self.multi_axis and (image.grid is None or image.positions is None):
            raise ValueError(f"{field}.positions: are missing; {self.info.family} places each token by (t, h, w)")
        if image.positions is not None and list(image.positions.shape) != [kept, 3]:
            raise ValueError(f"{field}.positions: expected [{kept}, 3], got {list(image.positions.shape)}")
        layers = 0 if image.deepstack is None else len(image.deepstack)
        if layers != self.deepstack_layers:
            raise ValueError(
                f"{field}.deepstack: has {layers} layers, {self.info.family} takes {self.deepstack_layers}"
            )
        if image.positions is not None and image.grid is not None and len(image.positions):
            most = image.positions.amax(0).tolist()
            if min(image.grid) < 1 or most[1] >= image.grid[1] or most[2] >= image.grid[2]:
                raise ValueError(f"{field}.positions: reach {most}, outside the grid {list(image.grid)}")
        if image.deepstack is not None and list(image.deepstack.shape[1:]) != [kept, width]:
            raise ValueError(f"{field}.deepstack: expected [J, {kept}, {width}], got {list(image.deepstack.shape)}")

    def _to_model(self, image: KeptImage) -> KeptImage:
        """The image with its features on the model's device and in its dtype."""
        deepstack = None if image.deepstack is None else image.deepstack.to(self.device, self.dtype)
        return replace(image, features=image.features.to(self.device, self.dtype), deepstack=deepstack)
