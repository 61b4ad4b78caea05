"""Trains the language model: first on layouts in words, then on what the vision tower sees.

Questions about a picture are packed side by side behind its visual tokens, and attention keeps them apart: each
sees the picture and itself alone, at the positions it would have if it were asked alone. So a picture's tokens are
paid for once, and no answer can be copied from an earlier turn, a shortcut that otherwise is learnt first.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F
from tqdm import tqdm
from transformers import LlavaForConditionalGeneration, PreTrainedTokenizerFast

from fsr_core.tiny.questions import KINDS, NUMBERS
from fsr_core.tiny.scenes import COLUMNS, ROWS, Scene
from fsr_core.tiny.training.optimiser import Optimiser, due, read_checkpoint, write_checkpoint
from fsr_core.tiny.training.scene_pool import Pool
from fsr_core.tiny.training.vision import NAMES, PatchLabels, patch_labels, pixel_values

ORDER = ("existence", "shape", "colour", "where", "digit", "count", "left", "right")
FIRST = 4  # kinds at the start
LEARNT = 0.75  # mean running accuracy of the kinds so far at which the next one joins
TURN = 15  # tokens of the longest question with its answer


class Packer:
    """Scenes to packed questions: `ids` and `targets` [b, turns * TURN], and which kind each turn is."""

    def __init__(self, words: PreTrainedTokenizerFast, rng: random.Random, turns: int) -> None:
        self.words, self.rng, self.turns = words, rng, turns
        self.prefix = torch.tensor([words.bos_token_id, *self.ids("USER:")])
        self.cache: dict[str, list[int]] = {}

    def ids(self, text: str) -> list[int]:
        found: list[int] = self.words(text, add_special_tokens=False)["input_ids"]
        return found

    def _turn(self, text: str, answer: str) -> tuple[list[int], list[int]]:
        """Ids and targets of one question; targets are shifted to where they are predicted, -100 elsewhere."""
        for part in (text, answer):
            if part not in self.cache:
                self.cache[part] = self.ids(f"\n{part} ASSISTANT:" if part is text else f" {part}</s>")
        prompt, reply = self.cache[text], self.cache[answer]
        room = TURN - len(prompt) - len(reply)
        pad = self.words.pad_token_id
        return prompt + reply + [pad] * room, [-100] * (len(prompt) - 1) + reply + [-100] * (room + 1)

    def __call__(self, scenes: list[Scene], weights: dict[str, float]) -> tuple[Tensor, Tensor, list[list[str]]]:
        """Different questions about each scene, of the kinds in `weights` as often as those say."""
        names, shares = list(weights), list(weights.values())
        all_ids, all_targets, kinds = [], [], []
        for scene in scenes:
            seen: dict[str, str] = {}
            ids, targets = [], []
            for kind in self.rng.choices(names, shares, k=4 * self.turns):
                question = KINDS[kind](scene, self.rng)
                if question is None or question.text in seen:
                    continue
                seen[question.text] = kind
                turn, target = self._turn(question.text, question.answer)
                ids += turn
                targets += target
                if len(seen) == self.turns:
                    break
            short = (self.turns - len(seen)) * TURN
            all_ids.append(ids + [self.words.pad_token_id] * short)
            all_targets.append(targets + [-100] * short)
            kinds.append(list(seen.values()))
        return torch.tensor(all_ids), torch.tensor(all_targets), kinds


def packed_mask(prefix: int, turns: int) -> tuple[Tensor, Tensor]:
    """Who sees whom, bool [1, 1, L, L], and positions [1, L], for `turns` turns behind `prefix` shared tokens."""
    turn = torch.cat([torch.full((prefix,), -1), torch.arange(turns).repeat_interleave(TURN)])
    seen = (turn[:, None] == turn[None, :]) | (turn[None, :] == -1)
    own = torch.cat([torch.arange(prefix), (prefix + torch.arange(TURN)).repeat(turns)])
    return (seen & torch.ones_like(seen).tril())[None, None], own[None]


class Layouts:
    """A scene in words: each patch is the sum of the embeddings of its colour, shape, digit and place."""

    def __init__(self, llava: LlavaForConditionalGeneration, packer: Packer) -> None:
        def ids(names: list[str]) -> Tensor:
            return torch.tensor([packer.ids(f" {name}")[0] for name in names])

        self.table = llava.get_input_embeddings()
        self.colour, self.shape, self.digit = ids(NAMES["colour"]), ids(NAMES["shape"]), ids(list(NUMBERS))
        self.row, self.column = ids(list(ROWS)), ids(list(COLUMNS))

    def __call__(self, labels: PatchLabels) -> Tensor:
        """[n, 144, D]"""
        out = self.table(self.row[labels.cell // 3]) + self.table(self.column[labels.cell % 3])
        for known, target in ((self.colour, labels.colour), (self.shape, labels.shape), (self.digit, labels.digit)):
            out = out + self.table(known[(target - 1).clamp(min=0)]) * (target > 0).unsqueeze(-1)
        return out


class Trainer:
    """The loop both language stages share: kinds joining as earlier ones are learnt, accuracy by kind, checkpoints."""

    def __init__(
        self, llava: LlavaForConditionalGeneration, words: PreTrainedTokenizerFast, pool: Pool, folder: Path, seed: int
    ) -> None:
        self.llava, self.pool, self.folder = llava, pool, folder
        self.rng = random.Random(seed)
        torch.manual_seed(seed)
        self.packer = Packer(words, self.rng, turns=8)
        self.running: dict[str, float] = {}
        self.active = FIRST

    def weights(self) -> dict[str, float]:
        """How often each kind is asked: what goes wrong most, most. Learnt kinds let the next one in."""
        known = [self.running.get(kind, 0.0) for kind in ORDER[: self.active]]
        if self.active < len(ORDER) and sum(known) / len(known) > LEARNT:
            self.active += 1
        return {kind: max(0.08, 1 - self.running.get(kind, 0.0)) for kind in ORDER[: self.active]}

    def run(
        self,
        name: str,
        visual: Callable[[list[int]], Tensor],
        modules: list[torch.nn.Module],
        steps: int,
        batch: int,
        rates: tuple[float, float],
    ) -> None:
        """`visual(rows)` gives the visual tokens [b, n, D] of the pool's scenes `rows`. Writes `folder/<name>.pt`."""
        optimiser, path = Optimiser(modules, *rates), self.folder / f"{name}.pt"
        state = read_checkpoint(path, self.llava, optimiser, self.rng)
        self.running, self.active = state.get("running", self.running), state.get("active", self.active)
        first = state["step"]
        language, table = self.llava.model.language_model, self.llava.get_input_embeddings()
        bar = tqdm(range(first, steps), desc=name, initial=first, total=steps, mininterval=5)
        for step in bar:
            rows = sorted(self.rng.sample(range(len(self.pool.scenes)), batch))
            ids, targets, kinds = self.packer([self.pool.scenes[i] for i in rows], self.weights())
            seen = visual(rows)
            head = table(self.packer.prefix).expand(batch, -1, -1)
            start = head.shape[1] + seen.shape[1]
            mask, positions = packed_mask(start, self.packer.turns)
            hidden = language(
                inputs_embeds=torch.cat([head, seen, table(ids)], dim=1),
                attention_mask=mask.expand(batch, -1, -1, -1),
                position_ids=positions.expand(batch, -1),
                use_cache=False,
            ).last_hidden_state[:, start:]
            asked = targets != -100
            logits = self.llava.lm_head(hidden[asked]).float()
            optimiser.step(F.cross_entropy(logits, targets[asked]), step, steps)
            right = torch.ones_like(asked)
            right[asked] = logits.argmax(-1) == targets[asked]
            self._count(right.view(batch, -1, TURN).all(-1), kinds)
            if step % 20 == 19:
                bar.set_postfix_str(" ".join(f"{kind} {share:.2f}" for kind, share in self.running.items()))
            if due(step, steps):
                more = {"running": self.running, "active": self.active}
                write_checkpoint(path, step + 1, self.llava, optimiser, self.rng, **more)

    def _count(self, right: Tensor, kinds: list[list[str]]) -> None:
        """Running accuracy by kind, over roughly the last three hundred questions of a kind."""
        for row, asked in enumerate(kinds):
            for turn, kind in enumerate(asked):
                hit = float(right[row, turn])
                self.running[kind] = 0.997 * self.running.get(kind, 0.0) + 0.003 * hit


