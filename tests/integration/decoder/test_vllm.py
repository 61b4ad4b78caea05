"""vLLM's engine in this process: what no caller sees, and what it refuses before it reads any weights."""

import asyncio
import gc
import importlib
import json
from importlib.metadata import entry_points

import pytest
import torch

from fsr.decoder.engines.base import Generation
from fsr.decoder.engines.table import engine_class
from fsr.decoder.metrics import Metrics
from fsr.decoder.sampling import Sampling
from fsr.decoder.settings import DecoderSettings
from fsr.v1 import types_pb2
from fsr_core.backbones import ImagePart, Message, TextPart
from helpers import checkpoints
from helpers.benches import ALL, QUESTION, Bench, picture, shown
from helpers.replicas import ENGINE, ENGINE_OPTIONS

pytestmark = [
    pytest.mark.skipif(ENGINE != "vllm", reason="needs vllm"),
    pytest.mark.filterwarnings("ignore"),  # of vllm's imports
]
GREEDY = Sampling.of(types_pb2.Sampling(max_tokens=1), 1, 0)


async def prompt_log_probabilities(engine, ask):
    """``[L - 1, vocabulary]``: of the token after each place of a prompt but the last."""
    from vllm import SamplingParams

    generation = Generation(request_id="logits", prompt=ask.prompt, sampling=GREEDY)
    prompt = importlib.import_module("fsr.decoder.engines.vllm.prompt").engine_prompt(generation)
    params = SamplingParams(max_tokens=1, temperature=0.0, prompt_logprobs=-1, detokenize=False)
    async for output in engine._llm.generate(prompt, params, generation.request_id):
        places = output.prompt_logprobs[1:]
    size = ask.model.info.geometry.vocab
    return torch.tensor([[place[token].logprob for token in range(size)] for place in places])


async def of_an_engine(checkpoint, asks):
    """:func:`prompt_log_probabilities` of all these, at once."""
    options = ENGINE_OPTIONS | {"max_logprobs": -1}
    settings = DecoderSettings(model=checkpoint, engine="vllm", kv_memory="64MiB", engine_options=options)
    _, engine = await engine_class("vllm").start(settings, Metrics("tiny"))
    try:
        return await asyncio.gather(*(prompt_log_probabilities(engine, ask) for ask in asks))
    finally:
        await engine.close()


@pytest.mark.parametrize("checkpoint", checkpoints.MULTI_AXIS, indirect=True)
async def test_logits_of_every_position_are_the_librarys(checkpoint, shows):
    """Of text and of visual tokens; prefill steps of 64 tokens cut the pictures."""
    got = await of_an_engine(checkpoint, shows.values())
    gc.collect()  # vLLM leaves sockets to the collector; their warnings belong to this test
    for (name, ask), one in zip(shows.items(), got, strict=True):
        want = ask.log_probabilities([])[:-1]
        assert one.shape == want.shape and (one - want).abs().max() < 1e-3, name


async def answers(name, checkpoint, prompts):
    """Tokens of the greedy answers of an engine, all at once."""
    options = {"engine_options": ENGINE_OPTIONS} if name == "vllm" else {"prefill_tokens": 32}
    settings = DecoderSettings(model=checkpoint, engine=name, kv_memory="64MiB", **options)
    _, engine = await engine_class(name).start(settings, Metrics("tiny"))

    async def one(prompt):
        sampling = Sampling(max_tokens=24, ignore_eos=True, logprobs=True, top_logprobs=3)
        generation = Generation(request_id="r", prompt=prompt, sampling=sampling)
        return [token async for token in engine.generate(generation)]

    try:
        return await asyncio.gather(*(one(prompt) for prompt in prompts))
    finally:
        await engine.close()


