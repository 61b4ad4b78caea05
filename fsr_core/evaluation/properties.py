"""Whether the embedded model behaves like a CLIP and a LLaVA, so that a comparison of methods on it means something.

Prints a table of properties of the model on scenes of the validation split: what is published of such models, or
follows from what a compressor is for, with a goal for each. It is about the instrument: of the methods it says no more
than the goals ask for, and it does not say which is best. Encoded pictures are stored under --out, so a second run is
shorter.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from tqdm import tqdm

from fsr_core.budget import Budget
from fsr_core.compressor import methods
from fsr_core.evaluation.answers import answer_questions
from fsr_core.evaluation.method_configs import FULL, MethodConfig
from fsr_core.evaluation.question_sets import EncodedSet, set_size
from fsr_core.evaluation.runner import Runner
from fsr_core.evaluation.statistics import Estimate, Resampler
from fsr_core.tiny.questions import is_correct
from fsr_core.tiny.scenes import CANVAS, Scene, patch_owner
from fsr_core.tokens import VisualTokens

__all__ = ["Property", "Row", "background_auc", "oracle_scores", "peak_share", "things_touched"]

BUDGETS = (4, 8, 16, 32)
SMALL = BUDGETS[:2]
SEEDS = 3  # of random selection
STRONGEST = 16  # patches


@dataclass(frozen=True)
class Property:
    """What is measured, and the goal: at least, or with `at_most` at most, `goal`. `unit` is "%" or ""."""

    name: str
    goal: float
    unit: str = "%"
    at_most: bool = False
    beyond: bool = False  # more than the goal, by the whole interval

    def met(self, measured: Estimate) -> bool:
        """Whether a measured mean, or the whole of its interval for `beyond`, reaches the goal."""
        if self.beyond:
            return measured.low > self.goal
        return measured.mean <= self.goal if self.at_most else measured.mean >= self.goal


@dataclass(frozen=True)
class Row:
    """A line of the table. `measured` is a share, a difference of shares, or an AUC, with a 95 % interval."""

    property: Property
    measured: Estimate

    def text(self) -> tuple[str, str, str, str]:
        """Name, goal, measured, and whether it is met."""
        about, scale = self.property, 100 if self.property.unit else 1
        sign = ">" if about.beyond else "<=" if about.at_most else ">="
        digits = 1 if about.unit else 3

        def number(value: float) -> str:
            return f"{scale * value:.{digits}f}"

        measured = self.measured
        unit = f" {about.unit}" if about.unit else ""
        found = f"{number(measured.mean)}{unit} ({number(measured.low)}..{number(measured.high)})"
        return about.name, f"{sign} {scale * about.goal:g}{unit}", found, "yes" if about.met(measured) else "NO"


def things_touched(saliency: Tensor, scene: Scene) -> float:
    """The share of a scene's things of which at least one patch is among the sixteen most attended. Saliency [144]."""
    owner = torch.from_numpy(patch_owner(scene).reshape(-1))
    touched = owner[saliency.topk(STRONGEST).indices].unique()
    return int((touched >= 0).sum()) / len(scene.things)


def peak_share(saliency: Tensor) -> float:
    """The share of CLS's attention to the patches that the strongest of them has."""
    return float(saliency.max() / saliency.sum())


def background_auc(keys: Tensor, scene: Scene) -> float:
    """How well the distance to the mean token tells the background from things: AUC, 0.5 is not at all.

    The distance of keys [144, D] is one minus the cosine to the mean of all unit keys. It does not matter which of the
    two lies further out.
    """
    unit = F.normalize(keys.float(), dim=-1)
    away = (1 - unit @ F.normalize(unit.mean(0), dim=0)).numpy()
    on_thing = patch_owner(scene).reshape(-1) >= 0
    higher = (away[on_thing][:, None] > away[~on_thing][None, :]).mean()
    equal = (away[on_thing][:, None] == away[~on_thing][None, :]).mean()
    auc = float(higher + equal / 2)
    return max(auc, 1 - auc)


