"""The transformers engine in this process: positions with three axes, failures, callers that leave early."""

import asyncio
import threading
import time
from itertools import accumulate, pairwise
from types import SimpleNamespace

import pytest
import torch
from structlog.testing import capture_logs
from torch import nn
from torch.overrides import TorchFunctionMode
from transformers.modeling_outputs import CausalLMOutputWithPast
from transformers.models.qwen3_vl import Qwen3VLTextConfig
from transformers.models.qwen3_vl.modeling_qwen3_vl import Qwen3VLTextModel

from fsr.common.errors import InvalidRequest, NotReady
from fsr.decoder.engines.base import Generation, check_prompt
from fsr.decoder.engines.transformers.engine import TransformersEngine
from fsr.decoder.engines.transformers.runner import BatchRunner
from fsr.decoder.metrics import Metrics
from fsr.decoder.sampling import Sampling
from fsr_core.backbones import Prompt
from fsr_core.savings import Geometry

WIDTH, VOCABULARY, DEEP = 32, 50, 2


class Language(nn.Module):
    """A random Qwen3-VL text model with its head: grouped heads, three-axis positions, DeepStack."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.config = Qwen3VLTextConfig(
            vocab_size=VOCABULARY,
            hidden_size=WIDTH,
            intermediate_size=64,
            num_hidden_layers=3,
            num_attention_heads=4,
            num_key_value_heads=2,
            head_dim=8,
            max_position_embeddings=256,
            rope_parameters={"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 1, 1]},
        )
        self.config._attn_implementation = "sdpa"
        self.model = Qwen3VLTextModel(self.config)
        self.head = nn.Linear(WIDTH, VOCABULARY, bias=False)
        nn.init.normal_(self.model.embed_tokens.weight)

    def forward(self, logits_to_keep=0, **inputs):
        out = self.model(**inputs)
        places = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        return CausalLMOutputWithPast(logits=self.head(out.last_hidden_state[:, places]))


@pytest.fixture(scope="module")
def model():
    language = Language().eval()
    return SimpleNamespace(
        model=language,
        device=torch.device("cpu"),
        dtype=torch.float32,
        eos_token_ids=(),
        embed=language.model.embed_tokens,
        info=SimpleNamespace(
            context_length=256,
            feature_dim=WIDTH,
            dtype="fp32",
            geometry=Geometry.from_config(language.config, dtype_bytes=4),
        ),
    )


def prompt(model, visual, words, seed, before=4):
    """Text, a few kept tokens of an image grid, and text that starts after the whole grid."""
    draw = torch.Generator().manual_seed(seed)
    ids = torch.randint(0, VOCABULARY, (before + visual + words,), generator=draw)
    mask = torch.zeros(len(ids), dtype=torch.bool)
    mask[before : before + visual] = True
    embeds = model.embed(ids).detach().clone()
    embeds[mask] = torch.randn(visual, WIDTH, generator=draw)
    kept = torch.randperm(100, generator=draw)[:visual].sort().values
    image = torch.stack([torch.zeros_like(kept), kept // 10, kept % 10]) + before
    start = before + 10
    positions = torch.cat(
        [torch.arange(before).expand(3, -1), image, torch.arange(start, start + words).expand(3, -1)], 1
    )
    if not visual:
        return Prompt(inputs_embeds=embeds, token_ids=ids, visual_mask=mask, position_ids=None)
    return Prompt(
        inputs_embeds=embeds,
        token_ids=ids,
        visual_mask=mask,
        position_ids=positions,
        deepstack=torch.randn(DEEP, visual, WIDTH, generator=draw),
    )


@torch.inference_mode()
def recomputed(model, prompt, count):
    """Greedy ids. Each token is computed from the whole sequence: no cache, no batch, no padding."""
    answer = []
    for _ in range(count):
        embeds = torch.cat([prompt.inputs_embeds, model.embed(torch.tensor(answer, dtype=torch.long))])
        positions = torch.arange(len(embeds)).expand(3, -1)
        if prompt.position_ids is not None:
            after = prompt.position_ids.max() + 1 + torch.arange(len(answer))
            positions = torch.cat([prompt.position_ids, after.expand(3, -1)], 1)
        extra = {}
        if prompt.deepstack is not None:
            mask = torch.cat([prompt.visual_mask, torch.zeros(len(answer), dtype=torch.bool)])
            extra = {"visual_pos_masks": mask[None], "deepstack_visual_embeds": list(prompt.deepstack)}
        out = model.model(inputs_embeds=embeds[None], position_ids=positions[:, None], logits_to_keep=1, **extra)
        answer.append(int(out.logits[0, -1].argmax()))
    return answer


def generation(prompt, count, emitted=(), **options):
    sampling = Sampling(max_tokens=count, **options)
    return Generation(request_id="test", prompt=prompt, sampling=sampling, emitted=tuple(emitted))


async def answer(engine, prompt, count, emitted=(), **options):
    return [token.id async for token in engine.generate(generation(prompt, count, emitted=emitted, **options))]


@pytest.fixture
def passes(model):
    """A function that tells the number of forward passes so far. Each is slow, so no answer ends too early."""
    counted = []

    def count(*_):
        counted.append(1)
        time.sleep(0.02)

    hook = model.model.register_forward_hook(count)
    yield lambda: len(counted)
    hook.remove()


@pytest.fixture
async def engine(model):
    engine = TransformersEngine(model, Metrics("tiny"), 1 << 20, prefill_tokens=24, prefix_block=4)
    yield engine
    await engine.close()


async def test_answers_are_the_same_in_batches_chunks_and_after_failover(model, engine):
    """Kept positions and DeepStack; prompts shorter and longer than a prefill chunk; alone, together, and resumed."""
    prompts = [prompt(model, *shape, seed) for seed, shape in enumerate([(9, 5), (30, 12), (0, 7), (3, 40), (50, 3)])]
    expected = [recomputed(model, one, 10) for one in prompts]
    assert len({tuple(one) for one in expected}) == 5
    assert [await answer(engine, one, 10) for one in prompts] == expected
    assert await asyncio.gather(*(answer(engine, one, 10) for one in prompts * 2)) == expected * 2
    for cut in (1, 4, 9):
        rest = await asyncio.gather(
            *(answer(engine, one, 10, ids[:cut]) for one, ids in zip(prompts, expected, strict=True))
        )
        assert rest == [ids[cut:] for ids in expected]


@pytest.mark.parametrize("words", [3, 4, 5, 8])
async def test_a_repeated_text_prompt_has_the_same_answer(model, engine, words):
    """Prompts of whole blocks and of broken ones: at least one token is left to prefill."""
    one = prompt(model, 0, words, 7)
    assert [await answer(engine, one, 5) for _ in range(4)] == [recomputed(model, one, 5)] * 4


async def test_chunks_of_a_long_prompt_cost_alike(model, engine):
    """Each token attends to all before it, so later chunks have fewer tokens. The answer is that of one pass."""
    chunks, long = [], prompt(model, 30, 200, 1)

    def note(module, args, inputs):
        chunks.append(inputs["inputs_embeds"].shape[1])

    hook = model.model.register_forward_pre_hook(note, with_kwargs=True)
    try:
        assert await answer(engine, long, 1) == recomputed(model, long, 1)
    finally:
        hook.remove()
    *chunks, _whole = chunks  # the last pass is that of `recomputed`
    cost = model.info.geometry.cost_model()
    ends = list(accumulate(chunks))
    costs = [cost.prefill_flops(end) - cost.prefill_flops(end - chunk) for end, chunk in zip(ends, chunks, strict=True)]
    assert ends[-1] == len(long.token_ids) and chunks[0] == 24 > chunks[-2]
    assert max(costs[1:-1]) < 1.1 * costs[0] and min(costs[1:-1]) > 0.9 * costs[0]


async def test_a_pass_is_filled_with_the_beginning_of_the_next_prompt(model, engine):
    """Prompts of 37 tokens and passes of some 24: no pass of a few tokens between two prompts, and none for each of
    them alone."""
    passes, prompts, arrived = [], [prompt(model, 30, 3, seed) for seed in range(4)], threading.Event()
    expected = [recomputed(model, one, 1) for one in prompts]

    def note(module, args, inputs):
        arrived.wait()  # the first prompt goes on once the others are there
        passes.append(inputs["inputs_embeds"].shape[1])

    hook = model.model.register_forward_pre_hook(note, with_kwargs=True)
    try:
        asked = [asyncio.create_task(answer(engine, one, 1)) for one in prompts]
        await asyncio.sleep(0)
        arrived.set()
        assert await asyncio.gather(*asked) == expected
    finally:
        arrived.set()
        hook.remove()
    assert sum(passes) == sum(len(one.token_ids) for one in prompts)
    assert min(passes[:-1]) > 16


async def test_a_long_prompt_does_not_stall_a_running_answer(model, engine, monkeypatch):
    """In each pass of its chunks the running answer gets a token, and after each it has as much time as that took."""
    passes, short, long = [], prompt(model, 9, 5, 0), prompt(model, 30, 166, 1)
    arrived, seconds = threading.Event(), [0]
    # A clock of the passes alone: a chunk takes five seconds, a step of the answer one.
    clock = SimpleNamespace(monotonic=lambda: seconds[0])
    monkeypatch.setattr("fsr.decoder.engines.transformers.engine.time", clock)

    def note(module, args, inputs):
        arrived.wait()  # the running answer goes on once the long prompt is there
        passes.append((inputs["inputs_embeds"].shape[1], len(inputs["logits_to_keep"])))
        seconds[0] += 5 if passes[-1][1] == 2 else 1

    running = engine.generate(generation(short, 230))
    await anext(running)
    hook = model.model.register_forward_pre_hook(note, with_kwargs=True)
    try:
        asked = asyncio.create_task(answer(engine, long, 1))
        await asyncio.sleep(0)
        arrived.set()
        first = await asked
    finally:
        arrived.set()
        hook.remove()
        await running.aclose()
    assert first == recomputed(model, long, 1)
    chunks = [tokens - 1 for tokens, sequences in passes if sequences == 2]
    assert len(chunks) > 200 // 24 and sum(chunks) == 200
    assert all(tokens == 1 for tokens, sequences in passes if sequences == 1)
    places = [at for at, (_, sequences) in enumerate(passes) if sequences == 2]
    between = [following - at for at, following in pairwise(places)]
    # Five steps of the answer between two chunks. The last chunk ends the prompt, and need not wait.
    assert set(between[:-1]) == {6}


async def test_a_short_prompt_does_not_wait_for_a_long_one_before_it(model, engine):
    """Each is answered as alone."""
    short, long = prompt(model, 9, 5, 0), prompt(model, 30, 200, 1)
    expected, arrived, ended = [recomputed(model, one, 1) for one in (short, long)], threading.Event(), []

    async def ask(one):
        ended.append(await answer(engine, one, 1))

    def hold(*_):
        arrived.wait()  # the long one goes on beside the short one

    hook = model.model.register_forward_pre_hook(hold)
    try:
        asked = [asyncio.create_task(ask(one)) for one in (long, short)]
        await asyncio.sleep(0)
        arrived.set()
        await asyncio.gather(*asked)
    finally:
        arrived.set()
        hook.remove()
    assert ended == expected


class LargestTensor(TorchFunctionMode):
    """The most numbers of a new tensor that the functions in its block return."""

    numbers = 0

    def __torch_function__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        if isinstance(out, torch.Tensor):
            given = [one.untyped_storage().data_ptr() for one in args if isinstance(one, torch.Tensor)]
            if out.untyped_storage().data_ptr() not in given:  # else it is a view
                self.numbers = max(self.numbers, out.numel())
        return out


def test_a_decode_step_copies_no_keys_and_values(model):
    """Keys of one layer are larger than anything that the step makes."""
    runner = BatchRunner(model, 1 << 20, prefill_tokens=1024, prefix_block=4)
    sequences = [runner.start(generation(prompt(model, 30, 160, seed), 5)) for seed in range(3)]
    runner.step(sequences)
    with LargestTensor() as largest:
        runner.step(sequences)
    heads, width = model.model.config.num_key_value_heads, model.model.config.head_dim
    assert 0 < largest.numbers < sequences[0].filled * heads * width


def test_a_pass_has_no_padding(model):
    """Sequences of different lengths, some to prefill and some to answer."""
    runner, shapes = BatchRunner(model, 1 << 20, prefill_tokens=512, prefix_block=4), []
    hook = model.model.register_forward_pre_hook(
        lambda module, args, inputs: shapes.append(tuple(inputs["inputs_embeds"].shape)), with_kwargs=True
    )
    try:
        running = [runner.start(generation(prompt(model, 9, words, 0), 5)) for words in (5, 50)]
        runner.step(running)
        runner.step([*running, runner.start(generation(prompt(model, 0, 3, 1), 5))])
    finally:
        hook.remove()
    assert shapes == [(1, 18 + 63, WIDTH), (1, 2 + 7, WIDTH)]


def test_answers_are_the_same_where_leases_move(model):
    """A new request needs the free slots before a running one and those after it."""
    prompts = [prompt(model, *shape, seed) for seed, shape in enumerate([(9, 5), (20, 12), (0, 60)])]
    expected = [recomputed(model, one, 20) for one in prompts]
    slots = sum(len(one.token_ids) + 20 for one in prompts[1:])
    runner = BatchRunner(model, slots * 3 * 2 * 2 * 8 * 4, prefill_tokens=512, prefix_block=4)
    first, second = (runner.start(generation(one, 20)) for one in prompts[:2])
    for _ in range(5):
        runner.step([first, second])
    assert second.lease.first > 0 and first.tokens == expected[0][:5]
    runner.release(first)
    third = runner.start(generation(prompts[2], 20))
    assert second.lease.first == 0
    while len(third.tokens) < 20:
        runner.step([one for one in (second, third) if len(one.tokens) < 20])
    assert [second.tokens, third.tokens] == expected[1:]


async def test_an_answer_ends_at_the_context_length(model, engine):
    long = prompt(model, 0, 240, 3)
    assert len(await answer(engine, long, 100)) == 256 - 244


async def test_leaving_early_frees_kv_memory_within_a_step(model, engine, passes):
    one = prompt(model, 9, 5, 0)

    async def settled():
        while engine.kv_used():
            await asyncio.sleep(0.001)

    for _ in range(3):
        stream = engine.generate(generation(one, 200))
        await anext(stream)
        assert engine.kv_used() > 0
        await stream.aclose()
        left = passes()
        await settled()
        assert passes() - left <= 1
    task, before = asyncio.create_task(answer(engine, one, 200)), passes()
    while passes() < before + 3:
        await asyncio.sleep(0.001)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    left = passes()
    await settled()
    assert passes() - left <= 1
    assert await answer(engine, one, 5) == recomputed(model, one, 5)


async def test_a_request_that_cannot_start_fails_alone(model, engine):
    """Two requests arrive together. The first is larger than the pool; admission would have refused it."""
    small = TransformersEngine(model, Metrics("tiny"), 40 * 3 * 2 * 2 * 8 * 4)
    good = prompt(model, 9, 5, 0)
    async with asyncio.timeout(20):
        with capture_logs() as logs:
            too_long, fine = await asyncio.gather(
                answer(small, prompt(model, 9, 60, 1), 5), answer(small, good, 5), return_exceptions=True
            )
    assert isinstance(too_long, NotReady)
    assert [(log["event"], log["request_id"]) for log in logs] == [("a request cannot start", "test")]
    assert fine == recomputed(model, good, 5)
    assert not small.dead.is_set() and small.kv_used() == 0
    await small.close()


class Gate(threading.Condition):
    """Holds the engine's thread in front of its lock, from `close` until `open`."""

    closed, reached, opened = threading.Event(), threading.Event(), threading.Event()

    def __enter__(self):
        if self.closed.is_set() and threading.current_thread().name == "engine":
            self.reached.set()
            self.opened.wait()
        return super().__enter__()


