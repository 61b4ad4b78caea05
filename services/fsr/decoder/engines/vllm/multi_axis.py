"""A model for vLLM whose visual tokens and their positions come with the prompt: Qwen2-VL, Qwen2.5-VL, Qwen3-VL.

vLLM's own classes of these families compute visual tokens from pixels, and positions from the grid of the whole
picture. Here a picture or video was encoded and compressed elsewhere. Its multi-modal item (see
:mod:`fsr.decoder.engines.vllm.visual_items`) holds

* ``rows``: ``[K, D * (1 + J)]`` the visual tokens, and beside them what the first ``J`` blocks add (DeepStack);
* ``positions``: ``[K, 3]`` and ``jumps``: ``[m, 2]``, from which the positions of the whole prompt follow.

The blocks are those of vLLM's text models. DeepStack needs no buffers: a row of a prompt is as wide as a row of an item
all the way into the compiled model, and text has zeros there. So it reaches no other request, also under CUDA graphs.

vLLM's classes of these families are no base for it: their modules import torchvision.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from vllm.compilation.decorators import support_torch_compile
from vllm.config import VllmConfig
from vllm.inputs import mm_input
from vllm.model_executor.layers.logits_processor import LogitsProcessor
from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead
from vllm.model_executor.models.interfaces import SupportsMRoPE, SupportsMultiModal
from vllm.model_executor.models.qwen2 import Qwen2Model
from vllm.model_executor.models.qwen3 import Qwen3Model
from vllm.model_executor.models.utils import AutoWeightsLoader, maybe_prefix
from vllm.multimodal import MULTIMODAL_REGISTRY
from vllm.multimodal.inputs import MultiModalFeatureSpec, MultiModalKwargsItems
from vllm.multimodal.processing import BaseDummyInputsBuilder, BaseMultiModalProcessor, BaseProcessingInfo
from vllm.sequence import IntermediateTensors

from fsr.decoder.engines.vllm.families import MULTI_AXIS
from fsr.decoder.engines.vllm.visual_items import Placed, positions_of

__all__ = ["MODALITY", "TEXT_MODELS", "MultiAxisForCausalLM"]

#: Items of pictures and videos are the same to this model. vLLM knows the name.
MODALITY = "image"


@support_torch_compile(
    dynamic_arg_dims={"input_ids": 0, "positions": -1, "intermediate_tensors": 0, "inputs_embeds": 0}
)
class DeepStackModel(Qwen3Model):
    """Qwen3's blocks. After each of the first ``J``, one part of the input row is added to the residual stream."""

    def forward(
        self,
        input_ids: Tensor | None,
        positions: Tensor,
        intermediate_tensors: IntermediateTensors | None = None,
        inputs_embeds: Tensor | None = None,
    ) -> Tensor:
        if inputs_embeds is None:
            inputs_embeds = self.embed_input_ids(input_ids)
        embeddings, *levels = inputs_embeds.split(self.config.hidden_size, dim=-1)
        hidden, residual = embeddings.contiguous(), None
        for number, layer in enumerate(self.layers):
            hidden, residual = layer(positions, hidden, residual)
            if number < len(levels):
                hidden = hidden + levels[number]
        hidden, _ = self.norm(hidden, residual)
        return hidden


TEXT_MODELS: Mapping[str, type[nn.Module]] = {"qwen2": Qwen2Model, "qwen3": DeepStackModel}


class _Info(BaseProcessingInfo):
    def get_supported_mm_limits(self) -> Mapping[str, int | None]:
        return {MODALITY: None}

    def get_mm_max_tokens_per_item(self, seq_len: int, mm_counts: Mapping[str, int]) -> Mapping[str, int]:
        return {MODALITY: seq_len}


class _NoDummies(BaseDummyInputsBuilder[_Info]):
    """vLLM makes inputs of its own only to measure a vision tower. There is none here."""

    def get_dummy_text(self, mm_counts: Mapping[str, int]) -> str:
        return ""

    def get_dummy_mm_data(self, seq_len: int, mm_counts: Mapping[str, int], mm_options: Any) -> Any:
        return {}


