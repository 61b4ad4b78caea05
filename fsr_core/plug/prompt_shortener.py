"""Turns the batch of a processor into shorter prompts, and reports what was kept of each."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from copy import copy
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from fsr_core import overlay
from fsr_core.backbones.base import VisualEncoder
from fsr_core.backbones.features import Box, ImageFeatures, Tile
from fsr_core.backbones.language.splice import splice
from fsr_core.backbones.prompts import Prompt
from fsr_core.budget import Budget
from fsr_core.compressor import Compressor
from fsr_core.plug.prefill import Prefill
from fsr_core.plug.question_finder import QuestionFinder
from fsr_core.savings import Savings, savings
from fsr_core.spread import Spread, compress_images
from fsr_core.tokens import CompressedTokens

__all__ = ["KeptPrompt", "PromptShortener"]


@dataclass(frozen=True)
class KeptPrompt:
    """What was kept of one prompt.

    images   kept tokens of each picture or video, in the order of the placeholders
    views    token grids of each picture or video, in pixels of the model's input
    saved    tokens, KV cache, FLOPs and bytes with all visual tokens and with the kept ones
    """

    instruction: str | None
    images: tuple[CompressedTokens, ...]
    views: tuple[tuple[Tile, ...], ...]
    saved: Savings
    _shown: Callable[[int, Box, tuple[int, int]], Box] = field(repr=False)

    def picture(self, image: Image.Image | Sequence[Image.Image], number: int = 0) -> Image.Image:
        """The source picture, or the frames of the video, with the kept tokens marked; see `fsr_core.overlay`."""
        kept = self.images[number]
        pictures = [image] if isinstance(image, Image.Image) else list(image)
        size = pictures[0].size
        views = [(t.start, t.rows, t.cols, self._shown(number, t.crop, size)) for t in self.views[number]]
        plans = overlay.plans(
            views, kept.index.tolist(), kept.stage.tolist(), kept.merged_into.tolist(), self.instruction or ""
        )
        return overlay.sheet(pictures, plans)


class PromptShortener:
    """Encodes and compresses the pictures of a batch and rebuilds its prompts without the dropped tokens."""

    def __init__(
        self,
        model: Any,
        processor: Any,
        encoder: VisualEncoder,
        compressor: Compressor,
        budget: Budget,
        spread: Spread,
        instruction: str | None,
    ) -> None:
        self._model, self._encoder, self._compressor = model, encoder, compressor
        self._budget, self._spread, self._instruction = budget, spread, instruction
        config, tokenizer = model.config, processor.tokenizer
        self._image_id: int = config.image_token_id
        self._video_id: int | None = getattr(config, "video_token_id", None)
        self._visual = tuple(i for i in (self._image_id, self._video_id) if i is not None)
        self._pad: int = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
        self._multi_axis = hasattr(model.model, "rope_deltas")
        # A checkpoint for pictures only may name a video token that its tokenizer does not have.
        visual_tokens = [text for i in self._visual if (text := tokenizer.convert_ids_to_tokens(i)) is not None]
        self._finder = QuestionFinder(processor, visual_tokens)

    def changed(self, compressor: Compressor | None, budget: Budget | None) -> PromptShortener:
        """The same with another compressor, budget or both."""
        other = copy(self)
        other._compressor, other._budget = compressor or self._compressor, budget or self._budget
        return other

    def __call__(
        self, ids: Tensor, mask: Tensor | None, visual: Mapping[str, Any], instruction: str | Sequence[str] | None
    ) -> tuple[Prefill, tuple[KeptPrompt, ...]]:
        """The shorter prompts of a batch, and what was kept of each.

        Raises:
            ValueError: the placeholders do not fit the pictures, or an instruction is missing.
        """
        rows = [row[mask[i].bool()] if mask is not None else row for i, row in enumerate(ids)]
        rows = [row.cpu() for row in rows]
        images, videos = self._encoder.unbatch({**visual, "input_ids": ids})
        features = self._encoder.encode_images([*images, *videos])
        images_of_rows = self._by_row(rows, features[: len(images)], features[len(images) :])
        questions = self._questions(rows, instruction)
        embeddings: list[Tensor | None] = [None] * len(rows)
        if self._encoder.wants_instruction:
            embeddings = self._encoder.encode_instructions([question or "" for question in questions])
        flat = [
            (image, text) for row_images, text in zip(images_of_rows, embeddings, strict=True) for image in row_images
        ]
        samples = [self._encoder.visual_tokens(image, text) for image, text in flat]
        budgets = [self._budget] * len(flat)
        kept = iter(compress_images(self._compressor, [i for i, _ in flat], samples, budgets, self._spread))
        prompts, kept_prompts = [], []
        for row, row_images, question in zip(rows, images_of_rows, questions, strict=True):
            row_kept = [next(kept) for _ in row_images]
            prompts.append(self._prompt(row, row_images, row_kept))
            kept_prompts.append(self._kept_prompt(question, row_images, row_kept, prompts[-1]))
        return Prefill.of(prompts, self._pad, self._multi_axis), tuple(kept_prompts)

    def _by_row(
        self, rows: Sequence[Tensor], images: Sequence[ImageFeatures], videos: Sequence[ImageFeatures]
    ) -> list[list[ImageFeatures]]:
        """The pictures and videos of each prompt, in the order of the placeholders."""
        queues = {self._image_id: list(images), self._video_id: list(videos)}
        images_of_rows = []
        for number, row in enumerate(rows):
            row_images, at, placeholders = [], 0, row[torch.isin(row, torch.tensor(self._visual))].tolist()
            while at < len(placeholders):
                queue = queues[placeholders[at]]
                if not queue:
                    raise ValueError(
                        f"input_ids[{number}]: has placeholders for which there is no picture or video; pass all that"
                        " the processor returned"
                    )
                row_images.append(queue.pop(0))
                stop = at + self._placeholders(row_images[-1])
                if len(set(placeholders[at:stop])) != 1 or stop > len(placeholders):
                    raise ValueError(
                        f"input_ids[{number}]: its placeholders do not fit the pictures; pass unchanged what the"
                        " processor returned"
                    )
                at = stop
            images_of_rows.append(row_images)
        if any(queues.values()):
            raise ValueError(
                "input_ids: have fewer placeholders than there are pictures or videos; pass unchanged what the"
                " processor returned"
            )
        return images_of_rows

    def _block_sizes(self, image: ImageFeatures) -> list[int]:
        """Number of placeholders that the processor wrote for each block of an image.

        It is counted on the layout of all the image's tokens, with feature rows of width 0.
        """
        newline = None if image.newline is None else image.newline[:0]
        empty = replace(image, features=image.features[:, :0], newline=newline, deepstack=None)
        index = torch.arange(len(image.features), device=image.features.device)
        all_tokens = CompressedTokens(
            features=empty.features,
            index=index,
            stage=index,
            merged_into=index,
            priority=image.saliency,
            focus_count=0,
            focus_wanted=0,
        )
        return [len(block.features) for block in self._encoder.blocks(self._encoder.assemble(empty, all_tokens))]

    def _placeholders(self, image: ImageFeatures) -> int:
        return sum(self._block_sizes(image))

    def _questions(self, rows: Sequence[Tensor], given: str | Sequence[str] | None) -> list[str | None]:
        given = self._instruction if given is None else given
        if isinstance(given, str):
            given = [given] * len(rows)
        if given is not None:
            if len(given) != len(rows):
                raise ValueError(
                    f"instruction: {len(given)} given for {len(rows)} prompts; pass one for all, or one for each"
                )
            return list(given)
        if not self._encoder.wants_instruction:
            return [None] * len(rows)
        return [self._finder.find(row.tolist()) for row in rows]

    def _prompt(self, row: Tensor, images: Sequence[ImageFeatures], row_kept: Sequence[CompressedTokens]) -> Prompt:
        keep = torch.ones(len(row), dtype=torch.bool)
        placeholders = torch.isin(row, torch.tensor(self._visual)).nonzero().flatten().tolist()
        blocks, at = [], 0
        for image, kept in zip(images, row_kept, strict=True):
            image_blocks = self._encoder.blocks(self._encoder.assemble(image, kept))
            for count, block in zip(self._block_sizes(image), image_blocks, strict=True):
                keep[placeholders[at] + 1 : placeholders[at] + count] = False  # each block keeps one placeholder
                at += count
                blocks.append(block)
        table = self._model.get_input_embeddings()
        device = table.weight.device
        dtype = table.weight.dtype
        blocks = [replace(block, features=block.features.to(device, dtype)) for block in blocks]
        return splice(row[keep], blocks, self._visual, lambda ids: table(ids.to(device)), self._multi_axis)

    def _kept_prompt(
        self,
        question: str | None,
        images: Sequence[ImageFeatures],
        row_kept: Sequence[CompressedTokens],
        prompt: Prompt,
    ) -> KeptPrompt:
        info = self._encoder.info
        before = sum(self._placeholders(image) for image in images)
        deep = max((len(image.deepstack) for image in images if image.deepstack is not None), default=0)
        saved = savings(
            info.geometry,
            text_tokens=prompt.text_tokens,
            visual_before=before,
            visual_after=prompt.visual_tokens,
            wire_dtype=info.dtype,
            deepstack_layers=deep,
        )
        sizes = [image.size for image in images]

        def shown(number: int, box: Box, size: tuple[int, int]) -> Box:
            """A box of the model's input in pixels of a source picture of this size."""
            left, top, right, bottom = self._encoder.shown(size)
            across, down = (right - left) / sizes[number][0], (bottom - top) / sizes[number][1]
            return (left + box[0] * across, top + box[1] * down, left + box[2] * across, top + box[3] * down)

        return KeptPrompt(question, tuple(row_kept), tuple(image.tiles for image in images), saved, shown)
