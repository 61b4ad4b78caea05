"""Trains the language model on scenes described in words; and the loop that it shares with `images.py`.

Several questions about a picture stand in one sequence after its visual tokens. The attention mask separates them: each
question sees the picture and itself only, at the positions that it would have alone. So a picture's tokens are computed
once for all its questions. And the model cannot copy an answer from an earlier turn, which it would otherwise learn
first.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from tqdm import tqdm
from transformers import LlavaForConditionalGeneration, PreTrainedTokenizerFast

from fsr_core.tiny.questions import KINDS
from fsr_core.tiny.quilts import TEXTURES, TINTS
from fsr_core.tiny.scenes import BOARD, COLUMNS, ROWS, Scene
from fsr_core.tiny.training.evidence import Asked, Evidence
from fsr_core.tiny.training.optimiser import Optimiser, checkpoint_due, read_checkpoint, write_checkpoint
from fsr_core.tiny.training.scene_pool import ScenePool
from fsr_core.tiny.training.vision import CLASSES, PatchLabels, patch_labels

ORDER = ("existence", "shape", "colour", "where", "digit", "letter", "count", "relation")
FIRST_KINDS = 4  # how many kinds training begins with
LEARNED = 0.6  # mean running accuracy of the kinds so far at which the next kind joins
FEWEST_THINGS = 2  # of scenes in words, at first
TURN = 15  # tokens of the longest question with its answer
TURNS = 10  # questions about each scene in one sequence
LOOK = 0.5  # weight of the loss of where the heads look
WORDED = 48  # patches of a scene in words


class Packer:
    """Asks `turns` questions about each scene and packs them into one sequence of `turns * TURN` tokens."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast, rng: random.Random, turns: int) -> None:
        self.tokenizer, self.rng, self.turns = tokenizer, rng, turns
        self.prefix = torch.tensor([tokenizer.bos_token_id, *self.ids("USER:")])
        self.cache: dict[str, list[int]] = {}

    def ids(self, text: str) -> list[int]:
        """The token ids of a text, without special tokens around it."""
        ids: list[int] = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        return ids

    def _turn(self, text: str, answer: str) -> tuple[list[int], list[int]]:
        """Ids and targets of one question. A target stands where it is predicted; all other targets are -100."""
        for part in (text, answer):
            if part not in self.cache:
                self.cache[part] = self.ids(f"\n{part} ASSISTANT:" if part is text else f" {part}</s>")
        prompt, reply = self.cache[text], self.cache[answer]
        padding = TURN - len(prompt) - len(reply)
        pad = self.tokenizer.pad_token_id
        return prompt + reply + [pad] * padding, [-100] * (len(prompt) - 1) + reply + [-100] * (padding + 1)

    def __call__(self, scenes: list[Scene], weights: dict[str, float]) -> tuple[Tensor, Tensor, list[list[Asked]]]:
        """Different questions about each scene; `weights` says how often each kind is asked.

        Returns ids and targets, both [b, turns * TURN], and each scene's questions. A scene that gives fewer
        questions is padded.
        """
        names, shares = list(weights), list(weights.values())
        all_ids, all_targets, all_asked = [], [], []
        for scene in scenes:
            asked: dict[str, Asked] = {}  # by the question's text
            ids: list[int] = []
            targets: list[int] = []
            for kind in self.rng.choices(names, shares, k=4 * self.turns):
                question = KINDS[kind](scene, self.rng)
                if question is None or question.text in asked:
                    continue
                turn, target = self._turn(question.text, question.answer)
                answered = [len(ids) + place for place, token in enumerate(target) if token >= 0]
                asked[question.text] = Asked(kind, tuple(answered[:-1]), question.things)  # all but its end
                ids += turn
                targets += target
                if len(asked) == self.turns:
                    break
            padding = (self.turns - len(asked)) * TURN
            all_ids.append(ids + [self.tokenizer.pad_token_id] * padding)
            all_targets.append(targets + [-100] * padding)
            all_asked.append(list(asked.values()))
        return torch.tensor(all_ids), torch.tensor(all_targets), all_asked


def packed_mask(prefix: int, turns: int) -> tuple[Tensor, Tensor]:
    """Attention mask (bool [1, 1, L, L]) and positions ([1, L]) of `turns` turns after `prefix` shared tokens."""
    turn = torch.cat([torch.full((prefix,), -1), torch.arange(turns).repeat_interleave(TURN)])
    visible = (turn[:, None] == turn[None, :]) | (turn[None, :] == -1)
    positions = torch.cat([torch.arange(prefix), (prefix + torch.arange(TURN)).repeat(turns)])
    return (visible & torch.ones_like(visible).tril())[None, None], positions[None]


