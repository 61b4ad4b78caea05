"""Plug-and-play: the model's own `generate` with fewer visual tokens, on every family."""

import threading
from itertools import accumulate, groupby

import pytest
import torch
from PIL import Image
from transformers import LogitsProcessor

import fsr_core
from fsr_core import FSR, Budget
from fsr_core.backbones import load_encoder
from helpers import checkpoints
from helpers.benches import QUESTION, SIZES, chat, continue_greedily, picture, shown

NAMES = tuple(checkpoints.FAMILIES)
CHATS = {
    "two pictures": (("user", picture(SIZES[0]), picture(SIZES[1], 1), QUESTION),),
    "a later picture": (
        ("user", picture(SIZES[0]), QUESTION),
        ("assistant", "the seconds"),
        ("user", picture(SIZES[1], 1), "and here?"),
    ),
    "a picture and a video": (("user", picture(SIZES[0]), [picture((48, 32), i) for i in range(3)], QUESTION),),
}
GREEDY = {"max_new_tokens": 6, "do_sample": False}
GUESSED = {"prompt_lookup_num_tokens": 3, "max_matching_ngram_size": 1}


def batch(own, questions=(QUESTION, "what is the star, and the seconds?")):
    texts = [
        own.processor.apply_chat_template(
            [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": q}]}], add_generation_prompt=True
        )
        for q in questions
    ]
    pictures = [picture(size, i) for i, size in enumerate(SIZES[: len(texts)])]
    # This processor takes a flat list for the pictures of a single prompt.
    given = [[one] for one in pictures] if own.name == "smolvlm" else pictures
    return own.processor(images=given, text=texts, return_tensors="pt", padding=True), pictures


def plugged(own, budget, **options):
    return fsr_core.compressed(own.whole, own.processor, budget, clip=own.clip, **options)


@pytest.mark.parametrize("name", NAMES)
def test_all_tokens_equal_the_class_itself(bench, name):
    own = bench(name)
    inputs, _ = batch(own)
    options = GREEDY | {"output_logits": True, "return_dict_in_generate": True}
    want = own.whole.generate(**inputs, **options)
    with plugged(own, 10**6):
        got = own.whole.generate(**inputs, **options)
    assert torch.equal(got.sequences, want.sequences)
    assert all(torch.allclose(g, w, atol=1e-4) for g, w in zip(got.logits, want.logits, strict=True))


#: Width and height. 2 x 100 is 50 : 1, 200 : 1 is the most that is taken.
ODD_SHAPES = ((7, 1000), (1000, 7), (2, 100), (1, 1), (200, 1))


@pytest.mark.parametrize("name", NAMES)
def test_odd_shapes_equal_the_class_and_the_two_halves(bench, name):
    """One batch of prompts, each with a picture of another shape."""
    own = bench(name)
    turn = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": QUESTION}]}]
    pictures = [picture(size) for size in ODD_SHAPES]
    inputs = own.processor(
        images=[[one] for one in pictures] if own.name == "smolvlm" else pictures,
        text=[own.processor.apply_chat_template(turn, add_generation_prompt=True)] * len(pictures),
        return_tensors="pt",
        padding=True,
    )
    options, width = GREEDY | {"max_new_tokens": 2}, inputs["input_ids"].shape[1]
    want = own.whole.generate(**inputs, **options)
    with plugged(own, 10**6) as vlm:
        assert torch.equal(vlm.generate(**inputs, **options), want)
    with plugged(own, 9) as vlm:
        rows = vlm.generate(**inputs, **options)[:, width:]
    messages, _, _, _ = chat(own, ("user", pictures[0], QUESTION))
    for i, image in enumerate(pictures):
        prompt = own.decoder.prompt(messages, shown(own, [image])[2])
        assert prompt.token_ids.tolist() == inputs["input_ids"][i][inputs["attention_mask"][i].bool()].tolist()
        answer = continue_greedily(own.decoder, own.decoder.prompt(messages, shown(own, [image], budget=9)[2]), 2)
        assert rows[i][: len(answer)].tolist() == answer
        assert vlm.last[i].picture(image).width >= 720


@pytest.mark.parametrize("name", NAMES)
def test_few_tokens_equal_the_two_halves(bench, name):
    """In a batch of two prompts of different length, each row equals the answer of encoder half and decoder half."""
    own = bench(name)
    inputs, pictures = batch(own)
    with plugged(own, 9) as vlm:
        rows = vlm.generate(**inputs, **GREEDY)[:, inputs["input_ids"].shape[1] :]
    questions = (QUESTION, "what is the star, and the seconds?")
    for row, image, question, kept_prompt in zip(rows, pictures, questions, vlm.last, strict=True):
        messages, _, _, _ = chat(own, ("user", image, question))
        _, kept, laid = shown(own, [image], budget=9)
        answer = continue_greedily(own.decoder, own.decoder.prompt(messages, laid), 6)
        assert row[: len(answer)].tolist() == answer
        assert kept_prompt.images[0].index.tolist() == kept[0].index.tolist()
        assert kept_prompt.saved.tokens_after == len(laid[0].features) < kept_prompt.saved.tokens_before
        layers = 0 if laid[0].deepstack is None else laid[0].deepstack.nbytes
        assert kept_prompt.saved.wire_bytes_after == laid[0].features.nbytes + layers


@pytest.mark.parametrize("name", checkpoints.VIDEO)
def test_videos_equal_the_class_and_the_two_halves(bench, name):
    own = bench(name)
    frames = [picture((48, 32), i) for i in range(4)]
    messages, inputs, _, _ = chat(own, ("user", frames, QUESTION))
    want = own.whole.generate(**inputs, **GREEDY)
    with plugged(own, 10**6) as vlm:
        assert torch.equal(vlm.generate(**inputs, **GREEDY), want)
    with plugged(own, 9) as vlm:
        few = vlm.generate(**inputs, **GREEDY)[0, inputs["input_ids"].shape[1] :]
        assert vlm.last[0].picture(frames).width > 700
    _, _, laid = shown(own, (), [frames], budget=9)
    answer = continue_greedily(own.decoder, own.decoder.prompt(messages, laid), 6)
    assert few[: len(answer)].tolist() == answer


def by_kind(prompt):
    """Embeddings and positions of text rows and of visual rows, and the lengths of their stretches in order."""
    seen = prompt.visual_mask
    places = prompt.position_ids if prompt.position_ids is not None else torch.zeros(3, len(seen))
    stretches = [(visual, len(list(same))) for visual, same in groupby(seen.tolist())]
    return [(prompt.inputs_embeds[mask], places[:, mask]) for mask in (~seen, seen)], stretches


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("talk", ["two pictures", "a later picture", "a picture and a video"])
def test_few_tokens_of_several_pictures(bench, name, talk):
    """The kept rows of each picture stay in place and in order, and the text does not change.

    Another test compares the prompt with all tokens with the class's own.
    """
    if talk == "a picture and a video" and name not in checkpoints.VIDEO:
        pytest.skip("takes pictures only")
    own, budget = bench(name), 30 if name in checkpoints.SHUFFLED else 7  # no view without tokens
    turns = CHATS[talk]
    messages, inputs, pictures, videos = chat(own, *turns)
    _, _, laid = shown(own, pictures, videos)
    _, kept, few = shown(own, pictures, videos, budget=budget)
    (text, visual), stretches = by_kind(own.decoder.prompt(messages, laid))
    prompt = own.decoder.prompt(messages, few)
    (text_now, visual_now), stretches_now = by_kind(prompt)
    assert torch.equal(text_now[0], text[0]) and torch.equal(text_now[1], text[1])
    assert [length for seen, length in stretches_now if not seen] == [length for seen, length in stretches if not seen]
    assert torch.equal(visual_now[0], torch.cat([image.features for image in few]))
    if prompt.position_ids is not None:
        starts = [0, *accumulate(len(image.features) for image in laid)]
        rows = torch.cat([start + one.index for start, one in zip(starts, kept, strict=False)])
        assert torch.equal(visual_now[1], visual[1][:, rows])
    with plugged(own, budget) as vlm:
        got = vlm.generate(**inputs, **GREEDY)[0, inputs["input_ids"].shape[1] :].tolist()
    answer = continue_greedily(own.decoder, prompt, 6)
    assert got[: len(answer)] == answer


@pytest.mark.parametrize("name", ["llava", "qwen3_vl"])
def test_beams_sampling_and_several_answers(bench, name):
    own = bench(name)
    inputs, _ = batch(own)
    width = inputs["input_ids"].shape[1]
    ways = {
        "beams": {"num_beams": 3, "do_sample": False, "num_return_sequences": 2},
        "sampling": {"do_sample": True, "num_return_sequences": 2},
    }
    for options in ways.values():
        torch.manual_seed(1)
        want = own.whole.generate(**inputs, max_new_tokens=5, **options)
        with plugged(own, 10**6):
            torch.manual_seed(1)
            assert torch.equal(own.whole.generate(**inputs, max_new_tokens=5, **options), want)
        with plugged(own, 4):
            few = own.whole.generate(**inputs, max_new_tokens=5, **options)
        assert len(few) == 4
        assert torch.equal(few[:, :width], inputs["input_ids"].repeat_interleave(2, dim=0))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("budget", [9, 10**6])
@pytest.mark.parametrize(
    ("options", "rows"), [({"use_cache": False}, 2), ({"use_cache": False, "num_beams": 2}, 2), (GUESSED, 1)]
)
def test_passes_that_reach_past_the_prompt(bench, name, budget, options, rows):
    """Generation without a cache, or with speculative tokens from the prompt, equals plain generation with a cache."""
    own = bench(name)
    inputs, _ = batch(own, (QUESTION, "what is the star, and the seconds?")[-rows:])
    cached = GREEDY | {name: value for name, value in options.items() if name == "num_beams"}
    with plugged(own, budget):
        want = own.whole.generate(**inputs, **cached)
        got = own.whole.generate(**inputs, **(cached | options))
    assert torch.equal(got, want)


def test_model_after_an_error_is_as_before(bench):
    own = bench("qwen2_5_vl")
    inputs, _ = batch(own)
    before = own.whole.generate(**inputs, **GREEDY)
    with pytest.raises(KeyError), plugged(own, 3) as vlm:
        vlm.generate(**inputs, **GREEDY)
        raise KeyError
    assert torch.equal(own.whole.generate(**inputs, **GREEDY), before)
    assert "generate" not in vars(own.whole)
    with pytest.raises(RuntimeError, match="has been left"):
        vlm.generate(**inputs)


def test_two_models_at_a_time_and_text_alone(bench):
    one, two = bench("llava"), bench("qwen2_5_vl")
    with plugged(one, 3) as first, plugged(two, 5) as second:
        for own, vlm, budget in ((one, first, 3), (two, second, 5)):
            inputs, _ = batch(own)
            vlm.generate(**inputs, **GREEDY)
            assert [len(kept_prompt.images[0]) for kept_prompt in vlm.last] == [budget, budget]
        with pytest.raises(ValueError, match="leave the other context first"), plugged(one, 3):
            pass
        plain = one.processor(text=["USER: what? ASSISTANT:"], return_tensors="pt")
        first.generate(**plain, **GREEDY)
        assert first.last == ()


def test_text_prompt_while_a_picture_runs_waits(bench):
    """Otherwise the text prompt would get the embeddings of the picture's prompt."""
    own, answers = bench("llava"), {}
    plain = own.processor(text=["USER: what? ASSISTANT:"], return_tensors="pt")
    want = own.whole.generate(**plain, **GREEDY)
    inside, go_on = threading.Event(), threading.Event()

    class Held(LogitsProcessor):
        def __call__(self, input_ids, scores):
            inside.set()
            go_on.wait(60)
            return scores

    with plugged(own, 3) as vlm:

        def ask(name, **options):
            answers[name] = vlm.generate(**options, **GREEDY)

        picture = threading.Thread(target=ask, args=("picture",), kwargs=dict(batch(own)[0], logits_processor=[Held()]))
        text = threading.Thread(target=ask, args=("text",), kwargs=dict(plain))
        picture.start()
        assert inside.wait(60)
        text.start()
        text.join(1)  # if it does not wait, it is done by now
        go_on.set()
        picture.join(60)
        text.join(60)
    assert torch.equal(answers["text"], want)


def test_question_when_the_tokenizer_lacks_the_video_token_is_whole(bench, monkeypatch, tmp_path):
    own = bench("llava")
    monkeypatch.setattr(own.whole.config, "video_token_id", 10**6, raising=False)
    assert own.processor.tokenizer.convert_ids_to_tokens(10**6) is None
    inputs, _ = batch(own, ("None? seconds",))
    with fsr_core.compressed(
        own.whole, own.processor, 3, clip=checkpoints.clip(own.whole.model.vision_tower, tmp_path)
    ) as vlm:
        vlm.generate(**inputs, **GREEDY)
    assert vlm.last[0].instruction == "None? seconds"


@pytest.mark.parametrize("name", ["llava", "llava_next"])
def test_the_question_is_found_in_the_chat_or_given(bench, name, tmp_path):
    """With a CLIP text tower, the kept tokens depend on the last user turn, as in the encoder half."""
    own = bench(name)
    clip = checkpoints.clip(own.whole.model.vision_tower, tmp_path)
    encoder = load_encoder(str(own.folder), clip=clip)
    inputs, pictures = batch(own)
    with fsr_core.compressed(own.whole, own.processor, keep_ratio=0.2, clip=clip) as vlm:
        vlm.generate(**inputs, **GREEDY)
        found = vlm.last
        vlm.generate(**inputs, **GREEDY, instruction="what is the star, and the seconds?")
        given = vlm.last
    assert [kept_prompt.instruction for kept_prompt in found] == [QUESTION, "what is the star, and the seconds?"]
    assert found[1].images[0].priority.tolist() == given[1].images[0].priority.tolist()
    assert found[0].images[0].priority.tolist() != given[0].images[0].priority.tolist()
    image = encoder.encode_images([encoder.preprocess(pictures[1])])[0]
    sample = encoder.visual_tokens(image, encoder.encode_instructions(["what is the star, and the seconds?"])[0])
    assert sample.relevance is not None
    turns = [
        {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "and here?"}]},
        {"role": "assistant", "content": [{"type": "text", "text": "seconds"}]},
        {"role": "user", "content": [{"type": "text", "text": "what is  it?"}]},
    ]
    text = own.processor.apply_chat_template(turns, add_generation_prompt=True)
    with fsr_core.compressed(own.whole, own.processor, 5, clip=clip) as vlm:
        vlm.generate(**own.processor(images=pictures[:1], text=[text], return_tensors="pt"), **GREEDY)
        assert vlm.last[0].instruction == "what is it?"
        raw = own.processor(images=pictures[:1], text=["<image> describe"], return_tensors="pt")
        with pytest.raises(ValueError, match="instruction: cannot be found"):
            vlm.generate(**raw)