async def test_slots_of_a_finished_request_are_free_for_its_successor(model, monkeypatch):
    """The pool holds one request. One leaves and the next arrives while the engine is about to look at both."""
    one = prompt(model, 9, 5, 0)
    monkeypatch.setattr(threading, "Condition", Gate)
    small = TransformersEngine(model, Metrics("tiny"), 150 * 3 * 2 * 2 * 8 * 4)
    monkeypatch.undo()
    async with asyncio.timeout(20):
        leaving = small.generate(generation(one, 130))
        await anext(leaving)
        Gate.closed.set()
        await asyncio.to_thread(Gate.reached.wait)
        await leaving.aclose()
        following = asyncio.create_task(answer(small, one, 130))
        await asyncio.sleep(0)
        Gate.closed.clear()
        Gate.opened.set()
        assert len(await following) == 130
    await small.close()


async def test_a_failing_step_fails_only_its_requests(model, engine):
    good, bad = prompt(model, 9, 5, 0), prompt(model, 9, 5, 1)
    bad.inputs_embeds.resize_(0)  # check_prompt refuses this
    with pytest.raises(NotReady, match="another replica"), capture_logs():
        await answer(engine, bad, 5)
    assert await answer(engine, good, 5) == recomputed(model, good, 5)
    assert not engine.dead.is_set()


