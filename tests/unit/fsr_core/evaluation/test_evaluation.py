"""Statistics, plans and digests of the evaluation, and its answers against the checkpoint's own `generate`."""

import importlib
import shutil
from math import sqrt
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoProcessor, LlavaForConditionalGeneration

from fsr_core import Budget, methods
from fsr_core.backbones import load_decoder, load_encoder
from fsr_core.evaluation.__main__ import main
from fsr_core.evaluation.answers import Outcome, answer_questions, cached_answers
from fsr_core.evaluation.code_digests import method_digest, path_digest
from fsr_core.evaluation.method_configs import ABLATIONS, FULL, VARIANTS, MethodConfig, runs
from fsr_core.evaluation.question_sets import SET_NAMES, encode_set, questions, set_size
from fsr_core.evaluation.runner import Plan, checkpoint_digest
from fsr_core.evaluation.statistics import Estimate, Resampler, verdict
from fsr_core.tiny import WEIGHTS
from fsr_core.tiny.hard_sets import draw


def test_estimate_of_a_share_has_the_normal_interval():
    right = np.array([1.0, 0.0] * 400)
    estimate = Resampler(800).estimate(right)
    half_width = 1.96 * sqrt(0.25 / 800)
    assert estimate.mean == 0.5
    assert estimate.low == pytest.approx(0.5 - half_width, abs=0.005)
    assert estimate.high == pytest.approx(0.5 + half_width, abs=0.005)


def test_estimate_of_a_difference_is_paired():
    """Two methods that fail on nearly the same questions have a narrow interval for their difference."""
    rng = np.random.default_rng(0)
    one = (rng.random(600) < 0.5).astype(float)
    other = one.copy()
    other[:12] = 0
    one[:12] = 1
    resampler = Resampler(600)
    difference = resampler.estimate(other - one)
    assert verdict(difference) == "loses"
    assert verdict(resampler.estimate(one - other)) == "wins"
    assert verdict(resampler.estimate(one - one)) == "ties"
    alone = resampler.estimate(one)
    assert difference.high - difference.low < (alone.high - alone.low) / 3


def test_interval_of_random_includes_its_seeds():
    resampler, questions = Resampler(900), np.arange(900) % 2
    alike, one = resampler.estimate(np.stack([questions] * 3)), resampler.estimate(questions)
    assert (alike.low, alike.high) == pytest.approx((one.low, one.high), abs=1e-5)
    lucky = np.stack([np.zeros(900), np.full(900, 0.5), np.ones(900)])
    spread = resampler.estimate(lucky)
    assert spread.mean == 0.5 and spread.high - spread.low > 0.9
    # The standard error of the mean of three seeds is that of a sample of three.
    (same,) = resampler.simultaneous([lucky])
    assert same.high - same.mean == pytest.approx(1.96 * np.std(lucky[:, 0], ddof=1) / sqrt(3), rel=0.3)


def test_simultaneous_intervals_hold_together_and_one_by_one_do_not():
    """Sixty methods that are as good as the reference: it seldom happens that one of them wins or loses."""
    rng, any_alone, any_together = np.random.default_rng(1), 0, 0
    for seed in range(30):
        resampler, truth = Resampler(400, 600, seed), rng.random(400) < 0.7
        family = [(rng.random(400) < 0.7).astype(float) - truth for _ in range(60)]
        any_alone += any(verdict(resampler.estimate(one)) != "ties" for one in family)
        any_together += any(verdict(one) != "ties" for one in resampler.simultaneous(family))
    assert any_alone > 15 and any_together <= 5


def test_simultaneous_interval_of_one_is_the_usual_one_and_of_no_difference_has_no_length():
    right = np.array([1.0, 0.0] * 400)
    (one, same) = Resampler(800).simultaneous([right, right - right])
    assert (one.low, one.high) == pytest.approx(
        (0.5 - 1.96 * sqrt(0.25 / 800), 0.5 + 1.96 * sqrt(0.25 / 800)), abs=0.005
    )
    assert (same.low, same.mean, same.high) == (0, 0, 0) and verdict(same) == "ties"
    assert Resampler(8).simultaneous([]) == []


