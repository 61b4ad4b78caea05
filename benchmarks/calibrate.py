"""What `fsr calibrate` says on the embedded model, and whether it is true.

    python -m benchmarks.calibrate scenes --count 1000 --out runs/scenes   # fresh scenes and a question about each
    python -m benchmarks.calibrate page                                   # the run of docs/calibrate.md, written there
    python -m benchmarks.calibrate coverage [--runs 100]                  # does the chosen budget keep the target?

`coverage` answers a pool of questions about fresh scenes once, with all tokens and with every budget of the ladder, by
the real model. What the pool's questions say together is then the truth. Each run draws questions from the pool, with
replacement, so that they are independent and as the pool is; it calibrates on them with the code of the command, and
what it chooses is held against the truth. That makes a run cost milliseconds instead of minutes, and the truth exact.
Some targets lie just above what a budget keeps: there a wrong choice is likeliest.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import shutil
import statistics
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from tqdm import tqdm

from fsr.cli.calibrate.ladder import ALL_TOKENS, Candidate, ladder
from fsr.cli.calibrate.procedure import Measure, Plan, Procedure, Result
from fsr.cli.calibrate.questions import Question
from fsr.cli.calibrate.run_file import Reply
from fsr.cli.calibrate.scoring import Pair, Scorer
from fsr_core.backbones import load_decoder, load_encoder
from fsr_core.budget import Budget
from fsr_core.evaluation.answers import answer_questions
from fsr_core.evaluation.method_configs import FULL, MethodConfig
from fsr_core.evaluation.question_sets import encode_set
from fsr_core.tiny.questions import KINDS, questions_in_turn
from fsr_core.tiny.scenes import draw, make_scene

FRESH = range(2_000_000, 3_000_000)  # seeds of scenes that nothing else uses
BUDGETS, METHODS = "0.5,0.33,0.22,0.11,0.055", "fsr,cdpruner"
ROOT = Path(__file__).parent.parent
PAGE, IMAGES = ROOT / "docs/calibrate.md", ROOT / "docs/img"
COMMAND = ["--measure", "relative-accuracy", "--target", "0.9", "--checkpoint", "fsr-tiny", "--out", "runs/calibrate"]


def write_scenes(count: int, folder: Path) -> Path:
    """Pictures of fresh scenes, and a file with a question about each and its answer."""
    (folder / "pictures").mkdir(parents=True, exist_ok=True)
    lines = []
    for scene, question in questions_in_turn(FRESH, make_scene, tuple(KINDS), count):
        name = f"pictures/{scene.seed}.png"
        draw(scene).save(folder / name)
        lines.append(json.dumps({"picture": name, "question": question.text, "answer": question.answer}) + "\n")
    (folder / "questions.jsonl").write_text("".join(lines))
    return folder / "questions.jsonl"


@dataclass(frozen=True)
class Pool:
    """Questions, and the reply of each candidate to each of them."""

    questions: Sequence[Question]
    replies: dict[Candidate, Sequence[Reply]]

    @classmethod
    def answered(cls, count: int, candidates: Sequence[Candidate], folder: Path) -> Pool:
        items = questions_in_turn(FRESH, make_scene, tuple(KINDS), count)
        encoder, decoder = load_encoder("fsr-tiny"), load_decoder("fsr-tiny")
        bar = tqdm(total=count * (len(candidates) + 2), unit="answer", disable=not sys.stderr.isatty())
        features = folder / f"{encoder.fingerprint[:12]}-{count}.safetensors"
        encoded = encode_set(encoder, items, features, bar.update)
        replies = {}
        for candidate in (ALL_TOKENS, *candidates):
            method = FULL if candidate.method is None else candidate.method
            budget = None if candidate.method is None else Budget.of(candidate.budget)
            outcome = answer_questions(encoder, decoder, encoded, MethodConfig(method, budget), bar.update)
            sizes = [len(sample) for sample in encoded.samples]
            replies[_key(candidate)] = [
                Reply(text=text, tokens=size, kept=kept, fingerprint=encoder.fingerprint)
                for text, size, kept in zip(outcome.answers, sizes, outcome.kept, strict=True)
            ]
        questions = [
            Question(place=str(i), path=Path(str(i)), is_video=False, fps=2.0, text=one.text, answers=(one.answer,))
            for i, (_, one) in enumerate(items)
        ]
        return cls(questions, replies)

    def get(self, question: Question, candidate: Candidate) -> Reply:
        """As a file of stored answers would."""
        return self.replies[_key(candidate)][int(question.place)]

    def truth(self, candidate: Candidate, measure: Measure) -> float:
        """What the candidate's answers to all questions of the pool give."""
        pairs, whole = [], []
        for question in self.questions:
            reference = (self.get(question, ALL_TOKENS).text,) if measure == "agreement" else question.answers
            pairs.append(Pair(question.text, self.get(question, candidate).text, reference))
            whole.append(Pair(question.text, self.get(question, ALL_TOKENS).text, reference))
        scores, of_whole = Scorer("exact", None).scores(pairs), Scorer("exact", None).scores(whole)
        return sum(scores) / (sum(of_whole) if measure == "relative-accuracy" else len(scores))


