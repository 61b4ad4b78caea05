"""Trains the CLIP pair: patches that know colour, shape, digit and place, and a text tower that finds them."""

from __future__ import annotations

import random
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import tqdm
from transformers import CLIPModel

from fsr_core.tiny.model import GRID, clip_tokenizer, image_processor
from fsr_core.tiny.pool import Pool
from fsr_core.tiny.questions import ask
from fsr_core.tiny.scenes import COLOURS, SHAPES, Scene, patch_owner

IGNORE = -100
NAMES = {"colour": list(COLOURS), "shape": list(SHAPES)}


@dataclass(frozen=True)
class PatchLabels:
    """Integer labels, each [n, 144]: colour and shape with 0 = background, digit with 0 = none, cell 0..8."""

    colour: Tensor
    shape: Tensor
    digit: Tensor
    cell: Tensor
    owner: Tensor


def patch_labels(scenes: list[Scene]) -> PatchLabels:
    rows = np.repeat(np.arange(GRID) // 4, GRID).reshape(GRID, GRID)
    cell = torch.from_numpy((rows * 3 + rows.T).reshape(-1))
    owner = torch.from_numpy(np.stack([patch_owner(scene).reshape(-1) for scene in scenes]))

    def lookup(values: list[list[int]]) -> Tensor:
        table = torch.zeros(len(values), 7, dtype=torch.long)  # six things at most, then the background
        for i, row in enumerate(values):
            table[i, : len(row)] = torch.tensor(row)
        return table.gather(1, owner.remainder(7))

    return PatchLabels(
        lookup([[NAMES["colour"].index(t.colour) + 1 for t in s.things] for s in scenes]),
        lookup([[NAMES["shape"].index(t.shape) + 1 for t in s.things] for s in scenes]),
        lookup([[0 if t.digit is None else t.digit + 1 for t in s.things] for s in scenes]),
        cell.expand(len(scenes), -1),
        owner,
    )


class PatchHeads(nn.Module):
    """Linear read-outs of a patch feature; they guide training and are thrown away after it."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.heads = nn.ModuleDict({name: nn.Linear(width, size) for name, size in self.sizes().items()})

    @staticmethod
    def sizes() -> dict[str, int]:
        return {"colour": len(COLOURS) + 1, "shape": len(SHAPES) + 1, "digit": 11, "cell": 9}

    def forward(self, patches: Tensor, labels: PatchLabels) -> tuple[Tensor, dict[str, float]]:
        """Sum of cross-entropies and the accuracy of each read-out on patches that lie on a thing."""
        loss, accuracy = patches.new_zeros(()), {}
        on_thing = labels.owner >= 0
        for name, head in self.heads.items():
            target, logits = getattr(labels, name), head(patches)
            if name in ("digit", "cell"):
                target = torch.where(on_thing, target, IGNORE)
            loss = loss + F.cross_entropy(logits.flatten(0, 1), target.flatten(), ignore_index=IGNORE)
            accuracy[name] = (logits.argmax(-1) == target)[on_thing].float().mean().item()
        return loss, accuracy


def pixel_values(pixels: np.ndarray) -> Tensor:
    """uint8 [n, 144, 144, 3] -> float32 [n, 3, 144, 144], normalised as the checkpoint's processor does."""
    processor = image_processor()
    mean, std = torch.tensor(processor.image_mean), torch.tensor(processor.image_std)
    scaled = torch.from_numpy(pixels).float() / 255
    return ((scaled - mean) / std).permute(0, 3, 1, 2).contiguous()


def _texts(scene: Scene, rng: random.Random, count: int) -> list[tuple[str, tuple[int, ...]]]:
    """Phrases and whole questions about a scene, each with the things it names."""
    texts: list[tuple[str, tuple[int, ...]]] = []
    while len(texts) < count:
        if rng.random() < 0.6:
            question = ask(scene, rng)
            texts.append((question.text, question.things))
        else:
            thing = rng.choice(scene.things)
            key = rng.choice(["name", "colour", "shape"])
            value = getattr(thing, key)
            hits = tuple(i for i, other in enumerate(scene.things) if getattr(other, key) == value)
            texts.append((f"a {value}", hits))
    return texts


def _caption(scene: Scene) -> str:
    return ", ".join(f"a {t.name} {t.place}" for t in scene.things)


def train_vision(
    clip: CLIPModel, pool: Pool, steps: int, batch: int, folder: Path, seconds: float, seed: int = 0
) -> None:
    """Trains `clip` in place; stops after `steps` or `seconds`, whichever is first. Writes `folder/clip.pt`."""
    rng, words = random.Random(seed), clip_tokenizer()
    config: Any = clip.config.vision_config
    heads = PatchHeads(config.hidden_size)
    params = [*clip.parameters(), *heads.parameters()]
    optimiser = torch.optim.AdamW(params, lr=1e-3, weight_decay=0.02, betas=(0.9, 0.98))
    begin, bar = time.monotonic(), tqdm(range(steps), desc="vision")
    for step in bar:
        done = max(step / steps, (time.monotonic() - begin) / seconds)
        if done >= 1:
            break
        for group in optimiser.param_groups:
            group["lr"] = 1e-3 * min(1.0, (step + 1) / 100) * max(0.03, min(1.0, 1.5 * (1 - done)))
        rows = sorted(rng.sample(range(len(pool.scenes)), batch))
        scenes = [pool.scenes[i] for i in rows]
        labels = patch_labels(scenes)
        texts = [(i, *text) for i, scene in enumerate(scenes) for text in _texts(scene, rng, 4)]
        # Captions are long and phrases short: padded apart, they cost half as much.
        asked_texts = [text for _, text, _ in texts]
        said, told = (
            F.normalize(clip.text_projection(clip.text_model(**tokens).pooler_output), dim=-1)
            for tokens in (
                words(some, padding=True, truncation=True, max_length=77, return_tensors="pt")
                for some in (asked_texts, [_caption(scene) for scene in scenes])
            )
        )
        out = clip.vision_model(pixel_values(pool.pixels[rows]), output_hidden_states=True)
        patches = out.hidden_states[-2][:, 1:]
        dense, accuracy = heads(patches, labels)
        # Whole picture against whole caption.
        seen = F.normalize(clip.visual_projection(out.pooler_output), dim=-1)
        scale = clip.logit_scale.exp().clamp(max=50)
        logits = scale * seen @ told.T
        targets = torch.arange(batch)
        contrast = (F.cross_entropy(logits, targets) + F.cross_entropy(logits.T, targets)) / 2
        # Patches against phrases, along exactly the path by which relevance is read later.
        joint = F.normalize(clip.visual_projection(clip.vision_model.post_layernorm(patches)), dim=-1)
        of_image = torch.tensor([i for i, _, _ in texts])
        named = torch.zeros(len(texts), 7)
        for row, (_, _, things) in enumerate(texts):
            named[row, list(things)] = 1
        wanted = named.gather(1, labels.owner[of_image].remainder(7))
        asked = wanted.sum(1) > 0
        cosine = torch.einsum("tnd,td->tn", joint[of_image], said)[asked]
        share = wanted[asked] / wanted[asked].sum(1, keepdim=True)
        phrase = -(share * F.log_softmax(15 * cosine, dim=1)).sum(1).mean()
        hit = wanted[asked].gather(1, cosine.argmax(1, keepdim=True)).mean().item()
        loss = dense + 0.5 * contrast + phrase
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(params, 1.0)
        optimiser.step()
        if step % 20 == 0:
            shown = {**accuracy, "hit": hit, "caption": (logits.argmax(1) == targets).float().mean().item()}
            bar.set_postfix_str(f"loss {loss.item():.2f} " + " ".join(f"{k} {v:.2f}" for k, v in shown.items()))
        if step % 100 == 99:
            torch.save(clip.state_dict(), folder / "clip.part.pt")
            (folder / "clip.part.pt").rename(folder / "clip.pt")
    torch.save(clip.state_dict(), folder / "clip.pt")