async def test_a_new_request_that_fails_ends_no_running_answer(model, engine):
    good, bad = prompt(model, 9, 5, 0), prompt(model, 9, 5, 1)
    bad.inputs_embeds.resize_(0)  # check_prompt refuses this
    running = engine.generate(generation(good, 60))
    tokens = [(await anext(running)).id]
    with pytest.raises(NotReady), capture_logs():
        await answer(engine, bad, 5)
    tokens += [token.id async for token in running]
    assert tokens == recomputed(model, good, 60)


async def test_an_engine_that_keeps_failing_is_dead(model):
    class Broken(nn.Module):
        def forward(self, **inputs):
            raise RuntimeError("no kernel image is available")

    engine = TransformersEngine(SimpleNamespace(**vars(model) | {"model": Broken()}), Metrics("tiny"), 1 << 20)
    for _ in range(3):
        with pytest.raises(NotReady), capture_logs():
            await answer(engine, prompt(model, 9, 5, 0), 5)
    await asyncio.wait_for(engine.dead.wait(), 5)
    with pytest.raises(NotReady):
        await answer(engine, prompt(model, 9, 5, 0), 5)
    await engine.close()


async def test_close_fails_running_requests_with_not_ready(model):
    engine = TransformersEngine(model, Metrics("tiny"), 1 << 20)
    stream = engine.generate(generation(prompt(model, 9, 5, 0), 240))
    await anext(stream)
    await engine.close()
    with pytest.raises(NotReady, match="shutting down"):
        async for _ in stream:
            pass


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"inputs_embeds": torch.zeros(18, WIDTH + 1)}, r"\[18, 33\]"),
        ({"inputs_embeds": torch.zeros(17, WIDTH)}, r"\[17, 32\]"),
        ({"inputs_embeds": torch.zeros(18, WIDTH, dtype=torch.float16)}, "float16"),
        ({"inputs_embeds": torch.full((18, WIDTH), torch.inf)}, "NaN or infinity as fp32"),
        ({"inputs_embeds": torch.zeros(256, WIDTH), "token_ids": torch.zeros(256)}, "256 tokens"),
    ],
)
def test_a_prompt_that_can_harm_an_engine_is_refused(model, change, message):
    good = prompt(model, 9, 5, 0)
    check_prompt(good, model)
    fields = {name: getattr(good, name) for name in ("inputs_embeds", "token_ids", "visual_mask", "position_ids")}
    with pytest.raises(InvalidRequest, match=message):
        check_prompt(Prompt(**fields | change), model)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"position_ids": torch.zeros(3, 17, dtype=torch.int64)}, r"positions are not \[3, 18\]"),
        ({"position_ids": torch.full((3, 18), -1)}, "at least 0"),
        ({"position_ids": torch.full((3, 18), 87)}, "reach 101, this replica takes 100; send smaller"),
        ({"deepstack": torch.zeros(2, 10, WIDTH)}, r"deepstack are \[2, 10, 32\], not \[layers, 9, 32\]"),
        ({"deepstack": torch.full((2, 9, WIDTH), torch.nan)}, "deepstack hold NaN"),
        ({"deepstack": torch.zeros(2, 9, WIDTH, dtype=torch.float16)}, "deepstack are torch.float16"),
    ],
)
def test_positions_and_deepstack_that_can_harm_an_engine_are_refused(model, change, message):
    good = prompt(model, 9, 5, 0)
    fields = {name: getattr(good, name) for name in ("inputs_embeds", "token_ids", "visual_mask")}
    fields |= {"position_ids": torch.full((3, 18), 86), "deepstack": torch.zeros(2, 9, WIDTH)}
    check_prompt(Prompt(**fields), model, most_answer_tokens=13, position_limit=100)
    with pytest.raises(InvalidRequest, match=message):
        check_prompt(Prompt(**fields | change), model, most_answer_tokens=13, position_limit=100)