@pytest.mark.parametrize("family", checkpoints.SHUFFLED)
async def test_a_family_on_prompt_embeddings_answers_as_with_transformers(family, tmp_path):
    """Pictures of one view and of several, with few tokens and with all, and frames, from the family's own encoder."""
    torch.manual_seed(7)
    checkpoints.FAMILIES[family](tmp_path)
    bench = Bench(family, tmp_path, None)
    small, wide = picture((24, 24)), picture((70, 50))
    shows = [([small], [], 4), ([wide], [], 6), ([wide, small], [], ALL)]
    if family in checkpoints.VIDEO:
        shows.append(([], [[small, picture((24, 24), 1), small]], 5))
    prompts = []
    for pictures, videos, budget in shows:
        images = shown(bench, pictures, videos, budget)[2]
        parts = [*(ImagePart(i) for i in range(len(images))), TextPart(QUESTION)]
        prompts.append(bench.decoder.prompt([Message("user", tuple(parts))], images))
    theirs = await answers("transformers", str(tmp_path), prompts)
    ours = await answers("vllm", str(tmp_path), prompts)
    gc.collect()  # vLLM leaves sockets to the collector; their warnings belong to this test
    assert len({tuple(token.id for token in tokens) for tokens in theirs}) == len(prompts)
    for tokens, want in zip(ours, theirs, strict=True):
        assert [token.id for token in tokens] == [token.id for token in want]
        for token, one in zip(tokens, want, strict=True):
            assert token.logprob == pytest.approx(one.logprob, abs=1e-3)
            assert [logprob for _, logprob in token.top] == pytest.approx([p for _, p in one.top], abs=1e-3)


async def refusal(**settings):
    """The message with which the engine does not start. `model` is a folder without weights, so none were read."""
    with pytest.raises(ValueError) as caught:
        await engine_class("vllm").start(DecoderSettings(engine="vllm", **settings), Metrics("tiny"))
    return str(caught.value)


@pytest.fixture
def without_weights(tmp_path):
    """Makes a checkpoint of Qwen2.5-VL without weights, with these fields in its language model's configuration."""
    checkpoints.FAMILIES["qwen2_5_vl"](tmp_path)
    (tmp_path / "model.safetensors").unlink()

    def change(**fields):
        path = tmp_path / "config.json"
        config = json.loads(path.read_text())
        config["text_config"] |= fields
        path.write_text(json.dumps(config))
        return str(tmp_path)

    return change


async def test_a_family_that_does_not_fit_is_refused_before_weights_are_read(without_weights):
    sections = {"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4, "mrope_section": [4, 6, 6]}
    message = await refusal(model=without_weights(rope_parameters=sections))
    assert message.startswith("engine: vllm cannot serve qwen2_5_vl: rope_type 'linear'")
    assert message.endswith("use --engine transformers") and "\n" not in message
    # Its weights are looked for only if everything else fits.
    fits = without_weights(rope_parameters=sections | {"rope_type": "default"})
    assert "holds no weights" in await refusal(model=fits)


@pytest.mark.parametrize(
    ("option", "says"),
    [
        ("tensor_paralel_size", "has no option 'tensor_paralel_size'; did you mean 'tensor_parallel_size'?"),
        ("warp_speed", "has no option 'warp_speed'; see AsyncEngineArgs"),
    ],
)
async def test_an_unknown_option_is_refused_before_weights_are_read(without_weights, option, says):
    message = await refusal(model=without_weights(), engine_options={option: 2})
    assert message.startswith("engine-options: vllm 0.32") and says in message and "\n" not in message


async def test_an_option_that_forbids_what_callers_may_ask_for_is_refused(without_weights):
    message = await refusal(model=without_weights(), engine_options={"max_logprobs": 5})
    assert message == "engine-options: max_logprobs 5 is below 20, which callers may ask for; leave it out"
    # It is let through, so the start goes on until it looks for weights.
    assert "holds no weights" in await refusal(model=without_weights(), engine_options={"max_logprobs": -1})


@pytest.mark.parametrize("version", ["0.31.9", "0.33.0", "1.0.0"])
async def test_another_vllm_is_refused_before_weights_are_read(without_weights, monkeypatch, version):
    monkeypatch.setattr("vllm.__version__", version)
    message = await refusal(model=without_weights())
    assert message == (f"engine: vllm {version} was not tried; install vllm>=0.32,<0.33, or use --engine transformers")


def test_vllm_finds_our_model_class_by_its_entry_point():
    from vllm import ModelRegistry

    (plugin,) = (point for point in entry_points(group="vllm.general_plugins") if point.name == "fsr")
    plugin.load()()
    assert "FsrMultiAxisForCausalLM" in ModelRegistry.get_supported_archs()