class _NoProcessor(BaseMultiModalProcessor[_Info]):
    """The prompts are complete, so nothing is processed."""

    requires_tokenizer = False

    def get_dummy_mm_inputs(self, *args: Any, **kwargs: Any) -> Any:
        return mm_input([], MultiModalKwargsItems({}), {}, {})

    def _get_mm_fields_config(self, hf_inputs: Any, hf_processor_mm_kwargs: Mapping[str, object]) -> Any:
        return {}

    def _get_prompt_updates(self, *args: Any, **kwargs: Any) -> Sequence[Any]:
        return []


@MULTIMODAL_REGISTRY.register_processor(_NoProcessor, info=_Info, dummy_inputs=_NoDummies)
class MultiAxisForCausalLM(nn.Module, SupportsMultiModal, SupportsMRoPE):
    """A text model and its head; see above. All layers must be on one pipeline stage."""

    def __init__(self, *, vllm_config: VllmConfig, prefix: str = "") -> None:
        super().__init__()
        config = vllm_config.model_config.hf_config
        self._row_width = vllm_config.model_config.get_inputs_embeds_size()
        with self._mark_language_model(vllm_config):  # type: ignore[operator]  # vllm is absent where types are checked
            build = TEXT_MODELS[MULTI_AXIS[config.model_type].layers]
            self.model: Any = build(vllm_config=vllm_config, prefix=maybe_prefix(prefix, "model"))
            head = ParallelLMHead(
                config.vocab_size,
                config.hidden_size,
                quant_config=vllm_config.quant_config,
                prefix=maybe_prefix(prefix, "lm_head"),
            )
            self.lm_head = head.tie_weights(self.model.embed_tokens) if config.tie_word_embeddings else head
        self.logits_processor = LogitsProcessor(config.vocab_size)

    def embed_multimodal(self, **kwargs: Any) -> list[Tensor]:
        """The rows of each item."""
        return list(kwargs["rows"])

    def embed_input_ids(
        self,
        input_ids: Tensor,
        multimodal_embeddings: Sequence[Tensor] | None = None,
        *,
        is_multimodal: Tensor | None = None,
    ) -> Tensor:
        """``[n, D * (1 + J)]``: embeddings of text, rows of visual tokens."""
        text = self.model.embed_input_ids(input_ids)
        rows = text.new_zeros(len(text), self._row_width)
        rows[:, : text.shape[1]] = text
        if multimodal_embeddings:
            rows[is_multimodal] = torch.cat(list(multimodal_embeddings))
        return rows

    def get_mrope_input_positions(
        self, input_tokens: list[int], mm_features: list[MultiModalFeatureSpec]
    ) -> tuple[Tensor, int]:
        """Positions ``[3, n]``, and what to add to a later token's place to get its position.

        `input_tokens` may end with tokens of an answer: of another replica, or of this one before its memory was taken.
        """
        items = [
            Placed(feature.mm_position.offset, feature.data["positions"].data, feature.data["jumps"].data)
            for feature in mm_features
        ]
        positions, following = positions_of(len(input_tokens), items)
        return positions, following - len(input_tokens)

    def forward(
        self,
        input_ids: Tensor | None,
        positions: Tensor,
        intermediate_tensors: IntermediateTensors | None = None,
        inputs_embeds: Tensor | None = None,
        **kwargs: Any,
    ) -> Tensor:
        hidden: Tensor = self.model(input_ids, positions, intermediate_tensors, inputs_embeds)
        return hidden

    def compute_logits(self, hidden_states: Tensor) -> Tensor | None:
        logits: Tensor | None = self.logits_processor(self.lm_head, hidden_states)
        return logits

    def load_weights(self, weights: Iterable[tuple[str, Tensor]]) -> set[str]:
        loaded: set[str] = AutoWeightsLoader(self).load_weights(weights)
        return loaded
