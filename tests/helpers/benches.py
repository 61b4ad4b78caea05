"""A tiny checkpoint of each family with everything that reads it, and conversations to test it."""

from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
import transformers
from PIL import Image
from transformers import DynamicCache

from fsr_core import create
from fsr_core.backbones import ImagePart, Message, TextPart, load_decoder, load_encoder
from fsr_core.backbones.vision.pixels import tower_pixels
from fsr_core.plug.prefill import Prefill
from fsr_core.spread import compress_images
from helpers import checkpoints

SIZES = ((70, 50), (40, 90))
QUESTION = "what colour is the star?"
ALL = 10**6


def picture(size, seed=0):
    noise = torch.Generator().manual_seed(seed)
    pixels = torch.randint(256, (size[1], size[0], 3), dtype=torch.uint8, generator=noise)
    return Image.fromarray(pixels.numpy())


def chat(bench, *turns):
    """Turns of (role, text, picture or frames, ...) as our messages, as inputs from the library's processor, and their
    pictures and videos. Our messages number the pictures before the videos."""
    ours, theirs, pictures, videos = [], [], [], []
    still = sum(isinstance(part, Image.Image) for _, *parts in turns for part in parts)
    for role, *parts in turns:
        ours_parts, content = [], []
        for part in parts:
            if isinstance(part, str):
                ours_parts.append(TextPart(part))
                content.append({"type": "text", "text": part})
            else:
                kind = "video" if isinstance(part, list) else "image"
                ours_parts.append(ImagePart(still + len(videos) if kind == "video" else len(pictures)))
                content.append({"type": kind})
                (videos if kind == "video" else pictures).append(part)
        ours.append(Message(role, tuple(ours_parts)))
        theirs.append({"role": role, "content": content})
    text = bench.processor.apply_chat_template(theirs, add_generation_prompt=True)
    films = {"videos": videos} if videos else {}
    # All pictures belong to one conversation, as with the processor's own chat template.
    inputs = bench.processor(images=[pictures] if pictures else None, text=[text], return_tensors="pt", **films)
    return ours, inputs, pictures, videos


def shown(bench, pictures, videos=(), budget=ALL, spread="even", fps=2.0):
    """Features, kept tokens and laid-out images from our encoder half."""
    encoder = bench.encoder
    prepare = encoder.preprocess_multi_image if len(pictures) > 1 else encoder.preprocess
    prepared = [prepare(p) for p in pictures] + [encoder.preprocess_video(v, fps) for v in videos]
    images = encoder.encode_images(prepared)
    samples = [encoder.visual_tokens(image, None) for image in images]
    kept = compress_images(create("fsr"), images, samples, [budget] * len(images), spread)
    return images, kept, [encoder.assemble(image, k) for image, k in zip(images, kept, strict=True)]


def pixels_of(prepared):
    """The pixels of a prepared image as the library's processor gives them."""
    pixels = prepared.inputs["pixel_values"]
    views = tower_pixels([prepared], torch.device("cpu"))
    return views[0] if pixels.dim() == 3 else views


def prefill(decoder, prompt):
    """A batch of this prompt alone, as a live model gets it."""
    return Prefill.of([prompt], decoder.eos_token_ids[0], decoder.multi_axis)


def continue_greedily(decoder, prompt, steps):
    """The decoder half's answer, token by token from a cache."""
    cache, ids, batch = DynamicCache(config=decoder.model.config), [], prefill(decoder, prompt)
    embeds = batch.embeds
    with torch.inference_mode():
        for _ in range(steps):
            inputs = batch.inputs({"inputs_embeds": embeds, "past_key_values": cache})
            logits = decoder.model(**inputs, use_cache=True, logits_to_keep=1).logits[0, -1]
            ids.append(int(logits.argmax()))
            if ids[-1] in decoder.eos_token_ids:
                break
            embeds = decoder.embed(torch.tensor([ids[-1:]]))
    return ids


@dataclass
class Bench:
    """A family's checkpoint and processor; its two halves and the library's model are loaded on first use."""

    name: str
    folder: Path
    processor: Any
    options: dict[str, Any] = field(default_factory=dict)

    @property
    def clip(self):
        return "none" if self.name.startswith("llava") else None

    @cached_property
    def encoder(self):
        return load_encoder(str(self.folder), clip=self.clip)

    @cached_property
    def decoder(self):
        return load_decoder(str(self.folder))

    @cached_property
    def whole(self):
        kind = getattr(transformers, checkpoints.CLASSES[self.name])
        return kind.from_pretrained(self.folder, dtype=torch.float32).eval()
