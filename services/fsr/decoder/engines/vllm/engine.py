"""The production engine: vLLM. It gets whole prompts, whose visual tokens alone are embeddings.

What vLLM is given, and why:

* the language model alone, a copy in a folder of its own, so that it loads no vision tower;
* prompts with token ids for text, so that it caches prefixes; visual tokens are prompt embeddings, or multi-modal items
  for models with multi-axis positions (:mod:`fsr.decoder.engines.vllm.prompt`);
* ``block_size`` 32: with blocks of the default size it never finds the prefix of a short prompt;
* our sampling (:mod:`fsr.decoder.engines.vllm.sampling`): its random numbers depend on seed and position alone, so
  another replica continues an answer as this one would;
* nothing malformed: a wrong width, or a position without rotary angles, ends the engine, and NaN reaches other requests
  through shared KV memory. The pipeline checks every prompt before the engine gets it.

LoRA is off, because it has defects with embeddings on CPUs.
"""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import tempfile
import uuid
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any

import prometheus_client
import structlog
import vllm
from vllm import ModelRegistry, SamplingParams
from vllm.engine.arg_utils import AsyncEngineArgs
from vllm.plugins import load_general_plugins
from vllm.sampling_params import RequestOutputKind
from vllm.usage.usage_lib import UsageContext
from vllm.v1.engine.async_llm import AsyncLLM
from vllm.v1.engine.exceptions import EngineDeadError

from fsr.common.errors import NotReady
from fsr.decoder.engines.base import Engine, Generation, Token
from fsr.decoder.engines.kv_budget import kv_budget
from fsr.decoder.engines.vllm.arguments import BLOCK, check_options, check_version, engine_arguments, usable_blocks
from fsr.decoder.engines.vllm.checkpoint import export
from fsr.decoder.engines.vllm.families import check_family, position_limit
from fsr.decoder.engines.vllm.prompt import engine_prompt
from fsr.decoder.engines.vllm.sampling import extra_args, processor_for
from fsr.decoder.log_probabilities import likeliest
from fsr.decoder.metrics import Metrics
from fsr.decoder.settings import DecoderSettings
from fsr_core.backbones import LanguageDecoder, dtype_of, load_decoder
from fsr_core.backbones.checkpoints.checkpoint import Checkpoint

__all__ = ["VllmEngine"]

log = structlog.get_logger()
_WATCH_SECONDS = 0.2
_DEAD = "decoder: its engine has died; ask another replica"