def _key(candidate: Candidate) -> str:
    return str(candidate)


def calibrated(pool: Pool, measure: Measure, target: float, size: int, seed: int) -> Result:
    """One run on questions of its own."""
    draws = random.Random(f"{measure}-{target}-{seed}").choices(pool.questions, k=size)
    plan = Plan(
        questions=draws,
        methods=ladder(BUDGETS, METHODS, {}),
        target=target,
        confidence=0.95,
        measure=measure,
        scorer=Scorer("exact", None),
        clients=8,
    )
    return asyncio.run(Procedure(plan, None, pool, lambda *_: None).run())


def cases(pool: Pool, candidates: Sequence[Candidate]) -> Iterator[tuple[Measure, float, str]]:
    """Measure, target, and what is special about it."""
    for target in (0.9, 0.95, 0.98):
        yield "agreement", target, ""
    for measure in ("accuracy", "relative-accuracy"):
        yield measure, 0.9, ""
    for candidate in candidates:
        truth = pool.truth(candidate, "agreement")
        if candidate.method == "fsr" and 0.5 < truth < 0.995:
            yield "agreement", truth + 0.0005, f"just above what {candidate} keeps"


def coverage(count: int, runs: int, size: int, folder: Path) -> list[dict[str, object]]:
    candidates = [one for each in ladder(BUDGETS, METHODS, {}) for one in each]
    pool = Pool.answered(count, candidates, folder)
    rows: list[dict[str, object]] = []
    for measure, target, note in cases(pool, candidates):
        chosen: Counter[str] = Counter()
        asked, wrong = [], 0
        for seed in range(runs):
            result = calibrated(pool, measure, target, size, seed)
            choice = result.chosen.candidate if result.chosen else None
            wrong += choice is not None and pool.truth(choice, measure) < target
            chosen[str(choice) if choice else "none"] += 1
            asked.append(result.whole.evidence.questions)
        rows.append(
            {
                "measure": measure,
                "target": round(target, 4),
                "note": note,
                "runs": runs,
                "kept": runs - wrong,
                "questions": [min(asked), round(statistics.median(asked)), max(asked)],
                "chosen": dict(chosen.most_common()),
            }
        )
    truths = {str(one): {m: round(pool.truth(one, m), 4) for m in ("agreement", "accuracy")} for one in candidates}
    rows.append({"truth": truths, "pool": count, "questions of a run": size})
    return rows


def coverage_table(rows: Sequence[dict[str, object]]) -> str:
    about = f"A pool of {rows[-1]['pool']} questions, of which a run asks at most {rows[-1]['questions of a run']}:"
    lines = [
        about,
        "",
        "| measure | target | runs that kept it | questions, median | chosen |",
        "| --- | --: | --: | --: | --- |",
    ]
    for row in rows[:-1]:
        target = f"{row['target']}{' (' + str(row['note']) + ')' if row['note'] else ''}"
        chosen = ", ".join(f"{name}: {count}" for name, count in row["chosen"].items())
        lines.append(
            f"| {row['measure']} | {target} | {row['kept']} of {row['runs']} | {row['questions'][1]} | {chosen} |"
        )
    return "\n".join(lines) + "\n"