@pytest.mark.parametrize(
    ("plain", "budget"), [(5, Budget(tokens=5)), (0.3, Budget(keep_ratio=0.3)), ("auto", Budget(auto=True))]
)
def test_budgets_and_options_as_the_sdk_takes_them(bench, plain, budget):
    own = bench("llava")
    inputs, _ = batch(own, (QUESTION,))
    kept = []
    for given in ({"budget": plain, "options": {"rho": 0.3}}, {"budget": budget, "method": FSR(rho=0.3)}):
        with fsr_core.compressed(own.whole, own.processor, clip=own.clip, **given) as vlm:
            vlm.generate(**inputs, **GREEDY)
        kept.append(vlm.last[0].images[0])
    assert kept[0].index.tolist() == kept[1].index.tolist() and kept[0].stage.tolist() == kept[1].stage.tolist()


def test_picture_shows_the_kept_patch(bench):
    """Kept patches are bright and the others are dark, in the pixels of the source picture."""
    own = bench("llava")
    inputs, _ = batch(own, (QUESTION,))
    with plugged(own, 1) as vlm:
        vlm.generate(**inputs, **GREEDY)
    white = Image.new("RGB", SIZES[0], "white")
    drawn = vlm.last[0].picture(white).convert("L")
    row, column = divmod(int(vlm.last[0].images[0].index[0]), 4)
    # 70 x 50 is scaled to 44 x 32 and cut to its middle 32 x 32: 4 x 4 patches between 9.5 and 60.5 pixels.
    across = 720 / 70 * 32 * 70 / 44 / 4
    left = 720 / 70 * 6 * 70 / 44
    centre = (left + (column + 0.5) * across, (row + 0.5) * 720 / 70 * 50 / 4)
    assert drawn.getpixel(tuple(round(c) for c in centre)) > 200
    places = [(left + (c + 0.5) * across, (r + 0.5) * 128.6) for r in range(4) for c in range(4)]
    dark = [drawn.getpixel((round(x), round(y))) for x, y in places]
    assert sum(value < 200 for value in dark) == 15


