"""LLaVA-1.5: CLIP vision tower, MLP projector, one language model; relevance from CLIP's own text tower."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F
from transformers import AutoImageProcessor, AutoModelForCausalLM, AutoProcessor, CLIPVisionModel
from transformers.models.llava.modeling_llava import LlavaMultiModalProjector

from fsr_core.backbones.base import LanguageDecoder, VisualEncoder
from fsr_core.backbones.checkpoint import Checkpoint, materialise
from fsr_core.backbones.clip_text import ClipText, known_clip
from fsr_core.backbones.data import (
    Box,
    ImageFeatures,
    ImagePart,
    KeptImage,
    Message,
    ModelInfo,
    PreparedImage,
    Prompt,
    Tile,
    dtype_name,
)
from fsr_core.savings import DTYPE_BYTES, Geometry
from fsr_core.tokens import VisualTokens

__all__ = ["LlavaDecoder", "LlavaEncoder"]

# Checkpoints in the wild name the same tensors in two ways, with and without a leading "model.".
_VISION = re.compile(r"^(?:model\.)?vision_tower\.(?:vision_model\.)?(.+)$")
_PROJECTOR = re.compile(r"^(?:model\.)?multi_modal_projector\.(.+)$")
_HEAD = re.compile(r"^(?:language_model\.)?lm_head\.(.+)$")
_LANGUAGE = re.compile(r"^(?:model\.)?language_model\.(?:model\.)?(.+)$")


def _info(checkpoint: Checkpoint, dtype: torch.dtype) -> ModelInfo:
    config = checkpoint.config
    vision, text = config.vision_config, config.text_config
    tokens = (vision.image_size // vision.patch_size) ** 2
    if config.vision_feature_select_strategy != "default":
        raise ValueError(
            f"model: vision_feature_select_strategy {config.vision_feature_select_strategy!r} is not supported;"
            " features must be patches without CLS ('default')"
        )
    if not isinstance(config.vision_feature_layer, int):
        raise ValueError("model: vision_feature_layer is a list; only checkpoints that read one layer are supported")
    name = dtype_name(dtype)
    return ModelInfo(
        name=checkpoint.name,
        family="llava",
        feature_dim=text.hidden_size,
        visual_tokens=tokens,
        dtype=name,
        context_length=text.max_position_embeddings,
        geometry=Geometry.from_config(text, dtype_bytes=DTYPE_BYTES[name]),
    )


class LlavaEncoder(VisualEncoder):
    """Vision tower without the blocks that LLaVA does not read, projector, and CLIP's text tower."""

    def __init__(
        self, checkpoint: Checkpoint, clip: str | None, device: torch.device, dtype: torch.dtype, attention: str
    ) -> None:
        self.info = _info(checkpoint, dtype)
        self.fingerprint = checkpoint.fingerprint
        self.device, self.dtype = device, dtype
        config = checkpoint.config.vision_config
        depth = config.num_hidden_layers
        layer = checkpoint.config.vision_feature_layer
        self._read = layer if layer >= 0 else depth + 1 + layer  # index into hidden states; 0 is the embeddings
        self._salient = depth - 2  # the second-last block, as the peers take it
        blocks = max(self._read, self._salient + 1)

        def vision(stored: str) -> str | None:
            found = _VISION.match(stored)
            if found is None or found[1] == "embeddings.position_ids":
                return None
            block = re.match(r"encoder\.layers\.(\d+)\.", found[1])
            return None if block and int(block[1]) >= blocks else found[1]

        def projector(stored: str) -> str | None:
            found = _PROJECTOR.match(stored)
            return found[1] if found else None

        config.num_hidden_layers = blocks
        config._attn_implementation = attention
        self.tower = materialise(CLIPVisionModel, config, checkpoint.tensors(vision, dtype, device), device)
        with torch.device("meta"):
            self.projector = LlavaMultiModalProjector(checkpoint.config)
        self.projector.load_state_dict(checkpoint.tensors(projector, dtype, device), assign=True)
        self.projector.eval().requires_grad_(False)
        self.clip = None if clip == "none" else ClipText(clip or known_clip(checkpoint), device, dtype)
        self.processor = AutoImageProcessor.from_pretrained(checkpoint.folder)
        side = config.image_size // config.patch_size
        self._grid = (side, side)

    @classmethod
    def load(
        cls, checkpoint: Checkpoint, *, clip: str | None, device: str | torch.device, dtype: torch.dtype, attention: str
    ) -> LlavaEncoder:
        return cls(checkpoint, clip, torch.device(device), dtype, attention)

    def preprocess(self, image: Image.Image) -> PreparedImage:
        if not isinstance(image, Image.Image) or 0 in image.size:
            raise ValueError("image: expected a PIL image with at least one pixel")
        pixels = self.processor(images=image.convert("RGB"), return_tensors="pt")["pixel_values"][0]
        tile = Tile(0, *self._grid, crop=self._crop(image.size))
        return PreparedImage({"pixel_values": pixels}, (tile,), image.size)

    def _crop(self, size: tuple[int, int]) -> Box:
        """What the processor's resize and centre crop leave of a picture, in the picture's own pixels."""
        width, height = size
        shortest = getattr(self.processor.size, "shortest_edge", None) or dict(self.processor.size).get("shortest_edge")
        if not (self.processor.do_center_crop and shortest):
            return (0.0, 0.0, float(width), float(height))
        scale = min(size) / shortest
        across, down = self.processor.crop_size["width"] * scale, self.processor.crop_size["height"] * scale
        left, top = (width - across) / 2, (height - down) / 2
        return (left, top, left + across, top + down)

    @torch.inference_mode()
    def encode_images(self, images: Sequence[PreparedImage]) -> list[ImageFeatures]:
        if not images:
            return []
        if any("pixel_values" not in image.inputs for image in images):
            raise ValueError("images: prepared for another model; use this encoder's preprocess()")
        pixels = torch.stack([image.inputs["pixel_values"] for image in images]).to(self.device, self.dtype)
        states = self.tower(pixels, output_hidden_states=True).hidden_states
        saliency = self._cls_attention(states[self._salient])
        features = self.projector(states[self._read][:, 1:])
        joint: Sequence[Tensor | None] = [None] * len(images)
        if self.clip is not None:
            inner = getattr(self.tower, "vision_model", self.tower)
            patches = inner.post_layernorm(states[self._salient + 1][:, 1:])
            joint = list(F.normalize((patches @ self.clip.visual_projection.T).float(), dim=-1))
        return [
            ImageFeatures(own, seen, near, None, None, image.tiles, image.size)
            for own, seen, near, image in zip(features, saliency, joint, images, strict=True)
        ]

    def _cls_attention(self, hidden: Tensor) -> Tensor:
        """Attention of CLS to each patch in the block that reads `hidden` [B, 1 + N, D], mean over heads: [B, N] fp32.

        One row per head is all that is computed, so the tower keeps its fast attention (eq. 1).
        """
        block = getattr(self.tower, "vision_model", self.tower).encoder.layers[self._salient]
        attention, normed = block.self_attn, block.layer_norm1(hidden)
        heads, width = attention.num_heads, attention.head_dim
        query = attention.q_proj(normed[:, :1]).unflatten(2, (heads, width)).transpose(1, 2)
        keys = attention.k_proj(normed).unflatten(2, (heads, width)).transpose(1, 2)
        scores = (query @ keys.transpose(2, 3)).float() * attention.scale
        return scores.softmax(-1).mean(1)[:, 0, 1:]

    def encode_instructions(self, instructions: Sequence[str]) -> list[Tensor | None]:
        if any(not text.strip() for text in instructions):
            raise ValueError("instruction: is blank; ask a question")
        if self.clip is None or not instructions:
            return [None] * len(instructions)
        return list(self.clip.embed(instructions))

    def visual_tokens(self, image: ImageFeatures, instruction: Tensor | None) -> VisualTokens:
        relevance = None
        if instruction is not None:
            if image.joint is None or image.joint.shape[1] != instruction.shape[1]:
                raise ValueError("instruction: is from another joint space than the image; use one encoder for both")
            relevance = (image.joint @ instruction.T).mean(1)
        return VisualTokens(image.features, image.saliency, relevance, image.keys)


