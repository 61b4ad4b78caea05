"""The two halves of a vision-language model, as the rest of the project sees them.

A family implements both in one file and adds one row to the table in ``registry.py``. The halves share a
checkpoint, never weights: an encoder process holds no language model, a decoder process no vision tower.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from fsr_core.backbones.data import ImageFeatures, KeptImage, Message, ModelInfo, PreparedImage, Prompt
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

    @abstractmethod
    def preprocess(self, image: Image.Image) -> PreparedImage:
        """Prepare one picture on the CPU exactly as the checkpoint's own processor does.

        Raises:
            ValueError: ``image`` is no PIL image, or has a zero side.
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

    @abstractmethod
    def visual_tokens(self, image: ImageFeatures, instruction: Tensor | None) -> VisualTokens:
        """Join an image and an instruction into what a compressor takes.

        Args:
            image: from :meth:`encode_images`.
            instruction: from :meth:`encode_instructions`; None leaves relevance out.

        Raises:
            ValueError: the instruction is from another space than the image's joint embeddings.
        """

    def assemble(self, image: ImageFeatures, kept: CompressedTokens) -> KeptImage:
        """Lay kept tokens out as the language model wants them.

        The default sends the kept rows in raster order with their original positions. A family with layout
        tokens (newlines) overrides this.
        """
        index = kept.index
        positions = None if image.positions is None else image.positions[index]
        return KeptImage(features=kept.features, index=index, positions=positions)


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
