"""What an engine is: prompts of embeddings in, a stream of tokens each out, several at a time.

An engine generates for whatever it is given at once: how many requests run at a time, and which wait, is decided
before it is asked (:mod:`fsr.decoder.admission`). It never sees text: detokenisation, stop strings and the wire
are the servicer's.
"""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator
from dataclasses import dataclass

import torch
from prometheus_client import CollectorRegistry

from fsr.common.errors import InvalidRequest
from fsr.decoder.sampling import Sampling
from fsr_core.backbones import LanguageDecoder, Prompt

__all__ = ["Engine", "Generation", "Token", "check_prompt"]


@dataclass(frozen=True, slots=True)
class Generation:
    """One answer to generate.

    Attributes:
        request_id: for logs. Attempts at one request, and callers who choose no ids, share theirs.
        prompt: checked with :func:`check_prompt`.
        sampling: how tokens are chosen, and how many at most.
        emitted: tokens of the answer that another replica generated; the stream goes on after them.
        cache_salt: prompts of different salts share no cached prefix.
    """

    request_id: str
    prompt: Prompt
    sampling: Sampling
    emitted: tuple[int, ...] = ()
    cache_salt: str = ""


@dataclass(frozen=True, slots=True)
class Token:
    """One generated token.

    Attributes:
        id: into the vocabulary.
        last: whether the answer ends with it.
        by_length: whether it ended because there was no more room, not because the model said so.
        logprob: its log probability where the sampling asks for it, else None.
        prefill_seconds: from the engine's first work on the request to its first token.
        cached_tokens: places of the prompt whose KV memory was there already.
    """

    id: int
    last: bool
    by_length: bool
    logprob: float | None
    prefill_seconds: float
    cached_tokens: int


class Engine(ABC):
    """Generates several answers at a time.

    Attributes:
        name: as in the settings.
        kv_capacity: bytes of KV memory that it may use for running requests.
        kv_granularity: tokens that are reserved at a time.
        dead: set once the engine can generate no more; the replica is then not healthy.
        registry: metrics of the engine's own, passed through on the replica's metrics port; None where it has none.
    """

    name: str
    kv_capacity: int
    kv_granularity: int = 1
    dead: asyncio.Event
    registry: CollectorRegistry | None = None

    @abstractmethod
    def generate(self, generation: Generation) -> AsyncGenerator[Token, None]:
        """Streams the tokens after the emitted ones. Closing the generator early frees its KV memory within a step.

        Raises:
            NotReady: the engine is shutting down or has died.
        """

    @abstractmethod
    def kv_used(self) -> int:
        """Bytes of KV memory that hold keys and values of running requests now."""

    @abstractmethod
    def kv_cached(self) -> int:
        """Bytes of KV memory that hold prefixes which no running request uses; they are given up when needed."""

    @abstractmethod
    async def close(self) -> None:
        """Ends the engine; requests that still run are told that the replica goes away."""


def check_prompt(prompt: Prompt, model: LanguageDecoder) -> None:
    """Refuses what would harm an engine, or other requests through shared KV memory.

    Raises:
        InvalidRequest: wrong rank, width, dtype or length; NaN or infinity, for example features that overflow fp16.
    """
    embeds, width = prompt.inputs_embeds, model.info.feature_dim
    if embeds.dim() != 2 or embeds.shape[1] != width or len(embeds) != len(prompt.token_ids):
        raise InvalidRequest(
            f"messages: the prompt's embeddings are {list(embeds.shape)}, not [{len(prompt.token_ids)}, {width}]"
        )
    if not 0 < len(embeds) < model.info.context_length:
        raise InvalidRequest(
            f"messages: the prompt takes {len(embeds)} tokens of the model's {model.info.context_length};"
            " ask shorter, or lower the budget"
        )
    if embeds.dtype != model.dtype:
        raise InvalidRequest(f"images: features are {embeds.dtype}, the model is {model.dtype}")
    visual = [embeds] if prompt.deepstack is None else [embeds, prompt.deepstack]
    if not all(bool(torch.isfinite(one).all()) for one in visual):
        raise InvalidRequest(
            f"images: features hold NaN or infinity as {model.info.dtype}; serve the model in bf16 or fp32"
        )
