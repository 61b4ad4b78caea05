"""Statistics and plan of the evaluation, and its answers against those of the checkpoint's own `generate`."""

import importlib
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
from fsr_core.evaluation.method_configs import ABLATIONS, FULL, MethodConfig, code_digest, path_digest
from fsr_core.evaluation.question_sets import SET_NAMES, encode_set, questions, set_size
from fsr_core.evaluation.runner import Plan
from fsr_core.evaluation.statistics import Estimate, Resampler, verdict
from fsr_core.tiny import WEIGHTS
from fsr_core.tiny.hard_sets import draw


def test_estimate_of_a_share_has_its_normal_interval():
    right = np.array([1.0, 0.0] * 400)
    estimate = Resampler(800).estimate(right)
    reach = 1.96 * sqrt(0.25 / 800)
    assert estimate.mean == 0.5
    assert estimate.low == pytest.approx(0.5 - reach, abs=0.005)
    assert estimate.high == pytest.approx(0.5 + reach, abs=0.005)


def test_difference_of_two_methods_is_paired():
    """If two methods err on the same questions, the interval of their difference is narrow."""
    generator = np.random.default_rng(0)
    one = (generator.random(600) < 0.5).astype(float)
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


@pytest.mark.parametrize(("low", "high", "says"), [(0.1, 0.2, "wins"), (-0.2, -0.1, "loses"), (-0.1, 0.1, "ties")])
def test_verdict_follows_the_interval(low, high, says):
    assert verdict(Estimate((low + high) / 2, low, high)) == says


def test_plan_names_every_config_once():
    plan = Plan({"test": 8, "tiny": 8}, methods(), [16, 8])
    configs = plan.configs("test")
    assert len({config.key for config in configs}) == len(configs)
    assert sum(config.method == "random" for config in configs) == 2 * 3
    assert len(plan.configs("tiny")) == 1 + 2 * (len(methods()) - 1 + 3)
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
    ("change", "says"),
    [
        ({"sets": {"test": 0}}, "limit"),
        ({"sets": {"tiny": 2000}}, "limit"),
        ({"methods": ["magic"]}, "magic"),
        ({"budgets": [0]}, "budgets"),
        ({"budgets": []}, "budgets"),
        ({"seeds": 0}, "seeds"),
    ],
)
def test_plan_when_wrong_names_the_field(change, says):
    with pytest.raises(ValueError, match=says):
        Plan(**({"sets": {"test": 8}, "methods": ["fsr"], "budgets": [8]} | change))


def test_answers_are_cached_and_read_back(tmp_path):
    config, calls = MethodConfig("fsr", Budget(tokens=8)), []

    def run():
        calls.append(1)
        return Outcome(["red"], [8], [3])

    assert cached_answers(tmp_path, config, run) == cached_answers(tmp_path, config, run) == Outcome(["red"], [8], [3])
    assert len(calls) == 1
    cached_answers(tmp_path, MethodConfig("fsr", Budget(tokens=9)), run)
    assert len(calls) == 2


@pytest.mark.parametrize("name", SET_NAMES)
def test_set_is_stable_and_apart_from_the_test_set(name):
    items = questions(name, 16)
    assert len(items) == 16 <= set_size(name)
    assert items == questions(name, 16)
    if name != "test":
        assert not {scene.seed for scene, _ in items} & {scene.seed for scene, _ in questions("test", 16)}


@pytest.fixture(scope="module")
def halves():
    return load_encoder("fsr-tiny"), load_decoder("fsr-tiny")


@torch.inference_mode()
def test_answers_with_all_tokens_equal_those_of_the_checkpoint(halves, tmp_path):
    """The whole path (cache, layout, padding of a batch) equals the class's own `generate` on single questions."""
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
        assert (
            processor.tokenizer.decode(ids[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True).strip()
            == answer
        )
    assert outcome.kept == [144] * 9
    assert all(torch.equal(a.features, b.features) for a, b in zip(fresh.samples, again.samples, strict=True))


@torch.inference_mode()
def test_answers_with_a_budget_keep_no_more_tokens(halves, tmp_path):
    encoder, decoder = halves
    encoded = encode_set(encoder, questions("crowded", 8), tmp_path / "some.safetensors")
    config = MethodConfig("fsr", Budget(auto=True, max_tokens=20, radius=0.5))
    outcome = answer_questions(encoder, decoder, encoded, config, lambda done: None)
    assert len(outcome.answers) == 8 and max(outcome.kept) <= 20
    assert all(k >= min(20, wanted) for k, wanted in zip(outcome.kept, outcome.focus_wanted, strict=True))


def test_code_digest_differs_for_every_method():
    digests = {name: code_digest(type(MethodConfig(name, None).compressor())) for name in methods()}
    assert len(set(digests.values())) == len(methods())


def test_code_digest_of_a_foreign_method_when_its_package_changes_differs(tmp_path, monkeypatch):
    package = tmp_path / "their_package"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "helper.py").write_text("share = 1\n")
    (package / "method.py").write_text("from fsr_core import FSR\n\n\nclass Theirs(FSR):\n    name = 'theirs'\n")
    monkeypatch.syspath_prepend(tmp_path)
    kind = importlib.import_module("their_package.method").Theirs
    before = code_digest(kind)
    (package / "helper.py").write_text("share = 2\n")
    code_digest.cache_clear()
    assert code_digest(kind) != before


def test_code_digest_of_a_foreign_file_when_it_changes_differs(tmp_path, monkeypatch):
    file = tmp_path / "bare_folder" / "method.py"
    file.parent.mkdir()
    file.write_text("from fsr_core import FSR\n\n\nclass Theirs(FSR):\n    name = 'theirs'\n")
    monkeypatch.syspath_prepend(tmp_path)
    kind = importlib.import_module("bare_folder.method").Theirs
    before = code_digest(kind)
    file.write_text(file.read_text() + "# changed\n")
    code_digest.cache_clear()
    assert code_digest(kind) != before


@pytest.mark.parametrize("part", ["tiny/scenes.py", "backbones/llava.py", "evaluation/answers.py"])
def test_path_digest_when_code_changes_differs(part, monkeypatch):
    read = Path.read_bytes
    before = path_digest()
    monkeypatch.setattr(Path, "read_bytes", lambda file: read(file) + (b"#" if str(file).endswith(part) else b""))
    path_digest.cache_clear()
    changed = path_digest()
    path_digest.cache_clear()
    assert changed != before


@pytest.mark.parametrize("arguments", [["--bogus"], ["--budgets", "many"]])
def test_wrong_options_give_one_error_line(arguments, capsys):
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    error_text = capsys.readouterr().err
    assert (
        ended.value.code == 2
        and error_text.startswith("error: ")
        and error_text.endswith("; see fsr evaluate --help\n")
    )
    assert error_text.count("\n") == 1
