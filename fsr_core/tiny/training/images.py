"""Trains projector and language model on drawn scenes, after the language model has learned on scenes in words."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F
from tqdm import tqdm
from transformers import LlavaForConditionalGeneration

from fsr_core.tiny.scenes import Scene
from fsr_core.tiny.training.language import LayoutEmbedder, Trainer, hide
from fsr_core.tiny.training.scene_pool import ScenePool
from fsr_core.tiny.training.vision import patch_labels, pixel_values

FEWEST_TOKENS, MOST_TOKENS = 6, 72  # of a batch that shows some of a picture's tokens
NEAR = 20  # weight of the squared distance to the scene in words
APART = 10  # weight of how well the distance to the mean token tells things from background
OUTLYING = 0.65  # AUC; 0.5 tells nothing


@torch.no_grad()
def tower_features(llava: LlavaForConditionalGeneration, pool: ScenePool) -> Tensor:
    """The frozen vision tower's features of every scene, as the projector gets them: float16 [n, 144, 128]."""
    batches = []
    for start in tqdm(range(0, len(pool.scenes), 64), desc="features", mininterval=5):
        pixels = pixel_values(pool.pixels[start : start + 64])
        hidden = llava.model.vision_tower(pixels, output_hidden_states=True).hidden_states[-2]
        batches.append(hidden[:, 1:].half())
    return torch.cat(batches)


class Alignment:
    """How far the projector's output is from the scene in words, which the language model can read already.

    And how well the distance to the mean token tells things from background. Nine tenths of a scene's patches are
    background, so the mean token would be background, and the distance to it would tell the things. In photographs it
    does not: what nobody asks about is as varied.
    """

    def __init__(self, trainer: Trainer) -> None:
        self.labels = patch_labels(trainer.pool.scenes)
        self.layouts = LayoutEmbedder(trainer.llava, trainer.packer)

    def __call__(self, rows: list[int], tokens: Tensor) -> Tensor:
        """The loss of the tokens [b, 144, D] of the scenes `rows`; the background's distance from words counts less."""
        batch = self.labels.select(rows)
        with torch.no_grad():
            target = self.layouts(batch)
        weight = torch.where(batch.owner >= 0, 1.0, 0.25).unsqueeze(-1)
        return (weight * (tokens - target) ** 2).mean() * NEAR + APART * outlying(tokens, batch.owner >= 0)


def outlying(tokens: Tensor, on_thing: Tensor) -> Tensor:
    """How much the AUC by which the distance to the mean token tells things from background lies beyond `OUTLYING`.

    The distance is one minus the cosine to the mean of a picture's unit tokens. Sigmoids of the differences of all
    pairs stand in for the AUC's steps. Tokens [b, 144, D], bool [b, 144].
    """
    unit = F.normalize(tokens, dim=-1)
    away = 1 - (unit * F.normalize(unit.mean(1, keepdim=True), dim=-1)).sum(-1)
    width = away.detach().std(1, keepdim=True).clamp(min=1e-6) / 4
    pairs = on_thing.unsqueeze(2) & ~on_thing.unsqueeze(1)  # [b, 144, 144]: a thing's patch, one of the background
    further = ((away.unsqueeze(2) - away.unsqueeze(1)) / width.unsqueeze(2)).sigmoid()
    auc = (further * pairs).sum((1, 2)) / pairs.sum((1, 2)).clamp(min=1)
    return ((auc - 0.5).abs() - (OUTLYING - 0.5)).clamp(min=0).mean()


def align_projector(trainer: Trainer, features: Tensor, alignment: Alignment, steps: int = 400) -> None:
    """Fits the projector's output to the scene in words."""
    projector = trainer.llava.model.multi_modal_projector
    optimiser = torch.optim.AdamW(projector.parameters(), lr=2e-3)
    for step in tqdm(range(steps), desc="align", mininterval=5):
        optimiser.param_groups[0]["lr"] = 2e-3 * (1 - step / steps)
        rows = sorted(trainer.rng.sample(range(len(features)), 64))
        loss = alignment(rows, projector(features[rows].float()))
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        optimiser.step()


class ImageTokens:
    """What the language model is shown of each batch of drawn scenes.

    Half of the batches show all 144 tokens of each picture. The others show some: those of a few of its things, and
    maybe of the background; the questions are then about these things. So the model learns to answer from what it is
    shown, as after a compression, and counts do not depend on how many other tokens there are.
    """

    def __init__(self, trainer: Trainer, features: Tensor, alignment: Alignment) -> None:
        self.trainer, self.features, self.alignment = trainer, features, alignment
        self.projector = trainer.llava.model.multi_modal_projector
        self.count = 0  # tokens of each picture of this batch; 0 for all
        self.whole = torch.empty(0)

    def shown(self, scenes: list[Scene]) -> list[Scene]:
        """The scenes of a batch with the things that it shows."""
        rng = self.trainer.rng
        self.count = 0 if rng.random() < 0.5 else round(FEWEST_TOKENS * (MOST_TOKENS / FEWEST_TOKENS) ** rng.random())
        if not self.count:
            return scenes
        return [self.trainer.some(scene, rng.randint(1, min(self.count, len(scene.things)))) for scene in scenes]

    def tokens(self, rows: list[int], scenes: list[Scene]) -> tuple[Tensor, Tensor]:
        """The tokens [b, n, D] of the pool's scenes `rows`, and the index of the thing that each shows, -1 for none."""
        self.whole, batch = self.projector(self.features[rows].float()), self.alignment.labels.select(rows)
        if not self.count:
            return self.whole, batch.owner
        every = batch.owner >= 0
        hide(batch, [self.trainer.pool.scenes[i] for i in rows], scenes)
        of_things = self.trainer.rng.choice((0.0, 0.5, 1.0))  # how much sooner than the background
        order = torch.rand(batch.owner.shape) + of_things * (batch.owner >= 0) + 2 * batch.middle
        order[every & (batch.owner < 0)] = -1  # things that are not shown
        chosen = order.topk(self.count).indices.sort(dim=1).values
        index = chosen.unsqueeze(-1).expand(-1, -1, self.whole.shape[-1])
        return self.whole.gather(1, index), batch.owner.gather(1, chosen)


def train_images(trainer: Trainer, steps: int) -> None:
    """Trains projector and language model together on drawn scenes. The tower is frozen.

    The projector stays near the scene in words. Without that it would forget what the background is like.
    """
    features, alignment = tower_features(trainer.llava, trainer.pool), Alignment(trainer)
    if not (trainer.folder / "images.pt").exists():
        align_projector(trainer, features, alignment)
    images = ImageTokens(trainer, features, alignment)
    modules = [images.projector, trainer.llava.model.language_model]

    def near(rows: list[int]) -> Tensor:
        return alignment(rows, images.whole)

    trainer.run("images", images.tokens, modules, steps, 16, (2e-3, 5e-4), images.shown, near)
