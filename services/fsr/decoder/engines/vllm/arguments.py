"""What vLLM is started with: the operator's options, checked, and what the decoder itself sets."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Mapping
from typing import Any

import vllm
from packaging.version import Version
from vllm.engine.arg_utils import AsyncEngineArgs

from fsr.common.requests.sampling_limits import MAX_TOP_LOGPROBS
from fsr.decoder.engines.kv_budget import free_share
from fsr.decoder.engines.vllm.families import is_multi_axis
from fsr.decoder.engines.vllm.multi_axis import MODALITY
from fsr.decoder.settings import DecoderSettings
from fsr_core.backbones import LanguageDecoder

__all__ = ["BLOCK", "check_options", "check_version", "engine_arguments", "usable_blocks"]

BLOCK = 32  # tokens in a block of KV memory
_TRIED = ("0.32", "0.33")  # from, and below; as in pyproject.toml


def check_version(version: str) -> None:
    """Raises ValueError for a vLLM that this engine was not tried with: its interfaces change with each version."""
    first, beyond = _TRIED
    if not Version(first) <= Version(version) < Version(beyond):
        raise ValueError(
            f"engine: vllm {version} was not tried; install vllm>={first},<{beyond}, or use --engine transformers"
        )


def check_options(options: Mapping[str, Any]) -> None:
    """Raises ValueError for an option that vLLM does not know, or that takes from callers what they may ask for."""
    known = [field.name for field in dataclasses.fields(AsyncEngineArgs)]
    for name in options:
        if name not in known:
            near = difflib.get_close_matches(name, known, 1)
            remedy = f"did you mean {near[0]!r}?" if near else "see AsyncEngineArgs in vllm's documentation"
            raise ValueError(f"engine-options: vllm {vllm.__version__} has no option {name!r}; {remedy}")
    if options.get("max_logprobs") in range(MAX_TOP_LOGPROBS):
        most = f"max_logprobs {options['max_logprobs']} is below {MAX_TOP_LOGPROBS}, which callers may ask for"
        raise ValueError(f"engine-options: {most}; leave it out")


def engine_arguments(model: LanguageDecoder, settings: DecoderSettings, kv_bytes: int) -> dict[str, Any]:
    """What the decoder itself sets in vLLM's arguments. Raises ValueError if `--engine-options` sets one of them."""
    arguments: dict[str, Any] = {
        "skip_tokenizer_init": True,
        "enable_prefix_caching": True,
        "block_size": BLOCK,
        "dtype": str(model.dtype).removeprefix("torch."),
        "kv_cache_memory_bytes": kv_bytes,
        # vLLM does not start if the longest request does not fit; admission refuses such a request.
        "max_model_len": min(model.info.context_length, usable_blocks(model, kv_bytes) * BLOCK),
        "max_num_seqs": settings.max_running,
        "logits_processors": None,  # ours is set in _start
        "logprobs_mode": "raw_logprobs",  # before temperature, penalty and truncation
        "async_scheduling": False,  # our sampling reads the tokens before the one that it draws
    }
    if is_multi_axis(model.model.config):
        # Items come with the prompt; vLLM itself makes none from pictures, and keeps no copies of them.
        arguments |= {"enable_mm_embeds": True, "limit_mm_per_prompt": {MODALITY: 0}, "mm_processor_cache_gb": 0}
    else:
        arguments["enable_prompt_embeds"] = True
    share = free_share(settings)
    if share is not None and "gpu_memory_utilization" not in settings.engine_options:
        # vLLM does not start if this share of the GPU is not free. By default it asks for more than an encoder leaves.
        arguments["gpu_memory_utilization"] = share
    taken = sorted({"model", *arguments} & settings.engine_options.keys())
    if taken:
        raise ValueError(f"engine-options: the decoder itself sets {taken[0]}; leave it out")
    return arguments


def usable_blocks(model: LanguageDecoder, kv_bytes: int) -> int:
    """Blocks for requests: vLLM keeps one for itself. Raises ValueError if none is left."""
    size = model.info.geometry.cost_model().kv_bytes_per_token * BLOCK
    if kv_bytes < 2 * size:
        raise ValueError(f"kv-memory: {kv_bytes} bytes are too few; vllm needs at least {2 * size}")
    return kv_bytes // size - 1
