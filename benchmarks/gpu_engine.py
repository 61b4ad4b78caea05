"""The embedded engine's contract on a device, for `benchmarks.gpu`: the tokens of the model's own `generate`."""

from __future__ import annotations

import asyncio
from typing import Any

import torch

from fsr_core.backbones import ImagePart, KeptImage, LanguageDecoder, Message, Prompt, TextPart

__all__ = ["engine_contract"]

TOKENS = 24


def prompts(model: LanguageDecoder, count: int) -> list[Prompt]:
    """Questions about pictures of random tokens, of different lengths; the last one has no picture."""
    noise = torch.Generator().manual_seed(0)
    made = []
    for i in range(count):
        image = KeptImage(features=torch.randn(16 + 7 * i, model.info.feature_dim, generator=noise))
        parts = [ImagePart(0), TextPart("what colour is the star?")] if i < count - 1 else [TextPart("hello")]
        made.append(model.prompt([Message("user", tuple(parts))], [image] if i < count - 1 else []))
    return made


def generated(model: LanguageDecoder, prompt: Prompt) -> list[int]:
    """The library's own greedy tokens."""
    with torch.inference_mode():
        ids = model.model.generate(
            inputs_embeds=prompt.inputs_embeds.unsqueeze(0).to(model.device),
            max_new_tokens=TOKENS,
            do_sample=False,
            eos_token_id=list(model.eos_token_ids),
            pad_token_id=model.eos_token_ids[0],
        )
    found: list[int] = ids[0].tolist()
    return found


def engine_contract(device: str, small: bool) -> dict[str, Any]:
    """Whether the engine's answers are those of `generate`, alone and in a batch, and whether its KV memory is free
    afterwards. Where the decoder's packages are missing, what is missing."""
    try:
        from fsr.decoder.engines.base import Generation
        from fsr.decoder.engines.transformers.engine import TransformersEngine
        from fsr.decoder.metrics import Metrics
        from fsr.decoder.sampling import Sampling
        from fsr.decoder.settings import DecoderSettings
    except ModuleNotFoundError as error:
        return {"engine": f"not checked: {error}"}

    async def run() -> dict[str, Any]:
        settings = DecoderSettings.model_validate({"device": device, "kv_memory": "64MiB"})
        model, engine = await TransformersEngine.start(settings, Metrics("gpu"))
        try:
            asked = prompts(model, 3 if small else 8)

            async def answer(prompt: Prompt) -> list[int]:
                sampling = Sampling(max_tokens=TOKENS)
                stream = engine.generate(Generation(request_id="gpu", prompt=prompt, sampling=sampling))
                return [token.id async for token in stream]

            alone = [await answer(prompt) for prompt in asked]
            together = await asyncio.gather(*map(answer, asked))
            for _ in range(100):
                if engine.kv_used() == 0:
                    break
                await asyncio.sleep(0.05)
            return {
                "engine_is_generate": alone == [generated(model, prompt) for prompt in asked],
                "engine_batch_is_alone": together == alone,
                "engine_frees_kv_memory": engine.kv_used() == 0,
            }
        finally:
            await engine.close()

    return asyncio.run(run())
