"""Trains the language model: first on layouts in words, then on what the vision tower sees."""

from __future__ import annotations

import random
import time
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import tqdm
from transformers import LlavaForConditionalGeneration, PreTrainedTokenizerFast

from fsr_core.tiny.pool import Pool
from fsr_core.tiny.questions import KINDS, NUMBERS, Question, ask
from fsr_core.tiny.scenes import COLUMNS, ROWS
from fsr_core.tiny.vision import NAMES, PatchLabels, patch_labels, pixel_values

FIRST_KINDS = ("existence", "shape", "colour", "where")


class Turns:
    """Questions as token ids, cached: the same few hundred sentences come again and again."""

    def __init__(self, words: PreTrainedTokenizerFast) -> None:
        self.words = words
        self.cache: dict[str, list[int]] = {}

    def ids(self, text: str) -> list[int]:
        if text not in self.cache:
            self.cache[text] = self.words(text, add_special_tokens=False)["input_ids"]
        return self.cache[text]

    def conversation(self, questions: list[Question]) -> tuple[list[int], list[int], list[list[int]]]:
        """Ids (one image token in the first turn), labels (-100 but on answers), and each turn's answer positions."""
        ids, labels, spans = [self.words.bos_token_id], [-100], []
        for turn, question in enumerate(questions):
            head = "USER:<image>\n" if turn == 0 else "USER:\n"
            prompt = self.ids(f"{head}{question.text} ASSISTANT:")
            answer = self.ids(f" {question.answer}</s>")
            ids += prompt + answer
            labels += [-100] * len(prompt) + answer
            spans.append(list(range(len(labels) - len(answer), len(labels))))
        return ids, labels, spans


@dataclass
class Batch:
    """`embeds` [b, L, D], `labels` [b, L]; `spans[i]` are a turn's answer positions, `kinds[i]` their kinds."""

    embeds: Tensor
    labels: Tensor
    spans: list[list[list[int]]]
    kinds: list[list[str]]


def assemble(
    llava: LlavaForConditionalGeneration, turns: Turns, visual: list[Tensor], asked: list[list[Question]]
) -> Batch:
    """Splices each sample's visual rows [n_i, D] in where its image token stands, and pads on the right."""
    table = llava.get_input_embeddings()
    image = llava.config.image_token_index
    rows, targets, spans = [], [], []
    for rows_seen, questions in zip(visual, asked, strict=True):
        ids, labels, at = turns.conversation(questions)
        place, extra = ids.index(image), len(rows_seen) - 1
        words = table(torch.tensor(ids))
        rows.append(torch.cat([words[:place], rows_seen, words[place + 1 :]]))
        targets.append(torch.tensor(labels[:place] + [-100] * (extra + 1) + labels[place + 1 :]))
        spans.append([[p + extra for p in span] for span in at])
    return Batch(
        nn.utils.rnn.pad_sequence(rows, batch_first=True),
        nn.utils.rnn.pad_sequence(targets, batch_first=True, padding_value=-100),
        spans,
        [[q.kind for q in questions] for questions in asked],
    )


def loss_and_hits(llava: LlavaForConditionalGeneration, batch: Batch) -> tuple[Tensor, dict[str, list[bool]]]:
    """Cross-entropy on answers, and per kind whether every token of an answer was the likeliest one."""
    hidden = llava.model.language_model(inputs_embeds=batch.embeds, use_cache=False).last_hidden_state
    shifted = F.pad(batch.labels[:, 1:], (0, 1), value=-100)
    where = shifted != -100
    logits = llava.lm_head(hidden[where]).float()
    right = torch.zeros_like(where)
    right[where] = logits.argmax(-1) == shifted[where]
    hits: dict[str, list[bool]] = defaultdict(list)
    for row, (spans, kinds) in enumerate(zip(batch.spans, batch.kinds, strict=True)):
        for span, kind in zip(spans, kinds, strict=True):
            hits[kind].append(bool(right[row, [p - 1 for p in span]].all()))
    return F.cross_entropy(logits, shifted[where]), hits


