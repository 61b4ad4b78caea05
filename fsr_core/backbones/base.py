"""The two halves of a vision-language model, as the rest of the project sees them.

A family implements both in one file and adds one row to the table in ``registry.py``. The halves share a checkpoint but
no weights: an encoder process holds no language model, a decoder process holds no vision tower.
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
    """Vision tower, projector and, if the family has one, the text side of the joint image-text space.

    Methods do not change the object. Several threads may call them.

    Attributes:
        fingerprint: of the checkpoint (see :func:`fsr_core.backbones.fingerprint`).
        info: facts about the model.
        device, dtype: device and dtype of the weights.
    """

    fingerprint: str
    info: ModelInfo
    device: torch.device
    dtype: torch.dtype

    #: Whether each of several pictures of a conversation is prepared by `preprocess_multi_image`.
    coarse_when_multi_image: bool = False

    @abstractmethod
    def preprocess(self, image: Image.Image) -> PreparedImage:
        """Prepare one picture on the CPU, exactly as the checkpoint's own processor does.

        Raises:
            ValueError: ``image`` is no PIL image, or one of its sides is zero.
        """

    def preprocess_multi_image(self, image: Image.Image) -> PreparedImage:
        """Like `preprocess`, for one of several pictures of a conversation."""
        return self.preprocess(image)

    def preprocess_video(self, frames: Sequence[Image.Image], fps: float = 2.0) -> PreparedImage:
        """Prepare a video from its frames, in order and all of one size; ``fps`` is their number per second.

        Raises:
            ValueError: the family takes pictures only; there are no frames; frames differ in size; ``fps`` is out of
                range.
        """
        raise self._takes_pictures_only()

    def video_tokens(self, frames: int, size: tuple[int, int]) -> int:
        """Number of visual tokens of a video of so many frames of `size` (width, height), before any is prepared.

        Raises:
            ValueError: the family takes pictures only, or no frames of such a shape.
        """
        raise self._takes_pictures_only()

    def _takes_pictures_only(self) -> ValueError:
        return ValueError(
            f"video: {self.info.family} takes pictures only; send frames as pictures, or use a video model"
        )

    def sufficient_side(self) -> int | None:
        """A number of pixels: how pictures are prepared whose shorter side has as many, or more, depends on their
        proportions alone, and all of them are scaled down. None if there is no such number."""
        return None

    def shown(self, size: tuple[int, int]) -> Box:
        """The region that preprocessing leaves of a picture of `size` (width, height); by default all of it."""
        return (0.0, 0.0, float(size[0]), float(size[1]))

    @abstractmethod
    def unbatch(self, inputs: Mapping[str, Any]) -> tuple[list[PreparedImage], list[PreparedImage]]:
        """The pictures and the videos of a batch from the checkpoint's own processor, `input_ids` included, in the
        order of their placeholders. If the batch does not say a picture's source size, the size is that of its pixels.

        Raises:
            ValueError: of two tensors that belong together one is missing.
        """

    @abstractmethod
    def encode_images(self, images: Sequence[PreparedImage]) -> list[ImageFeatures]:
        """Run the vision side on a batch. The result for an image does not depend on the other images.

        Raises:
            ValueError: an image was prepared for another model.
        """

    def token_counts(self, image: PreparedImage) -> list[int]:
        """Number of visual tokens of each tile or frame of a prepared image, before it is encoded; or more, if that
        only shows later."""
        return [tile.rows * tile.cols for tile in image.tiles]

    def instruction_chunks(self, instruction: str) -> int:
        """Number of the parts in which an instruction is read for its relevance; 0 if it has no influence.

        Raises:
            ValueError: the instruction has no words.
        """
        return 0

    @abstractmethod
    def encode_instructions(self, instructions: Sequence[str]) -> list[Tensor | None]:
        """Embed a batch of instructions in the joint image-text space.

        Returns:
            ``[chunks, P]`` fp32, L2-normalised, for each instruction; None for a backbone without a text side.

        Raises:
            ValueError: an instruction is blank.
        """

    @property
    def wants_instruction(self) -> bool:
        """Whether the instruction has an influence on the relevance of tokens."""
        return True

    def visual_tokens(self, image: ImageFeatures, instruction: Tensor | None) -> VisualTokens:
        """Join an image and an instruction into the input of a compressor.

        Args:
            image: from :meth:`encode_images`.
            instruction: from :meth:`encode_instructions`; None: no relevance.

        Raises:
            ValueError: the instruction and the image's joint embeddings are from different spaces.
        """
        relevance = None
        if instruction is not None:
            if image.joint is None or image.joint.shape[1] != instruction.shape[1]:
                raise ValueError("instruction: is from another joint space than the image; use one encoder for both")
            relevance = (image.joint @ instruction.T).mean(1)
        return VisualTokens(image.features, image.saliency, relevance, image.keys)

    def assemble(self, image: ImageFeatures, kept: CompressedTokens) -> KeptImage:
        """Lay kept tokens out for the language model: in raster order, each with its own position and DeepStack
        features, and a newline after the last kept token of each line."""
        index, rows = kept.index, kept.features
        positions = None if image.positions is None else image.positions[index]
        deepstack = None if image.deepstack is None else image.deepstack[:, index]
        if image.lines is not None and image.newline is not None:
            lines = image.lines[index]
            ends = lines >= 0
            ends[:-1] &= lines[:-1] != lines[1:]
            # The place of each kept token, counting the newlines before it.
            places = torch.arange(len(index), device=index.device) + ends.cumsum(0) - ends.long()
            newlines = int(ends.sum()) + (image.empty_lines if len(index) == len(image.features) else 0)
            with_newlines = image.newline.to(rows).repeat(len(index) + newlines, 1)
            with_newlines[places] = rows
            rows, source = with_newlines, index
            index = torch.full((len(rows),), -1, dtype=torch.int64, device=source.device)
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
        """The blocks of visual rows that replace an image's placeholders, one each; most families have a single one."""
        return (image,)


class LanguageDecoder(ABC):
    """The language model, its tokenizer and its chat template.

    Attributes:
        fingerprint: of the checkpoint; equal to the encoder's if both halves fit together.
        info: facts about the model.
        model: the causal language model; it takes ``inputs_embeds``.
        tokenizer: the checkpoint's tokenizer.
        eos_token_ids: token ids that end an answer.
        device, dtype: device and dtype of the weights.
    """

    fingerprint: str
    info: ModelInfo
    # One of the library's causal language models; the library does not type generate() and forward() further.
    model: PreTrainedModel | Any
    tokenizer: PreTrainedTokenizerBase
    eos_token_ids: tuple[int, ...]
    device: torch.device
    dtype: torch.dtype

    @abstractmethod
    def prompt(self, messages: Sequence[Message], images: Sequence[KeptImage] = ()) -> Prompt:
        """Apply the chat template, embed the text, and put each image's rows at the image's place.

        The prompt ends where the assistant's turn begins. If every token is kept, it equals, number for number, the
        prompt of the checkpoint's own processor and model for the same conversation.

        Raises:
            ValueError: no messages; an unknown role; an image index out of range; an image that no message refers to;
                text that holds the image placeholder; features of the wrong shape; a prompt that leaves no room for
                an answer; a conversation that the template refuses.
        """

    @abstractmethod
    def embed(self, token_ids: Tensor) -> Tensor:
        """Input embeddings ``[n, D]`` of token ids ``[n]``, as for the text of a prompt."""