class VllmEngine(Engine):
    """An `AsyncLLM`. It runs in a process of its own, and gets and returns tokens."""

    name = "vllm"
    kv_granularity = BLOCK

    def __init__(self, model: LanguageDecoder, llm: AsyncLLM, kv_bytes: int, scratch: Path | None) -> None:
        self._model, self._llm, self._scratch = model, llm, scratch
        self._bytes_per_token = model.info.geometry.cost_model().kv_bytes_per_token
        self.kv_capacity = usable_blocks(model, kv_bytes) * BLOCK * self._bytes_per_token
        self.position_limit = position_limit(model.model.config)
        self.registry = prometheus_client.REGISTRY
        self.dead = asyncio.Event()
        self._tokens: dict[str, int] = {}
        self._watcher = asyncio.create_task(self._watch())

    @classmethod
    async def start(cls, settings: DecoderSettings, metrics: Metrics) -> tuple[LanguageDecoder, VllmEngine]:
        """As in the base class. The model that it returns holds no weights but the embeddings: vLLM has the others."""
        check_version(vllm.__version__)
        check_options(settings.engine_options)
        dtype = dtype_of(settings.dtype)
        config = (await asyncio.to_thread(Checkpoint.open, settings.model)).config
        load_general_plugins()
        if hasattr(config, "text_config"):  # else it is none of ours, and load_decoder says so
            check_family(config.model_type, config.text_config, ModelRegistry.get_supported_archs())
        model = await asyncio.to_thread(load_decoder, settings.model, device="cpu", dtype=dtype)
        kv_bytes = kv_budget(settings, sum(weight.nbytes for weight in model.model.parameters()))
        arguments = engine_arguments(model, settings, kv_bytes)
        scratch = None if settings.engine_folder else Path(tempfile.mkdtemp(prefix="fsr-vllm-"))
        try:
            folder = await asyncio.to_thread(export, model, Path(settings.engine_folder or str(scratch)))
            try:
                engine_args = AsyncEngineArgs(model=str(folder), **arguments, **settings.engine_options)
                llm = await asyncio.to_thread(_start, engine_args)
            except (ValueError, RuntimeError) as error:
                raise ValueError(f"engine: vllm does not start ({error}); see its log above") from error
        except BaseException:
            _remove(scratch)
            raise
        return model, cls(model, llm, kv_bytes, scratch)

    def kv_used(self) -> int:
        return self._bytes_per_token * sum(list(self._tokens.values()))

    def kv_cached(self) -> int:
        return 0  # vLLM does not report it; its own metrics have hits and usage

    async def generate(self, generation: Generation) -> AsyncGenerator[Token, None]:
        # In a thread: hashes of pictures take a while.
        prompt, params = await asyncio.to_thread(engine_prompt, generation), self._sampling_params(generation)
        if self.dead.is_set():
            raise NotReady(_DEAD)
        # vLLM needs an id that no other running request has.
        request_id = f"{generation.request_id}-{uuid.uuid4().hex[:8]}"
        self._tokens[request_id] = len(prompt["prompt_token_ids"])
        started, prefill = asyncio.get_running_loop().time(), 0.0
        try:
            async with contextlib.aclosing(self._llm.generate(prompt, params, request_id)) as outputs:
                async for output in outputs:
                    prefill = prefill or asyncio.get_running_loop().time() - started
                    for token in _tokens(output, generation.sampling.top_logprobs, prefill):
                        self._tokens[request_id] += 1
                        yield token
        except EngineDeadError as error:
            self.dead.set()
            raise NotReady(_DEAD) from error
        finally:
            self._tokens.pop(request_id, None)

    def _sampling_params(self, generation: Generation) -> SamplingParams:
        """Greedy for vLLM. The options of our sampling travel as extra arguments."""
        sampling, emitted, token_ids = generation.sampling, generation.emitted, generation.prompt.token_ids
        max_answer = min(sampling.max_tokens, self._model.info.context_length - len(token_ids))
        return SamplingParams(
            max_tokens=max_answer - len(emitted),
            temperature=0.0,
            ignore_eos=True,
            stop_token_ids=[] if sampling.ignore_eos else list(self._model.eos_token_ids),
            logprobs=sampling.top_logprobs if sampling.logprobs else None,
            detokenize=False,
            output_kind=RequestOutputKind.DELTA,
            extra_args=extra_args(generation),
        )

    async def _watch(self) -> None:
        """Notices that the engine has died, even if no request runs."""
        while not self._llm.errored:
            await asyncio.sleep(_WATCH_SECONDS)
        self.dead.set()

    async def close(self) -> None:
        self._watcher.cancel()
        await asyncio.to_thread(self._llm.shutdown)
        _remove(self._scratch)


def _start(engine_args: AsyncEngineArgs) -> AsyncLLM:
    """Starts vLLM with our sampling for the model runner that it chooses."""
    config = engine_args.create_engine_config(UsageContext.ENGINE_CONTEXT)
    config.model_config.logits_processors = [processor_for(config.use_v2_model_runner)]
    return AsyncLLM.from_vllm_config(
        config,
        usage_context=UsageContext.ENGINE_CONTEXT,
        enable_log_requests=engine_args.enable_log_requests,
        disable_log_stats=engine_args.disable_log_stats,
    )


def _remove(scratch: Path | None) -> None:
    if scratch is not None:
        shutil.rmtree(scratch, ignore_errors=True)


def _tokens(output: Any, top_logprobs: int, prefill_seconds: float) -> list[Token]:
    """The tokens of one output of vLLM."""
    (answer,) = output.outputs
    tokens = []
    for at, token in enumerate(answer.token_ids):
        last = output.finished and at == len(answer.token_ids) - 1
        # The chosen token, and as many of the likeliest as were asked for; none if no log probabilities were.
        logprobs = {id_: float(entry.logprob) for id_, entry in answer.logprobs[at].items()} if answer.logprobs else {}
        tokens.append(
            Token(
                id=token,
                last=last,
                by_length=last and answer.finish_reason == "length",
                logprob=logprobs.get(token),
                top=likeliest(logprobs, token, top_logprobs),
                prefill_seconds=prefill_seconds,
                cached_tokens=output.num_cached_tokens or 0,
            )
        )
    return tokens