def oracle_scores(scene: Scene, things: Sequence[int]) -> Tensor:
    """Scores [144] of an oracle that keeps the patches of the asked `things`, in turns, then those of the others.

    A thing's patches come in the order of their distance from its centre.
    """
    owner, side = patch_owner(scene), patch_owner(scene).shape[0]
    scores = torch.zeros(side, side)
    for i, thing in enumerate(scene.things):
        rows, columns = np.nonzero(owner == i)
        away = (columns + 0.5 - thing.centre[0] * side / CANVAS) ** 2 + (
            rows + 0.5 - thing.centre[1] * side / CANVAS
        ) ** 2
        for turn, patch in enumerate(np.argsort(away, kind="stable")):
            scores[rows[patch], columns[patch]] = (2.0 if i in things else 1.0) - 0.01 * turn
    return scores.reshape(-1)


class Examination:
    """Asks a model's questions under the conditions that the properties need."""

    def __init__(self, model: str, split: str, questions: int, out: Path, progress: Callable[[int], object]) -> None:
        self.runner, self.progress = Runner(model, out), progress
        self.encoded = self.runner.encoded(split, questions, progress)
        self.resampler = Resampler(questions)
        self._right: dict[str, np.ndarray] = {}

    def right(self, config: MethodConfig, samples: Sequence[VisualTokens] | None = None) -> np.ndarray:
        """1.0 for each right answer: [questions]. `samples` replace the model's own tokens and scores."""
        if samples is None and config.key in self._right:
            self.progress(len(self.encoded.items))
            return self._right[config.key]
        encoded = self.encoded
        asked = encoded if samples is None else EncodedSet(encoded.items, encoded.images, samples)
        outcome = answer_questions(self.runner.encoder, self.runner.decoder, asked, config, self.progress)
        pairs = zip(encoded.items, outcome.answers, strict=True)
        right = np.array([float(is_correct(question, text)) for (_, question), text in pairs])
        if samples is None:
            self._right[config.key] = right
        return right

    def random(self, budget: int) -> np.ndarray:
        """Right answers of random selection: [seeds, questions]."""
        seeds = [MethodConfig("random", Budget(tokens=budget), {"seed": seed}) for seed in range(SEEDS)]
        return np.stack([self.right(config) for config in seeds])

    def shuffled(self) -> list[VisualTokens]:
        """The tokens with the relevance to another picture's question."""
        order = np.random.default_rng(0).permutation(len(self.encoded.items))
        texts = [self.encoded.items[i][1].text for i in np.roll(order, 1)]
        instructions: list[Tensor | None] = [None] * len(order)
        for start in range(0, len(order), 64):
            rows = order[start : start + 64]
            for row, instruction in zip(
                rows, self.runner.encoder.encode_instructions(texts[start : start + 64]), strict=True
            ):
                instructions[row] = instruction
        pairs = zip(self.encoded.images, instructions, strict=True)
        return [self.runner.encoder.visual_tokens(image, instruction) for image, instruction in pairs]

    def oracle(self, budget: int) -> np.ndarray:
        """Right answers when the patches of the asked things are kept."""
        samples = [
            VisualTokens(sample.features, oracle_scores(scene, question.things), sample.relevance, sample.keys)
            for sample, (scene, question) in zip(self.encoded.samples, self.encoded.items, strict=True)
        ]
        return self.right(MethodConfig("cls_topk", Budget(tokens=budget)), samples)

    def of_pictures(self) -> list[Row]:
        """The properties of saliency and keys, which need no answers."""
        pairs = [(sample, scene) for sample, (scene, _) in zip(self.encoded.samples, self.encoded.items, strict=True)]
        touched = [things_touched(sample.saliency, scene) for sample, scene in pairs]
        peaks = [peak_share(sample.saliency) for sample, _ in pairs]
        aucs = [
            background_auc(sample.features if sample.keys is None else sample.keys, scene) for sample, scene in pairs
        ]
        return [
            Row(Property("things that CLS's 16 most attended patches touch", 0.7), self._mean(touched)),
            Row(Property("CLS's attention on its strongest patch", 0.08, at_most=True), self._mean(peaks)),
            Row(Property("background told by distance to the mean token, AUC", 0.8, "", True), self._mean(aucs)),
        ]

    def of_answers(self) -> list[Row]:
        """The properties that answers show."""
        rows = []
        for budget in BUDGETS:
            gain = self.right(MethodConfig("cls_topk", Budget(tokens=budget))) - self.random(budget)
            about = Property(f"cls_topk over random at {budget} tokens", 0.0, "points", beyond=True)
            rows.append(Row(about, self.resampler.estimate(gain)))
        samples = self.shuffled()
        for method, name in (("fsr", "FSR"), ("cdpruner", "CDPruner")):
            for budget in SMALL:
                config = MethodConfig(method, Budget(tokens=budget))
                loss = self.right(config) - self.right(config, samples)
                about = Property(f"{name} loses at {budget} tokens by shuffled relevance", 0.05, "points")
                rows.append(Row(about, self.resampler.estimate(loss)))
        least = BUDGETS[0]
        best = max((self.right(MethodConfig(name, Budget(tokens=least))) for name in _others()), key=np.mean)
        lead = self.resampler.estimate(self.oracle(least) - best)
        name = f"an oracle of the asked things over the best method, {least} tokens"
        rows.append(Row(Property(name, 0.05, "points"), lead))
        whole = self.right(MethodConfig(FULL, None))
        rows.append(Row(Property("right answers with all tokens", 0.92), self.resampler.estimate(whole)))
        return rows

    def kinds(self) -> dict[str, float]:
        """Right answers with all tokens by kind of question."""
        right = self.right(MethodConfig(FULL, None))
        of_kind: dict[str, list[float]] = {}
        for (_, question), value in zip(self.encoded.items, right, strict=True):
            of_kind.setdefault(question.kind, []).append(float(value))
        return {kind: float(np.mean(values)) for kind, values in of_kind.items()}

    def _mean(self, values: list[float]) -> Estimate:
        return self.resampler.estimate(np.array(values))


