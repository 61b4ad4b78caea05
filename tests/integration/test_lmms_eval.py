"""The lmms-eval plugin, run by lmms-eval itself on a small local task. `make lmms-eval` makes its environment."""

import json
import os
import subprocess
from pathlib import Path

import pytest

from fsr_core.tiny.questions import is_correct
from fsr_core.tiny.scenes import draw
from fsr_core.tiny.testset import test_set as frozen_questions

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


@pytest.fixture
def task(tmp_path):
    rows = []
    for i, (scene, question) in enumerate(frozen_questions(24)):
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
    """Accuracy as lmms-eval has it, and the answers."""
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
    items = frozen_questions(24)
    whole, answers = run(task, tmp_path / "all", "all", 1)
    assert whole == pytest.approx(sum(is_correct(q, a) for (_, q), a in zip(items, answers, strict=True)) / 24)
    assert whole > 0.35
    everything, same = run(task, tmp_path / "144", "144", 5)  # a budget of all tokens changes nothing
    assert same == answers and everything == whole
    few, others = run(task, tmp_path / "4", "4", 5)
    assert others != answers and few < whole