def written(page: str, name: str, text: str) -> str:
    """The page with the text between two of its markers."""
    begin, end = f"<!-- {name} -->\n", f"<!-- end of {name} -->\n"
    before, _, rest = page.partition(begin)
    return f"{before}{begin}{text}{end}{rest.partition(end)[2]}"


def page(more: Sequence[str]) -> None:
    """Runs the command of the page with more options, or goes on with it, and writes its report and pictures."""
    file, out = ROOT / "runs/scenes/questions.jsonl", ROOT / "runs/calibrate"
    if not file.exists():
        write_scenes(600, file.parent)
    (out / "report.md").unlink(missing_ok=True)
    command = ["fsr", "calibrate", str(file.relative_to(ROOT)), *COMMAND, *more]
    subprocess.run([sys.executable, "-m", "fsr.cli.main", *command[1:]], cwd=ROOT, check=False)
    if not (out / "report.md").exists():
        raise SystemExit("error: the run has no report; if the model or its scenes have changed, delete runs/ first")
    table = (out / "report.md").read_text().partition("\n![")[0]
    text = f"\n```\n{' '.join(command)}\n```\n\n{table}\n"
    if (out / "policy.yaml").exists():
        text += f"`policy.yaml`:\n\n```yaml\n{(out / 'policy.yaml').read_text()}```\n\n"
    shutil.copy(out / "plot.png", IMAGES / "calibrate.png")
    text += "![Each budget's result and its interval, by tokens kept](img/calibrate.png)\n\n"
    changed = sorted((out / "changed").glob("*.png"))
    if changed:
        shutil.copy(changed[0], IMAGES / "calibrate-changed.png")
        text += "One of the answers that compression changed, beside what was kept:\n\n"
        text += "![A question about a picture, and what was kept of it](img/calibrate-changed.png)\n\n"
    PAGE.write_text(written(PAGE.read_text(), "run", text))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    scenes = commands.add_parser("scenes", help="draw fresh scenes and write a file of questions")
    scenes.add_argument("--count", type=int, default=1000)
    scenes.add_argument("--out", type=Path, default=Path("runs/scenes"))
    commands.add_parser("page", help="run the command of docs/calibrate.md, with more options, and write the page")
    cover = commands.add_parser("coverage", help="calibrate many times and hold the choices against the truth")
    cover.add_argument("--runs", type=int, default=100)
    cover.add_argument("--pool", type=int, default=1024, help="questions that are answered")
    cover.add_argument("--questions", type=int, default=1000, help="questions that a run may ask at most")
    cover.add_argument("--folder", type=Path, default=Path("runs/calibrate-pool"), help="for the pictures' features")
    cover.add_argument("--json", type=Path)
    cover.add_argument("--write", action="store_true", help="write the table into docs/calibrate.md")
    options, more = parser.parse_known_args()
    if more and options.command != "page":
        parser.error(f"unrecognized arguments: {' '.join(more)}")
    torch.set_num_threads(1)
    if options.command == "scenes":
        print(write_scenes(options.count, options.out))
    elif options.command == "page":
        page(more)
    else:
        start = time.process_time()
        rows = coverage(options.pool, options.runs, options.questions, options.folder)
        print(coverage_table(rows), json.dumps(rows[-1], indent=1), sep="\n")
        print(f"{time.process_time() - start:.0f} s of CPU", file=sys.stderr)
        if options.json:
            options.json.write_text(json.dumps(rows, indent=1) + "\n")
        if options.write:
            PAGE.write_text(written(PAGE.read_text(), "coverage", coverage_table(rows)))


if __name__ == "__main__":
    main()