def train_layout(trainer: Trainer, steps: int) -> None:
    """The language model alone, on 24 patches of each scene told in words, those on things first."""
    labels, layouts = patch_labels(trainer.pool.scenes), Layouts(trainer.llava, trainer.packer)

    def visual(rows: list[int]) -> Tensor:
        some = labels.rows(rows)
        order = torch.rand(some.owner.shape) + 0.7 * (some.owner >= 0)
        chosen = order.topk(24).indices.sort(dim=1).values.unsqueeze(-1)
        seen = layouts(some)
        return seen.gather(1, chosen.expand(-1, -1, seen.shape[-1]))

    trainer.run("layout", visual, [trainer.llava.model.language_model], steps, 24, (6e-3, 2e-3))


@torch.no_grad()
def features(llava: LlavaForConditionalGeneration, pool: Pool) -> Tensor:
    """What the frozen vision tower gives the projector: float16 [n, 144, 128]."""
    out = []
    for start in tqdm(range(0, len(pool.scenes), 64), desc="features", mininterval=5):
        pixels = pixel_values(pool.pixels[start : start + 64])
        hidden = llava.model.vision_tower(pixels, output_hidden_states=True).hidden_states[-2]
        out.append(hidden[:, 1:].half())
    return torch.cat(out)


def align_projector(trainer: Trainer, seen: Tensor, steps: int = 400) -> None:
    """Regresses the projector onto the layout in words, which the language model already reads."""
    labels, layouts = patch_labels(trainer.pool.scenes), Layouts(trainer.llava, trainer.packer)
    projector = trainer.llava.model.multi_modal_projector
    optimiser = torch.optim.AdamW(projector.parameters(), lr=2e-3)
    for step in tqdm(range(steps), desc="align", mininterval=5):
        optimiser.param_groups[0]["lr"] = 2e-3 * (1 - step / steps)
        rows = sorted(trainer.rng.sample(range(len(seen)), 64))
        some = labels.rows(rows)
        with torch.no_grad():
            target = layouts(some)
        weight = torch.where(some.owner >= 0, 1.0, 0.2).unsqueeze(-1)
        loss = (weight * (projector(seen[rows].float()) - target) ** 2).mean() * 100
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        optimiser.step()


def train_images(trainer: Trainer, steps: int) -> None:
    """Projector and language model together, on all 144 tokens of drawn scenes; the tower stays as it is."""
    seen = features(trainer.llava, trainer.pool)
    projector = trainer.llava.model.multi_modal_projector
    if not (trainer.folder / "images.pt").exists():
        align_projector(trainer, seen)

    def visual(rows: list[int]) -> Tensor:
        out: Tensor = projector(seen[rows].float())
        return out

    modules = [projector, trainer.llava.model.language_model]
    trainer.run("images", visual, modules, steps, 16, (2e-3, 5e-4))
