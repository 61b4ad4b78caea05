"""Accuracy of the embedded model on the frozen test set, with all visual tokens and with fewer.

`python -m fsr_core.tiny.evaluate` asks every question of the test set with all 144 tokens, then with each method
at each budget, and prints a Markdown table. Everything runs through the project's own path: the checkpoint's
processor, the encoder backbone, a compressor, the decoder backbone, greedy decoding.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from fsr_core.backbones import ImagePart, KeptImage, Message, TextPart, load_decoder, load_encoder
from fsr_core.backbones.base import LanguageDecoder, VisualEncoder
from fsr_core.compressor import create, methods
from fsr_core.tiny.questions import KINDS, Question, frozen, is_correct
from fsr_core.tiny.scenes import Scene, draw
from fsr_core.tiny.testset import SIZE, test_set, verify
from fsr_core.tokens import VisualTokens

FULL = "full"
LONGEST_ANSWER = 8  # tokens; the longest right answer is two words and the end of the turn
BATCH = 32


@dataclass(frozen=True)
class Arm:
    """One way of choosing tokens. `seed` is None for a method that does not draw lots; `budget` for `full`."""

    method: str
    budget: int | None = None
    seed: int | None = None


@dataclass
class Score:
    """Right answers and questions asked, by kind of question."""

    right: dict[str, int] = field(default_factory=dict)
    asked: dict[str, int] = field(default_factory=dict)

    def add(self, question: Question, answer: str) -> None:
        self.asked[question.kind] = self.asked.get(question.kind, 0) + 1
        self.right[question.kind] = self.right.get(question.kind, 0) + is_correct(question, answer)

    def by_kind(self) -> dict[str, float]:
        """Share of right answers, 0..1, of each kind that was asked."""
        return {kind: self.right[kind] / self.asked[kind] for kind in KINDS if kind in self.asked}

    @property
    def overall(self) -> float:
        """Share of right answers among all questions, 0..1."""
        return sum(self.right.values()) / max(1, sum(self.asked.values()))


def arms(names: Sequence[str], budgets: Sequence[int], seeds: int) -> list[Arm]:
    """Every arm that the options ask for; random selection once for each of `seeds` seeds."""
    found = []
    for name in names:
        if name == FULL:
            found.append(Arm(FULL))
        else:
            lots: Sequence[int | None] = range(seeds) if name == "random" else (None,)
            found += [Arm(name, budget, seed) for budget in budgets for seed in lots]
    return found


def choose(encoder: VisualEncoder, images: Sequence[Any], samples: Sequence[VisualTokens], arm: Arm) -> list[KeptImage]:
    """What an arm keeps of each sample, laid out for the language model."""
    if arm.method == FULL:
        budget, method = max(len(sample) for sample in samples), create("fsr")  # a budget of N changes nothing
    else:
        budget = arm.budget or 0
        method = create(arm.method) if arm.seed is None else create(arm.method, seed=arm.seed)
    kept = method.compress_batch(samples, [budget] * len(samples))
    return [encoder.assemble(image, one) for image, one in zip(images, kept, strict=True)]


@torch.inference_mode()
def answer(decoder: LanguageDecoder, questions: Sequence[str], images: Sequence[KeptImage]) -> list[str]:
    """Greedy answers to one question about one image each; prompts of different lengths are padded on the left."""
    prompts = [
        decoder.prompt([Message("user", (ImagePart(0), TextPart(text)))], [image]).inputs_embeds
        for text, image in zip(questions, images, strict=True)
    ]
    longest = max(len(prompt) for prompt in prompts)
    embeds = prompts[0].new_zeros(len(prompts), longest, prompts[0].shape[1])
    mask = torch.zeros(len(prompts), longest, dtype=torch.long, device=embeds.device)
    for row, prompt in enumerate(prompts):
        embeds[row, longest - len(prompt) :] = prompt
        mask[row, longest - len(prompt) :] = 1
    model: Any = decoder.model
    ids: Tensor = model.generate(
        inputs_embeds=embeds,
        attention_mask=mask,
        do_sample=False,
        max_new_tokens=LONGEST_ANSWER,
        eos_token_id=list(decoder.eos_token_ids),
        pad_token_id=decoder.eos_token_ids[0],
    )
    return [str(text) for text in decoder.tokenizer.batch_decode(ids, skip_special_tokens=True)]


def _batches(items: Sequence[tuple[Scene, Question]]) -> Iterator[Sequence[tuple[Scene, Question]]]:
    for start in range(0, len(items), BATCH):
        yield items[start : start + BATCH]


@torch.inference_mode()
def evaluate(
    model: str,
    items: Sequence[tuple[Scene, Question]],
    wanted: Sequence[Arm],
    report: Callable[[int], object] = lambda done: None,
) -> dict[Arm, Score]:
    """Ask every question under every arm; each picture is encoded once. `report` is told of each answered batch.

    Raises:
        ValueError: the checkpoint cannot be had, or an arm's method or budget is not one.
    """
    encoder, decoder = load_encoder(model), load_decoder(model)
    scores = {arm: Score() for arm in wanted}
    for batch in _batches(items):
        images = encoder.encode_images([encoder.preprocess(draw(scene)) for scene, _ in batch])
        texts = [question.text for _, question in batch]
        asked = encoder.encode_instructions(texts)
        samples = [encoder.visual_tokens(image, text) for image, text in zip(images, asked, strict=True)]
        for arm in wanted:
            answers = answer(decoder, texts, choose(encoder, images, samples, arm))
            for (_, question), said in zip(batch, answers, strict=True):
                scores[arm].add(question, said)
            report(len(batch))
    return scores


def summary(scores: dict[Arm, Score]) -> list[dict[str, Any]]:
    """One row a method and budget, means over seeds; accuracies are shares, 0..1."""
    groups: dict[tuple[str, int | None], list[Score]] = {}
    for arm, score in scores.items():
        groups.setdefault((arm.method, arm.budget), []).append(score)
    rows = []
    for (method, budget), members in groups.items():
        shares = [score.by_kind() for score in members]
        rows.append(
            {
                "method": method,
                "budget": budget,
                "seeds": len(members),
                "questions": sum(members[0].asked.values()),
                "overall": sum(score.overall for score in members) / len(members),
                **{kind: sum(share[kind] for share in shares) / len(shares) for kind in shares[0]},
            }
        )
    return rows


def markdown(rows: Sequence[dict[str, Any]]) -> str:
    """The summary as a Markdown table, in percent."""
    kinds = [kind for kind in KINDS if kind in rows[0]]
    lines = [
        "| method | tokens | overall | " + " | ".join(kinds) + " |",
        "| --- | --: | --: |" + " --: |" * len(kinds),
    ]
    for row in rows:
        name = row["method"] if row["seeds"] == 1 else f"{row['method']} (mean of {row['seeds']} seeds)"
        shares = " | ".join(f"{100 * row[key]:.1f}" for key in ("overall", *kinds))
        lines.append(f"| {name} | {row['budget'] or 'all'} | {shares} |")
    return "\n".join(lines)


def _names(text: str) -> list[str]:
    names = [name.strip() for name in text.split(",")]
    for name in names:
        if name not in (FULL, *methods()):
            raise argparse.ArgumentTypeError(f"{name!r} is unknown; choose among {', '.join((FULL, *methods()))}")
    return names


def _budgets(text: str) -> list[int]:
    try:
        budgets = [int(part) for part in text.split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no list of whole numbers; write 48,32,16") from None
    if min(budgets) < 1:
        raise argparse.ArgumentTypeError(f"{min(budgets)} is below one token; write 48,32,16")
    return budgets


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m fsr_core.tiny.evaluate", description=__doc__)
    parser.add_argument("--model", default="fsr-tiny", help="fsr-tiny, or the folder of another checkpoint")
    parser.add_argument("--methods", type=_names, default=[FULL, "fsr", "random"], help="comma-separated")
    parser.add_argument("--budgets", type=_budgets, default=[48, 32, 16], help="kept tokens, comma-separated")
    parser.add_argument("--seeds", type=int, default=3, help="seeds of random selection")
    parser.add_argument("--limit", type=int, default=SIZE, help=f"ask the first questions only (at most {SIZE})")
    parser.add_argument(
        "--split", choices=("test", "validation"), default="test", help="tune on validation, report test"
    )
    parser.add_argument("--threads", type=int, help="CPU threads; default: PyTorch's own choice")
    parser.add_argument("--json", action="store_true", help="print rows as JSON instead of a Markdown table")
    options = parser.parse_args(arguments)
    if options.seeds < 1:
        parser.error(f"--seeds: {options.seeds} is below 1; one seed is the least")
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    wanted = arms(options.methods, options.budgets, options.seeds)
    try:
        items = test_set(options.limit) if options.split == "test" else frozen(options.split, options.limit)
        if options.split == "test" and options.limit == SIZE:
            verify(items)
        with tqdm(total=len(items) * len(wanted), unit="answer", file=sys.stderr) as bar:
            rows = summary(evaluate(options.model, items, wanted, bar.update))
    except ValueError as error:
        raise SystemExit(f"error: {error}") from None
    print(json.dumps(rows, indent=2) if options.json else markdown(rows))


if __name__ == "__main__":
    main()