@pytest.mark.parametrize("name", NAMES)
def test_picture_of_every_family_is_bright_at_kept_tokens(bench, name):
    own = bench(name)
    inputs, _ = batch(own, (QUESTION,))
    clear = {}
    for budget in (2, 10**6):
        with plugged(own, budget) as vlm:
            vlm.generate(**inputs, **GREEDY)
        drawn = vlm.last[0].picture(Image.new("RGB", SIZES[0], "white")).convert("L")
        clear[budget] = sum(drawn.histogram()[200:]) / (drawn.width * drawn.height)
    kept = 2 / len(vlm.last[0].images[0].index)
    assert kept / 4 < clear[2] < 2 * kept < 0.5 < clear[10**6]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"budget": 0}, "budget.tokens"),
        ({"budget": "many"}, r"budget: expected a number of tokens \(64\), a share of them \(0.11\), 'auto' .* 'many'"),
        ({"budget": 16.0}, "budget: 16.0 is no share of the tokens"),
        ({"budget": None}, "either budget or keep_ratio"),
        ({"budget": 3, "keep_ratio": 0.5}, "either budget or keep_ratio"),
        ({"budget": 3, "method": "magic"}, "choose one of"),
        ({"budget": 3, "spread": "wide"}, "spread"),
        ({"budget": 3, "options": {"relevance": "none"}}, "^options: fsr has no option 'relevance'"),
        ({"budget": 3, "method": FSR(), "options": {"rho": 0.5}}, "^options: go with a method's name"),
        ({"budget": 3, "family_options": {"relevance": "none"}}, "^family_options: llava has no option 'relevance'"),
    ],
)
def test_bad_arguments_are_named_and_change_nothing(bench, arguments, says):
    own = bench("llava")
    with pytest.raises(ValueError, match=says), fsr_core.compressed(own.whole, own.processor, clip="none", **arguments):
        pass
    assert "generate" not in vars(own.whole)


def test_bad_inputs_are_named(bench):
    own = bench("llava")
    inputs, _ = batch(own)
    cut = inputs["input_ids"].clone()
    cut[0, (cut[0] == own.whole.config.image_token_id).nonzero()[0]] = 9
    with plugged(own, 3) as vlm:
        for wrong, says in (
            ({"input_ids": None}, "input_ids: are missing"),
            ({"input_ids": cut}, "do not fit the pictures|fewer placeholders"),
            ({"pixel_values": inputs["pixel_values"][:1]}, "no picture or video"),
            ({"past_key_values": object()}, "past_key_values"),
            ({"instruction": ["one", "two", "three"]}, "3 given for 2 prompts"),
        ):
            with pytest.raises(ValueError, match=says):
                vlm.generate(**(inputs | wrong))
    with pytest.raises(ValueError, match=r"processor: .* not a model's whole processor"):
        fsr_core.compressed(own.whole, own.processor.tokenizer, 3).__enter__()
    with pytest.raises(ValueError, match="no vision-language model"), fsr_core.compressed(object(), own.processor, 3):
        pass
