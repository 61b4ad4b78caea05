"""Attention row by row, in the library's models: what one sequence sees, and what it costs nobody else."""

from types import SimpleNamespace

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig, MistralConfig, Qwen2Config, Qwen3Config

from fsr.decoder.engines.base import Generation
from fsr.decoder.engines.transformers.runner import BatchRunner
from fsr.decoder.sampling import Sampling
from fsr_core.backbones import Prompt
from fsr_core.savings import Geometry

SHAPE = {
    "vocab_size": 60,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
}
CONFIGS = {
    "llama": LlamaConfig(**SHAPE),
    "llama, a head for each query": LlamaConfig(**SHAPE | {"num_key_value_heads": 4}),
    "mistral, window of 7 tokens": MistralConfig(**SHAPE, head_dim=8, sliding_window=7),
    "qwen2, window in two layers": Qwen2Config(**SHAPE, use_sliding_window=True, sliding_window=5, max_window_layers=1),
    "qwen3": Qwen3Config(**SHAPE, head_dim=16),
}


@pytest.fixture(params=CONFIGS)
def model(request):
    torch.manual_seed(3)
    language = AutoModelForCausalLM.from_config(CONFIGS[request.param], attn_implementation="sdpa").eval()
    geometry = Geometry.from_config(language.config, dtype_bytes=4)
    return SimpleNamespace(
        model=language,
        device=torch.device("cpu"),
        eos_token_ids=(),
        embed=language.get_input_embeddings(),
        info=SimpleNamespace(context_length=256, geometry=geometry),
    )


def step(runner, sequences):
    """As the engine does it."""
    waiting = [one for one in sequences if not one.prefilled]
    runner.step(waiting[: runner.fit_in_one_prefill(waiting)] + [one for one in sequences if one.prefilled])


@torch.inference_mode()
def test_answers_are_those_of_the_whole_sequence(model):
    """Prompts in one pass and in chunks, answers beside them; each logit is that of the library's own attention."""
    draw = torch.Generator().manual_seed(0)
    runner, logits = BatchRunner(model, 1 << 20, prefill_tokens=16, prefix_block=4), []
    hook = model.model.register_forward_hook(lambda module, args, out: logits.append(out.logits[0]))
    sequences = []
    for length in (5, 50, 21):
        ids = torch.randint(60, (length,), generator=draw)
        prompt = Prompt(
            inputs_embeds=model.embed(ids), token_ids=ids, visual_mask=torch.ones(length).bool(), position_ids=None
        )
        sampling = Sampling(max_tokens=20)
        sequences.append(runner.start(Generation(request_id="test", prompt=prompt, sampling=sampling)))
        step(runner, sequences)
    for _ in range(8):
        step(runner, sequences)
    hook.remove()
    for row, sequence in enumerate(sequences):
        ids = torch.cat([sequence.generation.prompt.token_ids, torch.tensor(sequence.tokens[:-1])])
        assert len(sequence.tokens) > 4
        want = model.model(ids.unsqueeze(0)).logits[0]
        assert want[-len(sequence.tokens) :].argmax(-1).tolist() == sequence.tokens
        torch.testing.assert_close(logits[-1][row], want[-1], atol=1e-5, rtol=1e-4)


def test_attention_with_what_sdpa_cannot_do_is_refused(model):
    runner = BatchRunner(model, 1 << 20, prefill_tokens=16, prefix_block=4)
    ids = torch.arange(5)
    prompt = Prompt(inputs_embeds=model.embed(ids).detach(), token_ids=ids, visual_mask=ids < 0, position_ids=None)
    sequence = runner.start(Generation(request_id="test", prompt=prompt, sampling=Sampling(max_tokens=2)))
    forward = model.model.forward
    model.model.forward = lambda **inputs: forward(**inputs, softcap=30.0)
    with pytest.raises(NotImplementedError, match="softcap"):
        runner.step([sequence])