def test_runs_have_a_line_for_each_variant_and_the_seeds_in_one():
    compared = runs(["random", "holov", "fsr"], 4)
    assert [run.label for run in compared] == ["random", "holov", *VARIANTS["holov"], "fsr"]
    assert [len(run.options) for run in compared] == [4, 1, 1, 1]
    for run in compared:
        run.configs(Budget(tokens=4))[0].compressor()


@pytest.mark.parametrize(("low", "high", "expected"), [(0.1, 0.2, "wins"), (-0.2, -0.1, "loses"), (-0.1, 0.1, "ties")])
def test_verdict_follows_the_interval(low, high, expected):
    assert verdict(Estimate((low + high) / 2, low, high)) == expected


def test_plan_has_each_configuration_once():
    plan = Plan(sets={"test": 8, "tiny": 8}, methods=methods(), budgets=[16, 8])
    configs = plan.configs("test")
    assert len({config.key for config in configs}) == len(configs)
    assert sum(config.method == "random" for config in configs) == 2 * 3
    variants = sum(map(len, VARIANTS.values()))
    assert len(plan.configs("tiny")) == 1 + 2 * (len(methods()) - 1 + 3 + variants)
    assert {config.method for config in configs} == {FULL, *methods()}
    assert MethodConfig("fsr", Budget(tokens=8), {"rho": 0.5, "beta": 1.0}).key == MethodConfig(
        "fsr", Budget(tokens=8), {"beta": 1.0, "rho": 0.5}
    ).key  # fmt: skip


def test_ablations_name_known_options():
    for group in ABLATIONS.values():
        assert sum(not options for options in group.values()) <= 1
        for options in group.values():
            MethodConfig("fsr", None, options).compressor()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sets": {"test": 0}}, "limit"),
        ({"sets": {"tiny": 2000}}, "limit"),
        ({"methods": ["magic"]}, "magic"),
        ({"budgets": [0]}, "budgets"),
        ({"budgets": []}, "budgets"),
        ({"seeds": 0}, "seeds"),
    ],
)
def test_plan_with_a_bad_value_names_it(change, message):
    with pytest.raises(ValueError, match=message):
        Plan(**({"sets": {"test": 8}, "methods": ["fsr"], "budgets": [8]} | change))


def test_answers_are_stored_and_read_back(tmp_path):
    config, calls = MethodConfig("fsr", Budget(tokens=8)), []

    def run():
        calls.append(1)
        return Outcome(["red"], [8], [3])

    assert cached_answers(tmp_path, config, run) == cached_answers(tmp_path, config, run) == Outcome(["red"], [8], [3])
    assert len(calls) == 1
    cached_answers(tmp_path, MethodConfig("fsr", Budget(tokens=9)), run)
    assert len(calls) == 2


@pytest.mark.parametrize("part", ["", "clip"])
def test_checkpoint_digest_changes_with_the_weights_of_each_part(tmp_path, part):
    shutil.copytree(WEIGHTS, tmp_path / "copy")
    before = checkpoint_digest(str(tmp_path / "copy"))
    file = tmp_path / "copy" / part / "model.safetensors"
    data = bytearray(file.read_bytes())
    data[8 + int.from_bytes(data[:8], "little")] ^= 1  # the first number, behind the header
    file.write_bytes(data)
    assert checkpoint_digest(str(tmp_path / "copy")) != before == checkpoint_digest("fsr-tiny")


@pytest.mark.parametrize("name", SET_NAMES)
def test_questions_are_fixed_and_share_no_scene_with_the_test_set(name):
    items = questions(name, 16)
    assert len(items) == 16 <= set_size(name)
    assert items == questions(name, 16)
    if name != "test":
        assert not {scene.seed for scene, _ in items} & {scene.seed for scene, _ in questions("test", 16)}


@pytest.fixture(scope="module")
def halves():
    return load_encoder("fsr-tiny"), load_decoder("fsr-tiny")


