"""What an engine is: it turns prompts of embeddings into streams of tokens, several at a time.

An engine generates all requests that it is given at once. Admission (:mod:`fsr.decoder.admission`) decides before
that which requests run and which wait. An engine never sees text: the pipeline (:mod:`fsr.decoder.pipeline`)
detokenizes, looks for stop strings, and writes the messages.
"""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator
from dataclasses import dataclass

import torch
from prometheus_client import CollectorRegistry

from fsr.common.errors import InvalidRequest
from fsr.decoder.log_probabilities import TokenLogprob
from fsr.decoder.metrics import Metrics
from fsr.decoder.sampling import Sampling
from fsr.decoder.settings import DecoderSettings
from fsr_core.backbones import LanguageDecoder, Prompt

__all__ = ["Engine", "Generation", "Token", "check_prompt"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Generation:
    """One answer to generate.

    Attributes:
        request_id: for logs; not unique: a retry has the id of its request, and a caller may use one id twice.
        prompt: checked with :func:`check_prompt`.
        sampling: how tokens are chosen, and how many at most.
        emitted: tokens of the answer that another replica generated; the stream continues after them.
        cache_salt: prompts with different salts share no cached prefix.
    """

    request_id: str
    prompt: Prompt
    sampling: Sampling
    emitted: tuple[int, ...] = ()
    cache_salt: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Token:
    """One generated token.

    Attributes:
        id: in the vocabulary.
        last: whether the answer ends with it.
        by_length: whether the answer ends because of its length limit, and not because the model ended it.
        logprob: its log probability if the sampling asks for it, else None.
        top: the likeliest tokens at its place, likeliest first, as many as the sampling asks for.
        prefill_seconds: from the engine's first work on the request to its first token.
        cached_tokens: prompt tokens whose keys and values were cached.
    """

    id: int
    last: bool
    by_length: bool
    logprob: float | None
    top: tuple[TokenLogprob, ...]
    prefill_seconds: float
    cached_tokens: int


class Engine(ABC):
    """Generates several answers at a time.

    Attributes:
        name: as in the settings.
        kv_capacity: bytes of KV memory for running requests.
        kv_granularity: the engine reserves KV memory in steps of so many tokens.
        position_limit: rotary positions of prompt and answer must be below it; None: any will do.
        dead: set when the engine can generate no more; the replica then reports NOT_SERVING.
        registry: the engine's own metrics, shown on the replica's metrics port; None if it has none.
        steps: number of forward passes so far; stays 0 if the engine does not tell.
    """

    name: str
    kv_capacity: int
    kv_granularity: int = 1
    position_limit: int | None = None
    dead: asyncio.Event
    registry: CollectorRegistry | None = None
    steps: int = 0

    @classmethod
    @abstractmethod
    async def start(cls, settings: DecoderSettings, metrics: Metrics) -> tuple[LanguageDecoder, Engine]:
        """Checks the engine's own options, loads the checkpoint, and starts the engine.

        Returns:
            What lays out prompts (template, tokenizer, embeddings), and the engine.

        Raises:
            ValueError: an option, the checkpoint or the KV memory does not fit. The message begins with the name of
                the option, without its dashes.
        """

    @abstractmethod
    def generate(self, generation: Generation) -> AsyncGenerator[Token, None]:
        """Streams the tokens after the emitted ones. If the caller closes the generator early, its KV memory is free
        within one step.

        Raises:
            NotReady: the engine is shutting down or has died.
        """

    @abstractmethod
    def kv_used(self) -> int:
        """Bytes of KV memory that hold keys and values of running requests now."""

    @abstractmethod
    def kv_cached(self) -> int:
        """Bytes of KV memory that hold prefixes of no running request; the engine frees them when it needs them."""

    @abstractmethod
    async def close(self) -> None:
        """Ends the engine. Requests that still run fail with NotReady."""


def check_prompt(
    prompt: Prompt, model: LanguageDecoder, most_answer_tokens: int = 0, position_limit: int | None = None
) -> None:
    """Refuses a prompt that can harm an engine, or other requests through shared KV memory.

    Args:
        most_answer_tokens: how many tokens may follow it.
        position_limit: of the engine.

    Raises:
        InvalidRequest: wrong rank, width, dtype or length; NaN or infinity, for example features that overflow fp16;
            positions that are missing, negative or beyond the engine's limit.
    """
    embeds, width, length = prompt.inputs_embeds, model.info.feature_dim, len(prompt.token_ids)
    if embeds.dim() != 2 or embeds.shape[1] != width or len(embeds) != length:
        raise InvalidRequest(f"messages: the prompt's embeddings are {list(embeds.shape)}, not [{length}, {width}]")
    if not 0 < length < model.info.context_length:
        raise InvalidRequest(
            f"messages: the prompt takes {length} tokens of the model's {model.info.context_length};"
            " send a shorter one, or lower the budget"
        )
    tensors = {"features": embeds} | ({} if prompt.deepstack is None else {"deepstack": prompt.deepstack})
    for name, tensor in tensors.items():
        if tensor.dtype != model.dtype:
            raise InvalidRequest(f"images: {name} are {tensor.dtype}, the model is {model.dtype}")
        if not bool(torch.isfinite(tensor).all()):
            raise InvalidRequest(
                f"images: {name} hold NaN or infinity as {model.info.dtype}; serve the model in bf16 or fp32"
            )
    if prompt.deepstack is not None and list(prompt.deepstack.shape[1:]) != [prompt.visual_tokens, width]:
        raise InvalidRequest(
            f"images: deepstack are {list(prompt.deepstack.shape)}, not [layers, {prompt.visual_tokens}, {width}]"
        )
    if prompt.position_ids is not None:
        if list(prompt.position_ids.shape) != [3, length] or int(prompt.position_ids.min()) < 0:
            raise InvalidRequest(f"images: the prompt's positions are not [3, {length}] numbers of at least 0")
        most = min(most_answer_tokens, model.info.context_length - length)
        if position_limit is not None and prompt.next_position + most > position_limit:
            raise InvalidRequest(
                f"images: positions of prompt and answer reach {prompt.next_position + most}, this replica takes"
                f" {position_limit}; send smaller pictures or shorter videos, or lower sampling.max_tokens"
            )