class LlavaDecoder(LanguageDecoder):
    """The language model of a LLaVA; kept tokens take contiguous positions, as the class's own tokens do."""

    def __init__(self, checkpoint: Checkpoint, device: torch.device, dtype: torch.dtype, attention: str) -> None:
        self.info = _info(checkpoint, dtype)
        self.fingerprint = checkpoint.fingerprint
        self.device, self.dtype = device, dtype
        config = checkpoint.config.text_config

        def language(stored: str) -> str | None:
            head = _HEAD.match(stored)
            if head:
                return f"lm_head.{head[1]}"
            found = _LANGUAGE.match(stored)
            return f"model.{found[1]}" if found else None

        config._attn_implementation = attention
        tensors = checkpoint.tensors(language, dtype, device)
        tied = "lm_head.weight" not in tensors
        if tied:
            tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"]
        self.model: Any = materialise(AutoModelForCausalLM.from_config, config, tensors, device)
        if tied:
            self.model.lm_head.weight = self.model.get_input_embeddings().weight
        self.processor = AutoProcessor.from_pretrained(checkpoint.folder)
        self.tokenizer = self.processor.tokenizer
        self.image_token_id: int = checkpoint.config.image_token_id
        self.image_token = str(self.tokenizer.convert_ids_to_tokens(self.image_token_id))
        ends = getattr(config, "eos_token_id", None)
        ends = self.tokenizer.eos_token_id if ends is None else ends
        self.eos_token_ids = tuple(ends) if isinstance(ends, list) else (ends,)

    @classmethod
    def load(
        cls, checkpoint: Checkpoint, *, device: str | torch.device, dtype: torch.dtype, attention: str
    ) -> LlavaDecoder:
        return cls(checkpoint, torch.device(device), dtype, attention)

    def embed(self, token_ids: Tensor) -> Tensor:
        embeddings: Tensor = self.model.get_input_embeddings()(token_ids.to(self.device))
        return embeddings

    @torch.inference_mode()
    def prompt(self, messages: Sequence[Message], images: Sequence[KeptImage] = ()) -> Prompt:
        ids, order = self._tokenise(messages, len(images))
        rows = []
        for number in order:
            features = images[number].features
            if features.dim() != 2 or features.shape[1] != self.info.feature_dim or len(features) == 0:
                shape = list(features.shape)
                raise ValueError(f"images[{number}].features: expected [K, {self.info.feature_dim}], got {shape}")
            rows.append(features.to(self.device, self.dtype))
        places = (ids == self.image_token_id).nonzero().flatten().tolist()
        embeds, spread = self.embed(ids), []
        pieces, at = [], 0
        for place, seen in zip(places, rows, strict=True):
            pieces += [embeds[at:place], seen]
            spread += [ids[at:place], torch.full((len(seen),), self.image_token_id)]
            at = place + 1
        token_ids = torch.cat([*spread, ids[at:]])
        if len(token_ids) >= self.info.context_length:
            raise ValueError(
                f"messages: the prompt takes {len(token_ids)} tokens of the model's {self.info.context_length};"
                " ask shorter, or lower the budget"
            )
        return Prompt(torch.cat([*pieces, embeds[at:]]), token_ids, token_ids == self.image_token_id, None)

    def _tokenise(self, messages: Sequence[Message], images: int) -> tuple[Tensor, list[int]]:
        """Token ids with one image token where an image stands, and which image stands at each of them."""
        if not messages:
            raise ValueError("messages: is empty; send at least one user turn")
        conversation, order = [], []
        for turn, message in enumerate(messages):
            if message.role not in ("system", "user", "assistant"):
                raise ValueError(f"messages[{turn}].role: {message.role!r} is unknown; use system, user or assistant")
            content = []
            for part in message.parts:
                if isinstance(part, ImagePart):
                    if not 0 <= part.image < images:
                        raise ValueError(f"messages[{turn}]: image {part.image} is not among the {images} sent")
                    order.append(part.image)
                    content.append({"type": "image"})
                elif self.image_token in part.text:
                    raise ValueError(f"messages[{turn}]: text holds {self.image_token}, which stands for an image")
                else:
                    content.append({"type": "text", "text": part.text})
            conversation.append({"role": message.role, "content": content})
        unused = sorted(set(range(images)) - set(order))
        if unused:
            raise ValueError(f"images[{unused[0]}]: no message refers to it; refer to it or leave it out")
        text = self.processor.apply_chat_template(conversation, add_generation_prompt=True, tokenize=False)
        return self.tokenizer(text, return_tensors="pt")["input_ids"][0], order