class Layouts:
    """A scene in words: each patch is the sum of the embeddings of its colour, shape, digit and place."""

    def __init__(self, llava: LlavaForConditionalGeneration, turns: Turns) -> None:
        def ids(names: list[str]) -> Tensor:
            return torch.tensor([turns.ids(f" {name}")[0] for name in names])

        self.table = llava.get_input_embeddings()
        self.colour, self.shape, self.digit = ids(NAMES["colour"]), ids(NAMES["shape"]), ids(list(NUMBERS))
        self.row, self.column = ids(list(ROWS)), ids(list(COLUMNS))

    def __call__(self, labels: PatchLabels) -> Tensor:
        """[n, 144, D]"""
        embed = self.table
        place = embed(self.row[labels.cell // 3]) + embed(self.column[labels.cell % 3])
        out = place
        for known, target in ((self.colour, labels.colour), (self.shape, labels.shape), (self.digit, labels.digit)):
            out = out + embed(known[(target - 1).clamp(min=0)]) * (target > 0).unsqueeze(-1)
        return out


def _some_patches(owner: Tensor, rng: random.Random, count: int) -> Tensor:
    """Indices of the patches on things and of some background, in raster order."""
    things = (owner >= 0).nonzero().flatten().tolist()
    ground = (owner < 0).nonzero().flatten().tolist()
    rng.shuffle(things)
    things = things[:count]
    return torch.tensor(sorted(things + rng.sample(ground, count - len(things))))


class Trainer:
    """The loop both language stages share: curriculum over question kinds, running accuracy, checkpoints."""

    def __init__(self, llava: LlavaForConditionalGeneration, turns: Turns, pool: Pool, folder: Path, seed: int) -> None:
        self.llava, self.turns, self.pool, self.folder = llava, turns, pool, folder
        self.rng = random.Random(seed)
        self.running: dict[str, float] = {}

    def questions(self, rows: list[int], kinds: tuple[str, ...], count: int) -> list[list[Question]]:
        return [[ask(self.pool.scenes[i], self.rng, kinds) for _ in range(count)] for i in rows]

    def run(self, name: str, visual, params, steps: int, batch: int, turns: int, lr: float, seconds: float,
            all_kinds_at: int) -> None:  # fmt: skip
        """`visual(rows)` gives the visual rows of the pool's scenes `rows`. Writes `folder/<name>.pt`."""
        optimiser = torch.optim.AdamW(params, lr=lr, weight_decay=0.01, betas=(0.9, 0.98))
        begin, bar = time.monotonic(), tqdm(range(steps), desc=name)
        for step in bar:
            done = max(step / steps, (time.monotonic() - begin) / seconds)
            if done >= 1:
                break
            kinds = FIRST_KINDS if step < all_kinds_at else tuple(KINDS)
            for group in optimiser.param_groups:
                group["lr"] = lr * min(1.0, (step + 1) / 100) * max(0.02, min(1.0, 2.5 * (1 - done)))
            rows = sorted(self.rng.sample(range(len(self.pool.scenes)), batch))
            made = assemble(self.llava, self.turns, visual(rows), self.questions(rows, kinds, turns))
            loss, hits = loss_and_hits(self.llava, made)
            optimiser.zero_grad(set_to_none=True)
            loss.backward()
            nn.utils.clip_grad_norm_(params, 1.0)
            optimiser.step()
            for kind, right in hits.items():
                now = float(np.mean(right))
                self.running[kind] = 0.95 * self.running.get(kind, now) + 0.05 * now
            if step % 20 == 0:
                shown = " ".join(f"{kind} {self.running[kind]:.2f}" for kind in KINDS if kind in self.running)
                bar.set_postfix_str(f"loss {loss.item():.3f} {shown}")
            if step % 100 == 99:
                self.save(name)
        self.save(name)

    def save(self, name: str) -> None:
        torch.save(self.llava.state_dict(), self.folder / f"{name}.part.pt")
        (self.folder / f"{name}.part.pt").rename(self.folder / f"{name}.pt")


def train_layout(trainer: Trainer, steps: int, seconds: float, all_kinds_at: int) -> None:
    """The language model alone, on forty patches of each scene told in words."""
    labels, layouts = patch_labels(trainer.pool.scenes), Layouts(trainer.llava, trainer.turns)

    def visual(rows: list[int]) -> list[Tensor]:
        some = PatchLabels(*(getattr(labels, f)[rows] for f in ("colour", "shape", "digit", "cell", "owner")))
        return [seen[_some_patches(own, trainer.rng, 40)] for seen, own in zip(layouts(some), some.owner, strict=True)]

    params = [*trainer.llava.model.language_model.parameters()]
    trainer.run("layout", visual, params, steps, 32, 8, 1e-3, seconds, all_kinds_at)


@torch.no_grad()
def features(llava: LlavaForConditionalGeneration, pool: Pool, rows: list[int]) -> Tensor:
    """What the frozen vision tower gives the projector: [n, 144, 128]."""
    hidden: Tensor = llava.model.vision_tower(pixel_values(pool.pixels[rows]), output_hidden_states=True).hidden_states[
        -2
    ]
    return hidden[:, 1:]


def align_projector(trainer: Trainer, steps: int = 200, batch: int = 32) -> None:
    """Regresses the projector onto the layout in words, which the language model already reads."""
    layouts = Layouts(trainer.llava, trainer.turns)
    projector = trainer.llava.model.multi_modal_projector
    optimiser = torch.optim.AdamW(projector.parameters(), lr=3e-3)
    for step in tqdm(range(steps), desc="align"):
        optimiser.param_groups[0]["lr"] = 3e-3 * (1 - step / steps)
        rows = sorted(trainer.rng.sample(range(len(trainer.pool.scenes)), batch))
        labels = patch_labels([trainer.pool.scenes[i] for i in rows])
        with torch.no_grad():
            target = layouts(labels)
        weight = torch.where(labels.owner >= 0, 1.0, 0.2).unsqueeze(-1)
        loss = (weight * (projector(features(trainer.llava, trainer.pool, rows)) - target) ** 2).mean() * 100
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        optimiser.step()


def train_images(trainer: Trainer, steps: int, seconds: float) -> None:
    """Projector and language model together, on all 144 tokens of drawn scenes; the tower stays as it is."""
    align_projector(trainer)
    projector = trainer.llava.model.multi_modal_projector
    params = [*projector.parameters(), *trainer.llava.model.language_model.parameters()]

    def visual(rows: list[int]) -> list[Tensor]:
        return list(projector(features(trainer.llava, trainer.pool, rows)))

    trainer.run("images", visual, params, steps, 24, 10, 5e-4, seconds, all_kinds_at=0)