@torch.inference_mode()
def test_answers_with_all_tokens_equal_the_checkpoints_own(halves, tmp_path):
    """The whole path (stored features, layout, padding) against the class's own `generate`, one question at a time."""
    encoder, decoder = halves
    items = questions("test", 9)  # questions of different lengths, so that rows are padded
    fresh = encode_set(encoder, items, tmp_path / "some.safetensors")
    again = encode_set(encoder, items, tmp_path / "some.safetensors")
    outcome = answer_questions(encoder, decoder, again, MethodConfig(FULL, None), lambda done: None)
    processor = AutoProcessor.from_pretrained(WEIGHTS)
    model = LlavaForConditionalGeneration.from_pretrained(WEIGHTS, dtype=torch.float32)
    for (scene, question), answer in zip(items, outcome.answers, strict=True):
        part = [{"type": "image"}, {"type": "text", "text": question.text}]
        text = processor.apply_chat_template([{"role": "user", "content": part}], add_generation_prompt=True)
        inputs = processor(images=draw(scene), text=text, return_tensors="pt")
        ids = model.generate(**inputs, do_sample=False, max_new_tokens=5)
        text = processor.tokenizer.decode(ids[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
        assert text.strip() == answer
    assert outcome.kept == [144] * 9
    assert all(torch.equal(a.features, b.features) for a, b in zip(fresh.samples, again.samples, strict=True))


@torch.inference_mode()
def test_answers_with_an_automatic_budget_keep_within_it(halves, tmp_path):
    encoder, decoder = halves
    encoded = encode_set(encoder, questions("crowded", 8), tmp_path / "some.safetensors")
    config = MethodConfig("fsr", Budget(auto=True, max_tokens=20, radius=0.5))
    outcome = answer_questions(encoder, decoder, encoded, config, lambda done: None)
    assert len(outcome.answers) == 8 and max(outcome.kept) <= 20
    assert all(k >= min(20, wanted) for k, wanted in zip(outcome.kept, outcome.focus_wanted, strict=True))


def test_method_digest_differs_for_each_method():
    digests = {name: method_digest(type(MethodConfig(name, None).compressor())) for name in methods()}
    assert len(set(digests.values())) == len(methods())


def test_method_digest_of_a_third_partys_method_changes_with_its_package(tmp_path, monkeypatch):
    package = tmp_path / "their_package"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "helper.py").write_text("share = 1\n")
    (package / "method.py").write_text("from fsr_core import FSR\n\n\nclass Theirs(FSR):\n    name = 'theirs'\n")
    monkeypatch.syspath_prepend(tmp_path)
    kind = importlib.import_module("their_package.method").Theirs
    before = method_digest(kind)
    (package / "helper.py").write_text("share = 2\n")
    method_digest.cache_clear()
    assert method_digest(kind) != before


def test_method_digest_of_a_method_in_a_bare_folder_changes_with_its_file(tmp_path, monkeypatch):
    file = tmp_path / "bare_folder" / "method.py"
    file.parent.mkdir()
    file.write_text("from fsr_core import FSR\n\n\nclass Theirs(FSR):\n    name = 'theirs'\n")
    monkeypatch.syspath_prepend(tmp_path)
    kind = importlib.import_module("bare_folder.method").Theirs
    before = method_digest(kind)
    file.write_text(file.read_text() + "# changed\n")
    method_digest.cache_clear()
    assert method_digest(kind) != before


PATH = ["tiny/scenes.py", "tiny/quilts.py", "tiny/hard_sets.py", "tiny/questions.py", "evaluation/answers.py"]
PATH += ["evaluation/question_sets.py", "backbones/llava.py", "backbones/language/splice.py"]


@pytest.mark.parametrize("part", PATH)
def test_path_digest_changes_with_each_file_on_the_path(part, monkeypatch):
    read = Path.read_bytes
    before = path_digest()
    monkeypatch.setattr(Path, "read_bytes", lambda file: read(file) + (b"#" if str(file).endswith(part) else b""))
    path_digest.cache_clear()
    changed = path_digest()
    path_digest.cache_clear()
    assert changed != before


@pytest.mark.parametrize("given", [["--bogus"], ["--budgets", "many"]])
def test_wrong_options_give_one_line(given, capsys):
    with pytest.raises(SystemExit) as ended:
        main(given)
    message = capsys.readouterr().err
    assert ended.value.code == 2
    assert message.startswith("error: ") and message.endswith("; see fsr evaluate --help\n")
    assert message.count("\n") == 1
