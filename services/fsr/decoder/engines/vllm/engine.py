"""The production engine: vLLM, fed with whole prompts of which only the visual rows are embeddings.

What it needs to be told, and why:

* only the language model: a copy in a folder of its own, so that no vision tower is loaded;
* the *mixed* prompt (token ids for text, embeddings for visual places), so that prefixes of text are cached;
* ``block_size`` 32: in blocks of the default size a short prompt would never find its prefix;
* tokens are drawn by our own sampling (:mod:`fsr.decoder.engines.vllm.sampling`), whose random state is a function
  of seed and position, so that another replica goes on as this one would have;
* nothing malformed: a wrong width kills the engine for good, and NaN reaches other requests through shared KV memory.
  The servicer has checked the prompt before it comes here.

LoRA is off: with embeddings it has defects on CPUs.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import tempfile
import uuid
from collections.abc import AsyncGenerator, Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import prometheus_client
import structlog
import torch

from fsr.common.errors import NotReady
from fsr.decoder.engines.base import Engine, Generation, Token
from fsr.decoder.engines.vllm.checkpoint import export, refuse_multi_axis
from fsr.decoder.settings import DecoderSettings
from fsr_core.backbones import LanguageDecoder, load_decoder

# Read when vLLM is imported: no usage reports, no look at a hub.
os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
try:
    from vllm import SamplingParams
    from vllm.engine.arg_utils import AsyncEngineArgs
    from vllm.inputs import EmbedsPrompt
    from vllm.sampling_params import RequestOutputKind
    from vllm.v1.engine.async_llm import AsyncLLM
    from vllm.v1.engine.exceptions import EngineDeadError
except ImportError as error:
    raise ValueError(f"engine: vllm is not installed ({error}); install fsr-gateway[vllm]") from error

__all__ = ["VllmEngine"]

log = structlog.get_logger()
_BLOCK = 32
_DTYPES = {torch.float32: "float32", torch.float16: "float16", torch.bfloat16: "bfloat16"}
_SAMPLING = "fsr.decoder.engines.vllm.sampling:ChosenToken"
_PULSE_SECONDS = 0.2
_DEAD = "decoder: its engine has died; ask another replica"


class VllmEngine(Engine):
    """An `AsyncLLM` in a process of its own, spoken to in tokens."""

    name = "vllm"
    kv_granularity = _BLOCK

    def __init__(self, model: LanguageDecoder, llm: AsyncLLM, kv_bytes: int, scratch: Path | None) -> None:
        self._model, self._llm, self._scratch = model, llm, scratch
        self._bytes_per_token = model.info.geometry.cost_model().kv_bytes_per_token
        self.kv_capacity = _usable_blocks(model, kv_bytes) * _BLOCK * self._bytes_per_token
        self.registry = prometheus_client.REGISTRY
        self.dead = asyncio.Event()
        self._tokens: dict[str, int] = {}
        self._pulse = asyncio.create_task(self._watch())

    @classmethod
    async def start(
        cls, settings: DecoderSettings, budget: Callable[[int], int], dtype: torch.dtype
    ) -> tuple[LanguageDecoder, VllmEngine]:
        """Starts vLLM on a copy of the checkpoint's language model; `budget` gives KV bytes beside so many of weights.

        Returns the checkpoint's template and embeddings, without the weights that vLLM now holds, and the engine.

        Raises:
            ValueError: a checkpoint that vLLM cannot serve from embeddings, or too little KV memory.
        """
        model = await asyncio.to_thread(load_decoder, settings.model, device="cpu", dtype=dtype)
        refuse_multi_axis(model)
        kv_bytes = budget(sum(weight.nbytes for weight in model.model.parameters()))
        blocks = _usable_blocks(model, kv_bytes)
        ours: dict[str, Any] = {
            "skip_tokenizer_init": True,
            "enable_prompt_embeds": True,
            "enable_prefix_caching": True,
            "block_size": _BLOCK,
            "dtype": _DTYPES[dtype],
            "kv_cache_memory_bytes": kv_bytes,
            # vLLM does not start where the longest request would not fit; admission refuses those.
            "max_model_len": min(model.info.context_length, blocks * _BLOCK),
            "max_num_seqs": settings.max_running,
            "logits_processors": [_SAMPLING],
            "async_scheduling": False,  # our sampling looks at the tokens before the one it draws
        }
        taken = sorted({"model", *ours} & settings.engine_options.keys())
        if taken:
            raise ValueError(f"engine-options: {taken[0]} is set by the decoder itself; leave it out")
        scratch = None if settings.engine_folder else Path(tempfile.mkdtemp(prefix="fsr-vllm-"))
        try:
            folder = await asyncio.to_thread(export, model, Path(settings.engine_folder or str(scratch)))
            try:
                arguments = AsyncEngineArgs(model=str(folder), **ours, **settings.engine_options)
            except TypeError as error:
                raise ValueError(f"engine-options: {error}") from error
            try:
                llm = await asyncio.to_thread(AsyncLLM.from_engine_args, arguments)
            except (ValueError, RuntimeError) as error:
                raise ValueError(f"engine: vllm does not start ({error}); its log above tells more") from error
        except BaseException:
            _remove(scratch)
            raise
        return model, cls(model, llm, kv_bytes, scratch)

    def kv_used(self) -> int:
        return self._bytes_per_token * sum(list(self._tokens.values()))

    def kv_cached(self) -> int:
        return 0  # vLLM does not tell; its own metrics have hits and usage

    async def generate(self, generation: Generation) -> AsyncGenerator[Token, None]:
        prompt, sampling, emitted = generation.prompt, generation.sampling, generation.emitted
        length = len(prompt.token_ids)
        room = min(sampling.max_tokens, self._model.info.context_length - length) - len(emitted)
        said = torch.zeros(len(emitted), prompt.inputs_embeds.shape[1], dtype=prompt.inputs_embeds.dtype)
        mixed = EmbedsPrompt(
            prompt_embeds=torch.cat([prompt.inputs_embeds, said]),
            prompt_token_ids=[*prompt.token_ids.tolist(), *emitted],
            prompt_is_token_ids=[*(~prompt.visual_mask).tolist(), *[True] * len(emitted)],
        )
        if generation.cache_salt:
            mixed["cache_salt"] = generation.cache_salt
        own: dict[str, Any] = {}
        if not sampling.is_argmax:
            own = {"sampling": asdict(sampling), "step": len(emitted)}
            if sampling.repetition_penalty != 1:
                own["seen"] = mixed["prompt_token_ids"]
        params = SamplingParams(
            max_tokens=room,
            temperature=0.0,
            ignore_eos=True,
            stop_token_ids=[] if sampling.ignore_eos else list(self._model.eos_token_ids),
            logprobs=0 if sampling.logprobs else None,
            detokenize=False,
            output_kind=RequestOutputKind.DELTA,
            extra_args=own or None,
        )
        if self.dead.is_set():
            raise NotReady(_DEAD)
        name = f"{generation.request_id}-{uuid.uuid4().hex[:8]}"  # vLLM wants one that no other running request has
        self._tokens[name] = length + len(emitted)
        began, prefill = asyncio.get_running_loop().time(), 0.0
        try:
            async with contextlib.aclosing(self._llm.generate(mixed, params, name)) as outputs:
                async for output in outputs:
                    prefill = prefill or asyncio.get_running_loop().time() - began
                    for token in _tokens(output, prefill):
                        self._tokens[name] += 1
                        yield token
        except EngineDeadError as error:
            self.dead.set()
            raise NotReady(_DEAD) from error
        finally:
            self._tokens.pop(name, None)

    async def _watch(self) -> None:
        """Notices a dead engine while nobody asks anything of it."""
        while not self._llm.errored:
            await asyncio.sleep(_PULSE_SECONDS)
        self.dead.set()

    async def close(self) -> None:
        self._pulse.cancel()
        await asyncio.to_thread(self._llm.shutdown)
        _remove(self._scratch)


def _usable_blocks(model: LanguageDecoder, kv_bytes: int) -> int:
    """Blocks that requests may hold: vLLM keeps one for itself. Raises ValueError where that leaves none."""
    size = model.info.geometry.cost_model().kv_bytes_per_token * _BLOCK
    if kv_bytes < 2 * size:
        raise ValueError(f"kv-memory: {kv_bytes} bytes are too few; vllm needs at least {2 * size}")
    return kv_bytes // size - 1


def _remove(scratch: Path | None) -> None:
    if scratch is not None:
        shutil.rmtree(scratch, ignore_errors=True)


def _tokens(output: Any, prefill_seconds: float) -> list[Token]:
    """The tokens of one message of vLLM's."""
    (answer,) = output.outputs
    found = []
    for at, token in enumerate(answer.token_ids):
        logprob = float(answer.logprobs[at][token].logprob) if answer.logprobs else None
        last = output.finished and at == len(answer.token_ids) - 1
        by_length = last and answer.finish_reason == "length"
        found.append(Token(token, last, by_length, logprob, prefill_seconds, output.num_cached_tokens or 0))
    return found