def _others() -> list[str]:
    """The methods of which the best is compared with the oracle: all, random selection with its first seed."""
    return list(methods())


def _runs() -> int:
    """How many times the questions are asked, encoding included."""
    return 1 + len(BUDGETS) * (1 + SEEDS) + 4 * len(SMALL) + len(_others()) + 1 + 2


def _table(rows: Sequence[Row], kinds: dict[str, float]) -> str:
    lines = ["| property | goal | measured (95 % interval) | met |", "| --- | --- | --- | --- |"]
    lines += ["| " + " | ".join(row.text()) + " |" for row in rows]
    shares = ", ".join(f"{kind} {100 * share:.1f}" for kind, share in kinds.items())
    return "\n".join([*lines, "", f"Right answers with all tokens by kind, in %: {shares}."])


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m fsr_core.evaluation.properties",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="examples:\n  python -m fsr_core.evaluation.properties\n"
        "  python -m fsr_core.evaluation.properties --model runs/tiny/weights --questions 256 --json figures.json",
    )
    parser.add_argument(
        "--model", default="fsr-tiny", help="fsr-tiny, or the folder of a checkpoint (default fsr-tiny)"
    )
    parser.add_argument("--split", choices=("validation", "test"), default="validation", help="whose scenes")
    parser.add_argument("--questions", type=int, default=1024, help="how many, one a scene (default 1024)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures to this file as well")
    parser.add_argument("--out", type=Path, default=Path("runs/properties"), help="folder for encoded pictures")
    parser.add_argument("--threads", type=int, help="CPU threads; default: PyTorch's own choice")
    return parser


def main(arguments: list[str] | None = None) -> None:
    """Measures the properties and prints the table; ends with status 1 if a goal is missed."""
    parser = _parser()
    options = parser.parse_args(arguments)
    if not 16 <= options.questions <= set_size(options.split):
        parser.error(f"--questions: {options.questions} is out of range; give 16 to {set_size(options.split)}")
    if options.threads is not None:
        if options.threads < 1:
            parser.error(f"--threads: {options.threads} is below 1; leave it out for PyTorch's own choice")
        torch.set_num_threads(options.threads)
    with tqdm(total=options.questions * _runs(), unit="answer", file=sys.stderr, mininterval=1) as bar:
        try:
            examined = Examination(options.model, options.split, options.questions, options.out, bar.update)
        except (ValueError, OSError) as error:
            parser.error(str(error))
        rows, kinds = [*examined.of_pictures(), *examined.of_answers()], examined.kinds()
    print(_table(rows, kinds))
    if options.json is not None:
        entries = [asdict(row) | {"met": row.property.met(row.measured)} for row in rows]
        about = {"model": options.model, "split": options.split, "questions": options.questions}
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(about | {"properties": entries, "kinds": kinds}, indent=1) + "\n")
    if not all(row.property.met(row.measured) for row in rows):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
