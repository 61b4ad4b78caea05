"""Trains the CLIP pair: patch features that hold what a patch shows, a CLS that looks at the things, a text tower.

Four losses: linear read-outs of each patch, of the background as well; patches against phrases and questions; pictures
against captions that name all things; and the attention of CLS in the block that saliency is read from. Then the texts
are trained once more alone, for a joint space of few numbers.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import tqdm
from transformers import CLIPModel, CLIPTokenizer

from fsr_core.backbones.vision.saliency import cls_attention
from fsr_core.tiny.model import GRID, caption, clip_tokenizer, image_processor
from fsr_core.tiny.questions import random_question
from fsr_core.tiny.quilts import TEXTURES, TINTS, Quilt
from fsr_core.tiny.scenes import BOARD, COLOURS, MARKS, SHAPES, Scene, centre_patch, patch_owner
from fsr_core.tiny.training.optimiser import Optimiser, checkpoint_due, read_checkpoint, write_checkpoint
from fsr_core.tiny.training.scene_pool import ScenePool

CLASSES = {"colour": list(COLOURS), "shape": list(SHAPES), "mark": list(MARKS)}
MOST_THINGS = BOARD * BOARD
HIGHEST_SHARE = 0.05  # of CLS's attention on one patch; more is penalised


@dataclass(frozen=True, kw_only=True)
class PatchLabels:
    """Integer labels of patches, each [n, 144].

    colour, shape  0 is the background
    mark           0 is none
    cell           0..15
    middle         1 for the patch that holds a thing's centre, so that things can be counted
    tint, texture  of the quilt, also under a thing
    owner          index of the thing that covers the patch, -1 for the background
    """

    colour: Tensor
    shape: Tensor
    mark: Tensor
    cell: Tensor
    middle: Tensor
    tint: Tensor
    texture: Tensor
    owner: Tensor

    def select(self, rows: list[int]) -> PatchLabels:
        """The labels of some of the scenes."""
        return PatchLabels(**{field.name: getattr(self, field.name)[rows] for field in fields(self)})


def _middles(scene: Scene) -> np.ndarray:
    middles = np.zeros((GRID, GRID), dtype=np.int64)
    for thing in scene.things:
        middles[centre_patch(thing)] = 1
    return middles


def patch_labels(scenes: list[Scene]) -> PatchLabels:
    """The labels of each scene's patches."""
    rows = np.repeat(np.arange(GRID) * BOARD // GRID, GRID).reshape(GRID, GRID)
    cell = torch.from_numpy((rows * BOARD + rows.T).reshape(-1))
    owner = torch.from_numpy(np.stack([patch_owner(scene).reshape(-1) for scene in scenes]))
    middle = torch.from_numpy(np.stack([_middles(scene).reshape(-1) for scene in scenes]))
    quilts = torch.from_numpy(np.stack([Quilt(scene.seed).patches() for scene in scenes])).flatten(2)

    def lookup(attribute: str) -> Tensor:
        table = torch.zeros(len(scenes), MOST_THINGS + 1, dtype=torch.long)  # the last column is the background
        for i, scene in enumerate(scenes):
            for j, thing in enumerate(scene.things):
                value = getattr(thing, attribute)
                table[i, j] = 0 if value is None else CLASSES[attribute].index(value) + 1
        return table.gather(1, owner.remainder(MOST_THINGS + 1))

    return PatchLabels(
        colour=lookup("colour"),
        shape=lookup("shape"),
        mark=lookup("mark"),
        cell=cell.expand(len(scenes), -1),
        middle=middle,
        tint=quilts[:, 0],
        texture=quilts[:, 1],
        owner=owner,
    )


class PatchHeads(nn.Module):
    """Linear read-outs of a patch feature. They guide training and are not part of the trained model."""

    # Of the background: whether it is none of the things, and what the quilt is like there. Were it not read out, all
    # background would become one token, which no photograph's does.
    BACKGROUND: ClassVar = {"colour": 0.5, "shape": 0.5, "middle": 0.5, "tint": 1.0, "texture": 1.0, "cell": 0.5}

    def __init__(self, width: int) -> None:
        super().__init__()
        self.heads = nn.ModuleDict({name: nn.Linear(width, size) for name, size in self.sizes().items()})

    @staticmethod
    def sizes() -> dict[str, int]:
        sizes = {name: len(values) + 1 for name, values in CLASSES.items()}
        return sizes | {"cell": BOARD * BOARD, "middle": 2, "tint": len(TINTS), "texture": len(TEXTURES)}

    def forward(self, patches: Tensor, labels: PatchLabels) -> tuple[Tensor, dict[str, float]]:
        """The sum of the read-outs' losses, and the accuracy of each: on patches of things, of tint and texture on
        the background."""
        loss, accuracy = patches.new_zeros(()), {}
        on_thing = labels.owner >= 0
        for name, head in self.heads.items():
            target, logits = getattr(labels, name), head(patches)
            of_ground = name in ("tint", "texture")
            if not of_ground:
                loss = loss + F.cross_entropy(logits[on_thing], target[on_thing])
            if name in self.BACKGROUND:
                loss = loss + self.BACKGROUND[name] * F.cross_entropy(logits[~on_thing], target[~on_thing])
            where = ~on_thing if of_ground else on_thing
            accuracy[name] = (logits.argmax(-1) == target)[where].float().mean().item()
        return loss, accuracy


def attention_loss(attention: Tensor, owner: Tensor) -> tuple[Tensor, dict[str, float]]:
    """The loss of CLS's attention [n, 144] on the patches: its mass belongs on the things, evenly, and on no one patch.

    Gives also the share of the strongest patch, and how many of the things the sixteen strongest patches touch.
    """
    things = F.one_hot(owner.remainder(MOST_THINGS + 1), MOST_THINGS + 1)[..., :MOST_THINGS].float()  # [n, 144, t]
    patches = things.sum(1)  # [n, t]
    target = (things / patches.clamp(min=1).unsqueeze(1)).sum(2)
    target = target / target.sum(1, keepdim=True)
    missed = -(target * (attention + 1e-6).log()).sum(1).mean()
    peaks = (attention - HIGHEST_SHARE).clamp(min=0).sum(1).mean()
    strongest = attention.topk(16, dim=1).indices.unsqueeze(-1).expand(-1, -1, MOST_THINGS)
    touched = (things.gather(1, strongest).amax(1) * (patches > 0)).sum() / (patches > 0).sum()
    return missed + 10 * peaks, {"peak": attention.amax(1).mean().item(), "touched": touched.item()}


def pixel_values(pixels: np.ndarray) -> Tensor:
    """uint8 [n, 144, 144, 3] -> float32 [n, 3, 144, 144], normalised as the checkpoint's processor does."""
    processor = image_processor()
    mean, std = torch.tensor(processor.image_mean), torch.tensor(processor.image_std)
    scaled = torch.tensor(pixels).float() / 255
    return ((scaled - mean) / std).permute(0, 3, 1, 2).contiguous()


def _texts(scene: Scene, rng: random.Random, count: int) -> list[tuple[str, tuple[int, ...]]]:
    """Phrases and whole questions about a scene, each with the indices of the things that it names."""
    texts: list[tuple[str, tuple[int, ...]]] = []
    while len(texts) < count:
        if rng.random() < 0.6:
            question = random_question(scene, rng)
            texts.append((question.text, question.things))
        else:
            thing = rng.choice(scene.things)
            attribute = rng.choice(["name", "colour", "shape", "mark"])
            value = getattr(thing, attribute)
            if value is None:
                continue
            same = tuple(i for i, other in enumerate(scene.things) if getattr(other, attribute) == value)
            texts.append((f"a {value}", same))
    return texts


def initialise_positions(clip: CLIPModel, amplitude: float = 0.3) -> None:
    """Sets the position embeddings to sines of row and column, so that attention finds neighbours from the start."""
    width = clip.visual_projection.in_features
    waves = torch.logspace(0.2, -1, width // 4)  # radians a patch
    steps = torch.arange(GRID)[:, None] * waves
    axis = torch.cat([steps.sin(), steps.cos()], dim=1)
    rows, columns = axis.repeat_interleave(GRID, dim=0), axis.repeat(GRID, 1)
    with torch.no_grad():
        clip.vision_model.embeddings.position_embedding.weight[1:] = amplitude * torch.cat([rows, columns], dim=1)


def text_losses(
    clip: CLIPModel, tokenizer: CLIPTokenizer, rng: random.Random, scenes: list[Scene], owner: Tensor, output: Any
) -> tuple[Tensor, dict[str, float]]:
    """The loss of pictures against captions and of patches against phrases and questions; and the accuracy of both.

    `owner` [n, 144] is that of `PatchLabels`; `output` is the vision tower's, with hidden states.
    """

    def embed(texts: list[str]) -> Tensor:
        tokens = tokenizer(texts, padding=True, truncation=True, max_length=77, return_tensors="pt")
        return F.normalize(clip.text_projection(clip.text_model(**tokens).pooler_output), dim=-1)

    # Captions are long and phrases are short: padded separately, they cost half as much.
    pictures = F.normalize(clip.visual_projection(output.pooler_output), dim=-1)
    logits = clip.logit_scale.exp().clamp(max=50) * pictures @ embed([caption(scene) for scene in scenes]).T
    targets = torch.arange(len(scenes))
    caption_loss = (F.cross_entropy(logits, targets) + F.cross_entropy(logits.T, targets)) / 2
    # Patches are compared with phrases exactly as relevance is computed later.
    texts = [(i, *text) for i, scene in enumerate(scenes) for text in _texts(scene, rng, 4)]
    texts = [text for text in texts if text[2]]
    patches = output.hidden_states[-2][:, 1:]
    joint = F.normalize(clip.visual_projection(clip.vision_model.post_layernorm(patches)), dim=-1)
    of_image = torch.tensor([i for i, _, _ in texts])
    named = torch.zeros(len(texts), MOST_THINGS + 1)
    for row, (_, _, things) in enumerate(texts):
        named[row, list(things)] = 1
    on_named = named.gather(1, owner[of_image].remainder(MOST_THINGS + 1))  # 1 for each patch that a named thing covers
    cosine = torch.einsum("tnd,td->tn", joint[of_image], embed([text for _, text, _ in texts]))
    phrase_loss = -(on_named / on_named.sum(1, keepdim=True) * F.log_softmax(15 * cosine, dim=1)).sum(1).mean()
    accuracy = {
        "hit": on_named.gather(1, cosine.argmax(1, keepdim=True)).mean().item(),
        "caption": (logits.argmax(1) == targets).float().mean().item(),
    }
    return 0.5 * caption_loss + phrase_loss, accuracy


def train_vision(clip: CLIPModel, pool: ScenePool, steps: int, batch: int, folder: Path, seed: int = 0) -> None:
    """Trains `clip` in place: on read-outs and attention alone for the first quarter, then also on texts."""
    rng, tokenizer = random.Random(seed), clip_tokenizer()
    torch.manual_seed(seed)
    initialise_positions(clip)
    both = nn.ModuleDict({"clip": clip, "heads": PatchHeads(clip.visual_projection.in_features)})
    optimiser = Optimiser([both], 4e-3, 2e-3)
    state = read_checkpoint(folder / "vision.pt", both, optimiser, rng)
    every = patch_labels(pool.scenes)
    block = clip.vision_model.encoder.layers[-2]  # the one whose output the language model reads
    bar = tqdm(range(state["step"], steps), desc="vision", initial=state["step"], total=steps, mininterval=5)
    shown: dict[str, float] = {}
    for step in bar:
        rows = sorted(rng.sample(range(len(pool.scenes)), batch))
        labels = every.select(rows)
        output = clip.vision_model(pixel_values(pool.pixels[rows]), output_hidden_states=True)
        loss, accuracy = both["heads"](output.hidden_states[-2][:, 1:], labels)
        looked, attention = attention_loss(cls_attention(block, output.hidden_states[-3]), labels.owner)
        loss, accuracy = loss + 0.5 * looked, accuracy | attention
        if step >= steps // 4:
            scenes = [pool.scenes[i] for i in rows]
            text_loss, text_accuracy = text_losses(clip, tokenizer, rng, scenes, labels.owner, output)
            loss, accuracy = loss + text_loss, accuracy | text_accuracy
        optimiser.step(loss, step, steps)
        shown = {name: 0.9 * shown.get(name, value) + 0.1 * value for name, value in accuracy.items()}
        if step % 20 == 19:
            bar.set_postfix_str(f"loss {loss.item():.2f} " + " ".join(f"{k} {v:.2f}" for k, v in shown.items()))
        if checkpoint_due(step, steps):
            write_checkpoint(folder / "vision.pt", step + 1, both, optimiser, rng)


def train_texts(clip: CLIPModel, pool: ScenePool, steps: int, batch: int, folder: Path, seed: int = 0) -> None:
    """Trains the text tower and both projections on texts alone, after `narrow_joint_space`. The tower is frozen."""
    rng, tokenizer = random.Random(seed), clip_tokenizer()
    torch.manual_seed(seed)
    optimiser = Optimiser([clip.text_model, clip.text_projection, clip.visual_projection], 2e-3, 1e-3)
    state = read_checkpoint(folder / "text.pt", clip, optimiser, rng)
    labels = patch_labels(pool.scenes)
    bar = tqdm(range(state["step"], steps), desc="text", initial=state["step"], total=steps, mininterval=5)
    for step in bar:
        rows = sorted(rng.sample(range(len(pool.scenes)), batch))
        with torch.no_grad():
            output = clip.vision_model(pixel_values(pool.pixels[rows]), output_hidden_states=True)
        scenes, owner = [pool.scenes[i] for i in rows], labels.owner[rows]
        loss, accuracy = text_losses(clip, tokenizer, rng, scenes, owner, output)
        optimiser.step(loss, step, steps)
        if step % 20 == 19:
            bar.set_postfix_str(f"loss {loss.item():.2f} " + " ".join(f"{k} {v:.2f}" for k, v in accuracy.items()))
        if checkpoint_due(step, steps):
            write_checkpoint(folder / "text.pt", step + 1, clip, optimiser, rng)
