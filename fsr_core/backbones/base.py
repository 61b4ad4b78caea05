"""The two halves of a vision-language model, as the rest of the project sees them.

A family implements both in one file and adds one row to the table in ``registry.py``. The halves share a
checkpoint, never weights: an encoder process holds no language model, a decoder process no vision tower.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from fsr_core.backbones.checkpoints.model_info import ModelInfo
from fsr_core.backbones.features import Box, ImageFeatures, PreparedImage
from fsr_core.backbones.prompts import KeptImage, Message, Prompt
from fsr_core.tokens import CompressedTokens, VisualTokens


class VisualEncoder(ABC):
    """Vision tower, projector and (where the family has one) text side of the joint image-text space.

    Methods do not change the object, and may be called from several threads.

    Attributes:
        fingerprint: of the checkpoint (see :func:`fsr_core.backbones.fingerprint`).
        info: the model's figures.
        device, dtype: where and in which dtype the weights are.
    """

    fingerprint: str
    info: ModelInfo
    device: torch.device
    dtype: torch.dtype

    #: Whether a picture that shares its conversation with others is prepared by `preprocess_multi_image` instead.
    coarse_when_multi_image: bool = False

    @abstractmethod
    def preprocess(self, image: Image.Image) -> PreparedImage:
        """Prepare one picture on the CPU exactly as the checkpoint's own processor does.

        Raises:
            ValueError: ``image`` is no PIL image, or has a zero side.
        """

    def preprocess_multi_image(self, image: Image.Image) -> PreparedImage:
        """As `preprocess`, for one of several pictures of a conversation."""
        return self.preprocess(image)

    def preprocess_video(self, frames: Sequence[Image.Image], fps: float = 2.0) -> PreparedImage:
        """Prepare a video, given as its frames in order, all of one size; ``fps`` is how many of them a second has.

        Raises:
            ValueError: the family takes pictures only; there are no frames; they differ in size; ``fps`` is not
                positive.
        """
        raise ValueError(
            f"video: {self.info.family} takes pictures only; send frames as pictures, or use a video model"
        )

    def shown(self, size: tuple[int, int]) -> Box:
        """The region of a picture of `size` (width, height) that preprocessing leaves; all of it by default."""
        return (0.0, 0.0, float(size[0]), float(size[1]))

    @abstractmethod
    def unbatch(self, inputs: Mapping[str, Any]) -> tuple[list[PreparedImage], list[PreparedImage]]:
        """Pictures and videos of a batch that the checkpoint's own processor prepared, in the order of their
        placeholders. The source size of a picture is not always known there: it is then that of its pixels.

        Raises:
            ValueError: tensors that belong together are not both there.
        """

    @abstractmethod
    def encode_images(self, images: Sequence[PreparedImage]) -> list[ImageFeatures]:
        """Run the vision side on a batch; what one image gives does not depend on the others.

        Raises:
            ValueError: an image was prepared for another model.
        """

    @abstractmethod
    def encode_instructions(self, instructions: Sequence[str]) -> list[Tensor | None]:
        """Embed instructions in the joint image-text space, as one batch.

        Returns:
            For each instruction ``[chunks, P]`` fp32, L2-normalised; None for a backbone without a text side.

        Raises:
            ValueError: an instruction is blank.
        """

    @property
    def wants_instruction(self) -> bool:
        """Whether the instruction has any influence on what is kept."""
        return True

    def visual_tokens(self, image: ImageFeatures, instruction: Tensor | None) -> VisualTokens:
        """Join an image and an instruction into what a compressor takes.

        Args:
            image: from :meth:`encode_images`.
            instruction: from :meth:`encode_instructions`; None leaves relevance out.

        Raises:
            ValueError: the instruction is from another space than the image's joint embeddings.
        """
        relevance = None
        if instruction is not None:
            if image.joint is None or image.joint.shape[1] != instruction.shape[1]:
                raise ValueError("instruction: is from another joint space than the image; use one encoder for both")
            relevance = (image.joint @ instruction.T).mean(1)
        return VisualTokens(image.features, image.saliency, relevance, image.keys)

    def assemble(self, image: ImageFeatures, kept: CompressedTokens) -> KeptImage:
        """Lay kept tokens out as the language model wants them: in raster order, each with its own position and
        DeepStack features, and a newline after the last kept token of each line."""
        index, rows = kept.index, kept.features
        positions = None if image.positions is None else image.positions[index]
        deepstack = None if image.deepstack is None else image.deepstack[:, index]
        if image.lines is not None and image.newline is not None:
            lines = image.lines[index]
            ends = lines >= 0
            ends[:-1] &= lines[:-1] != lines[1:]
            # Where each kept token goes once the newlines before it are counted.
            places = torch.arange(len(index), device=index.device) + ends.cumsum(0) - ends.long()
            laid = image.newline.to(rows).repeat(len(index) + int(ends.sum()), 1)
            laid[places] = rows
            rows, source = laid, index
            index = torch.full((len(laid),), -1, dtype=torch.int64, device=source.device)
            index[places] = source
        return KeptImage(
            features=rows,
            index=index,
            positions=positions,
            grid=image.grid,
            deepstack=deepstack,
            video=image.video,
            frame_seconds=image.frame_seconds,
        )

    def blocks(self, image: KeptImage) -> Sequence[KeptImage]:
        """The stretches of visual rows that stand at an image's placeholders, one each; most families have one."""
        return (image,)


class LanguageDecoder(ABC):
    """The language model, its tokenizer and its chat template.

    Attributes:
        fingerprint: of the checkpoint; equal to the encoder's when both halves fit together.
        info: the model's figures.
        model: the causal language model, which takes ``inputs_embeds``.
        tokenizer: the checkpoint's.
        eos_token_ids: ids that end an answer.
        device, dtype: where and in which dtype the weights are.
    """

    fingerprint: str
    info: ModelInfo
    # Any of the library's causal language models; its generate() and forward() are not typed further there.
    model: PreTrainedModel | Any
    tokenizer: PreTrainedTokenizerBase
    eos_token_ids: tuple[int, ...]
    device: torch.device
    dtype: torch.dtype

    @abstractmethod
    def prompt(self, messages: Sequence[Message], images: Sequence[KeptImage] = ()) -> Prompt:
        """Apply the chat template, embed the text, and splice each image's rows in where the image stood.

        With every token kept the result is, number for number, what the checkpoint's own processor and model
        would lay out for the same conversation, ready for the assistant's turn.

        Raises:
            ValueError: no messages; an unknown role; an image index out of range; an image that no message
                refers to; text that holds the image placeholder; features of the wrong shape; a prompt that
                leaves no room for an answer; a conversation that the template refuses.
        """

    @abstractmethod
    def embed(self, token_ids: Tensor) -> Tensor:
        """``[n]`` token ids to ``[n, D]`` input embeddings, as for the text of a prompt."""