class LayoutEmbedder:
    """A scene in words: each patch is the sum of the embeddings of its words.

    Every patch has its place; one on a thing has also colour, shape and mark, and the word "middle" where the thing's
    centre lies; one of the background has the quilt's tint and texture.
    """

    def __init__(self, llava: LlavaForConditionalGeneration, packer: Packer) -> None:
        def words(names: Sequence[str]) -> Tensor:
            """Which tokens the names are: [names, vocabulary]; a name of two words is two tokens."""
            chosen = torch.zeros(len(names), len(packer.tokenizer))
            for row, name in enumerate(names):
                chosen[row, packer.ids(f" {name}")] = 1
            return chosen

        self.table: Any = llava.get_input_embeddings()
        nothing = torch.zeros(1, len(packer.tokenizer))
        self.things = {name: torch.cat([nothing, words(values)]) for name, values in CLASSES.items()}
        self.things["middle"] = torch.cat([nothing, words(["middle"])])
        self.ground = {"tint": words(list(TINTS)), "texture": words(TEXTURES)}
        self.row, self.column = words(ROWS), words(COLUMNS)

    def __call__(self, labels: PatchLabels) -> Tensor:
        """Embeddings [n, 144, D]."""
        weight = self.table.weight
        place = F.embedding(labels.cell // BOARD, self.row @ weight)
        place = place + F.embedding(labels.cell % BOARD, self.column @ weight)
        shown = torch.zeros_like(place)
        for name, words in self.things.items():
            shown = shown + F.embedding(getattr(labels, name), words @ weight)
        ground = torch.zeros_like(place)
        for name, words in self.ground.items():
            ground = ground + F.embedding(getattr(labels, name), words @ weight)
        return place + torch.where((labels.owner >= 0).unsqueeze(-1), shown, ground)


class Trainer:
    """The training loop of both language stages.

    It begins with a few kinds of question and adds the next one when those are learned. It tracks the accuracy of each
    kind, and writes checkpoints.
    """

    def __init__(
        self,
        llava: LlavaForConditionalGeneration,
        tokenizer: PreTrainedTokenizerFast,
        pool: ScenePool,
        folder: Path,
        seed: int,
    ) -> None:
        self.llava, self.pool, self.folder = llava, pool, folder
        self.rng = random.Random(seed)
        torch.manual_seed(seed)
        self.packer = Packer(tokenizer, self.rng, TURNS)
        self.evidence = Evidence(llava.model.language_model)
        self.accuracy: dict[str, float] = {}  # running accuracy by kind
        self.active = FIRST_KINDS
        self.progress = 0.0  # 0..1, of the stage

    def fewer(self, scene: Scene) -> Scene:
        """The scene with some of its things only: mostly few in the first third of the steps, all after two thirds.

        To find the one thing of a colour and a shape among twelve is not learned at once, but among three it is.
        """
        power = 3 * min(1.0, max(0.0, 2 - 3 * self.progress))
        most = len(scene.things)
        return self.some(scene, min(most, FEWEST_THINGS + int((most + 1 - FEWEST_THINGS) * self.rng.random() ** power)))

    def some(self, scene: Scene, count: int) -> Scene:
        """The scene with so many of its things."""
        chosen = sorted(self.rng.sample(range(len(scene.things)), count))
        return Scene(scene.seed, tuple(scene.things[i] for i in chosen))

    def weights(self) -> dict[str, float]:
        """How often each kind is asked: the more wrong answers, the more often. Adds the next kind when it is time."""
        known = [self.accuracy.get(kind, 0.0) for kind in ORDER[: self.active]]
        if self.active < len(ORDER) and sum(known) / len(known) > LEARNED:
            self.active += 1
        return {kind: max(0.08, 1 - self.accuracy.get(kind, 0.0)) for kind in ORDER[: self.active]}

    def run(
        self,
        name: str,
        visual: Callable[[list[int], list[Scene]], tuple[Tensor, Tensor]],
        modules: list[torch.nn.Module],
        steps: int,
        batch: int,
        rates: tuple[float, float],
        shown: Callable[[list[Scene]], list[Scene]],
        extra: Callable[[list[int]], Tensor] | None = None,
    ) -> None:
        """Trains `modules` for `steps` steps and writes `folder/<name>.pt`.

        `visual(rows, scenes)` gives the visual tokens [b, n, D] of the pool's scenes `rows`, as they are shown, and
        the index of the thing that each token shows, -1 for none;
        `shown` gives scenes as they are shown. `rates` are the optimiser's two. `extra(rows)` is a further loss.
        """
        optimiser, path = Optimiser(modules, *rates), self.folder / f"{name}.pt"
        state = read_checkpoint(path, self.llava, optimiser, self.rng)
        self.accuracy, self.active = state.get("running", self.accuracy), state.get("active", self.active)
        first = state["step"]
        language, table = self.llava.model.language_model, self.llava.get_input_embeddings()
        bar = tqdm(range(first, steps), desc=name, initial=first, total=steps, mininterval=5)
        for step in bar:
            rows = sorted(self.rng.sample(range(len(self.pool.scenes)), batch))
            self.progress = step / steps
            scenes = shown([self.pool.scenes[i] for i in rows])
            ids, targets, asked = self.packer(scenes, self.weights())
            visual_tokens, owner = visual(rows, scenes)
            prefix = table(self.packer.prefix).expand(batch, -1, -1)
            start = prefix.shape[1] + visual_tokens.shape[1]
            mask, positions = packed_mask(start, self.packer.turns)
            hidden = language(
                inputs_embeds=torch.cat([prefix, visual_tokens, table(ids)], dim=1),
                attention_mask=mask.expand(batch, -1, -1, -1),
                position_ids=positions.expand(batch, -1),
                use_cache=False,
            ).last_hidden_state[:, start:]
            predicted = targets != -100
            logits = self.llava.lm_head(hidden[predicted]).float()
            seen = self.evidence(slice(prefix.shape[1], start), owner, asked)
            loss = F.cross_entropy(logits, targets[predicted]) + LOOK * seen
            optimiser.step(loss if extra is None else loss + extra(rows), step, steps)
            right = torch.ones_like(predicted)
            right[predicted] = logits.argmax(-1) == targets[predicted]
            self._count(right.view(batch, -1, TURN).all(-1), asked)
            if step % 20 == 19:
                shares = " ".join(f"{kind} {share:.2f}" for kind, share in self.accuracy.items())
                bar.set_postfix_str(shares)
            if checkpoint_due(step, steps):
                more = {"running": self.accuracy, "active": self.active}
                write_checkpoint(path, step + 1, self.llava, optimiser, self.rng, **more)

    def _count(self, right: Tensor, asked: list[list[Asked]]) -> None:
        """Updates the running accuracies, which cover roughly the last three hundred questions of each kind."""
        for row, questions in enumerate(asked):
            for turn, (kind, _, _) in enumerate(questions):
                self.accuracy[kind] = 0.997 * self.accuracy.get(kind, 0.0) + 0.003 * float(right[row, turn])


def train_layout(trainer: Trainer, steps: int) -> None:
    """Trains the language model alone, on some patches of each scene in words; those with a thing's centre always."""
    labels, layouts = patch_labels(trainer.pool.scenes), LayoutEmbedder(trainer.llava, trainer.packer)

    def visual(rows: list[int], scenes: list[Scene]) -> tuple[Tensor, Tensor]:
        batch = labels.select(rows)
        hide(batch, [trainer.pool.scenes[i] for i in rows], scenes)
        order = torch.rand(batch.owner.shape) + 0.5 * (batch.owner >= 0) + batch.middle
        chosen = order.topk(WORDED).indices.sort(dim=1).values.unsqueeze(-1)
        embeds = layouts(batch)
        return embeds.gather(1, chosen.expand(-1, -1, embeds.shape[-1])), batch.owner.gather(1, chosen.squeeze(-1))

    def shown(scenes: list[Scene]) -> list[Scene]:
        return [trainer.fewer(scene) for scene in scenes]

    trainer.run("layout", visual, [trainer.llava.model.language_model], steps, 24, (6e-3, 2e-3), shown)


def hide(labels: PatchLabels, whole: list[Scene], shown: list[Scene]) -> None:
    """Makes the patches of things that are not shown background, and numbers the others as they are shown, in place."""
    for row, (all_of_it, part) in enumerate(zip(whole, shown, strict=True)):
        number = {thing: i for i, thing in enumerate(part.things)}
        table = torch.tensor([*(number.get(thing, -1) for thing in all_of_it.things), -1])
        labels.owner[row] = table[labels.owner[row]]
        labels.middle[row, labels.owner[row] < 0] = 0
