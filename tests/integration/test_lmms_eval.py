"""Runs the plugin inside lmms-eval on a small local task. `make lmms-eval` creates its environment."""

import json
import os
import subprocess
from pathlib import Path

import pytest
import torch

from fsr_core.tiny.questions import is_correct
from fsr_core.tiny.scenes import draw
from fsr_core.tiny.test_set import frozen_test_set
from helpers import checkpoints
from helpers.benches import Bench, picture

ROOT = Path(__file__).parents[2]
PYTHON = Path(os.environ.get("FSR_LMMS_PYTHON", ROOT / ".venv-lmms/bin/python"))
pytestmark = pytest.mark.lmms

TASK = """
task: fsr_scenes
dataset_path: json
dataset_kwargs:
  data_files:
    test: {data}
test_split: test
output_type: generate_until
doc_to_visual: !function scenes_task.visual
doc_to_text: !function scenes_task.text
doc_to_target: answer
generation_kwargs:
  max_new_tokens: 5
  temperature: 0
  until: ["\\n"]
metric_list:
  - metric: exact_match
    aggregation: mean
    higher_is_better: true
    ignore_case: true
"""
FUNCTIONS = """
from PIL import Image

def visual(doc):
    return [Image.open(doc["picture"])]

def text(doc, lmms_eval_specific_kwargs=None):
    return doc["question"]
"""
# Runs the plugin on a LLaVA-NeXT that needs a separate CLIP. Arguments: folder, CLIP, picture. Prints JSON.
SCRIPT = """
import json, sys, weakref
from types import SimpleNamespace
from PIL import Image
from fsr_core.backbones.vision.clip_text import ClipText
from fsr_core.evaluation.lmms_model import CompressedVLM

folder, clip, picture = sys.argv[1:]
towers, load = [], ClipText.__init__
ClipText.__init__ = lambda self, *given: towers.append(given) or load(self, *given)

def made(arguments):
    return CompressedVLM.create_from_arg_string(f"pretrained={folder},{arguments}", {"batch_size": 1, "device": "cpu"})

def answer(vlm, question):
    vlm.task_dict = {"t": {"test": [Image.open(picture)]}}
    arguments = (question, {"max_new_tokens": 2, "until": []}, lambda doc: [doc], 0, "t", "test")
    vlm.generate_until([SimpleNamespace(args=arguments)])
    kept_prompt = vlm.vlm.last[0]
    return kept_prompt.instruction, kept_prompt.images[0].index.tolist()

def refusal(arguments):
    try:
        made(arguments)
    except ValueError as error:
        return str(error)

def kept(arguments, questions=("what is the star?",)):
    vlm = made(arguments)
    return [answer(vlm, question) for question in questions]

even = made(f"budget=9,clip={clip},spread=even,layout=stock,alpha=2")
out = {"even": [answer(even, question) for question in ("what is the star?", "seconds")], "towers": len(towers)}
out["free"] = kept(f"budget=9,clip={clip},spread=free,alpha=2")
out["blind"] = kept("budget=9,clip=none,alpha=2")
module = weakref.ref(even.model)
even.clean()
out["freed"] = module() is None
wrong = ("budget=9", "budget=9,clip=none,colour=1", "budget=all,colour=1", "budget=9,clip=none,spread=wide",
         "budget=9,clip=none,layout=tiles", "budget=9,clip=none,relevance=instruction")
out["refusals"] = {arguments: refusal(arguments) for arguments in wrong}
print(json.dumps(out))
"""


@pytest.fixture
def task(tmp_path):
    rows = []
    for i, (scene, question) in enumerate(frozen_test_set(24)):
        picture = tmp_path / f"{i}.png"
        draw(scene).save(picture)
        rows.append({"picture": str(picture), "question": question.text, "answer": question.answer})
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    folder = tmp_path / "task"
    folder.mkdir()
    (folder / "fsr_scenes.yaml").write_text(TASK.format(data=tmp_path / "rows.jsonl"))
    (folder / "scenes_task.py").write_text(FUNCTIONS)
    return folder


def run(task: Path, out: Path, budget: str, batch: int) -> tuple[float, list[str]]:
    """The accuracy that lmms-eval computes, and the answers."""
    env = os.environ | {"HF_HUB_OFFLINE": "1", "HF_HOME": str(out / "hub"), "PYTHONPATH": str(ROOT)}
    command = [PYTHON, "-m", "lmms_eval", "--model", "fsr", "--tasks", "fsr_scenes", "--include_path", task]
    command += ["--model_args", f"pretrained=fsr-tiny,budget={budget}", "--batch_size", str(batch)]
    command += ["--output_path", out, "--log_samples"]
    done = subprocess.run(command, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-1500:] + done.stderr[-1500:]
    results = json.loads(next(out.rglob("*results.json")).read_text())["results"]["fsr_scenes"]
    samples = [json.loads(line) for line in next(out.rglob("*samples*.jsonl")).read_text().splitlines()]
    samples.sort(key=lambda sample: sample["doc_id"])
    return results["exact_match,none"], [sample["filtered_resps"] for sample in samples]


def test_lmms_eval_lists_the_model():
    code = "from lmms_eval.models import get_model; print(get_model('fsr').__name__)"
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run([PYTHON, "-c", code], env=env, capture_output=True, text=True)
    assert done.stdout.strip().endswith("CompressedVLM"), done.stderr[-1500:]


@pytest.mark.timeout(600)
def test_lmms_eval_scores_a_local_task_at_two_budgets(task, tmp_path):
    items = frozen_test_set(24)
    whole, answers = run(task, tmp_path / "all", "all", 1)
    assert whole == pytest.approx(sum(is_correct(q, a) for (_, q), a in zip(items, answers, strict=True)) / 24)
    assert whole > 0.35
    everything, same = run(task, tmp_path / "144", "144", 5)  # a budget of all tokens changes nothing
    assert same == answers and everything == whole
    few, others = run(task, tmp_path / "4", "4", 5)
    assert others != answers and few < whole


@pytest.mark.timeout(300)
def test_plugin_with_a_separate_clip_follows_the_question(tmp_path):
    torch.manual_seed(7)
    folder = tmp_path / "llava"
    folder.mkdir()
    own = Bench("llava_next", folder, checkpoints.FAMILIES["llava_next"](folder))
    own.processor.save_pretrained(folder)
    clip = checkpoints.clip(own.whole.model.vision_tower, tmp_path / "clip")
    picture((70, 50)).save(tmp_path / "picture.png")
    env = os.environ | {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "hub"), "PYTHONPATH": str(ROOT)}
    command = [PYTHON, "-c", SCRIPT, folder, clip, tmp_path / "picture.png"]
    done = subprocess.run(command, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-1500:]
    out = json.loads(done.stdout.splitlines()[-1])
    (star, by_star), (seconds, by_seconds) = out["even"]
    assert (star, seconds) == ("what is the star?", "seconds")
    assert len({tuple(index) for index in (by_star, by_seconds, out["free"][0][1], out["blind"][0][1])}) == 4
    assert out["towers"] == 1, "CLIP must be read once, not once per batch"
    assert out["freed"], "clean() must free the model's memory"
    says = ["clip: no CLIP text side is known", "fsr has no option 'colour'", "fsr has no option 'colour'"]
    says += ["spread: 'wide'", "options.layout: ", "llava_next has no option 'relevance'"]
    for (arguments, refusal), start in zip(out["refusals"].items(), says, strict=True):
        assert refusal is not None and start in refusal, arguments
