"""Scenes that are drawn once and stored as pixels, so that training need not draw at every step."""

from __future__ import annotations

from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import tqdm

from fsr_core.tiny.model import IMAGE_SIDE
from fsr_core.tiny.scenes import GENERATOR_VERSION, SEEDS, Scene, draw, make_scene


@dataclass(frozen=True)
class ScenePool:
    """Scenes and their pictures: `pixels[i]` of the uint8 array [n, 144, 144, 3] shows `scenes[i]`."""

    scenes: list[Scene]
    pixels: np.ndarray


def _pixels(seed: int) -> np.ndarray:
    return np.asarray(draw(make_scene(seed)).resize((IMAGE_SIDE, IMAGE_SIDE), Image.Resampling.BICUBIC))


def load_pool(folder: Path, split: str, count: int) -> ScenePool:
    """The first `count` scenes of a split, read from `folder`. If they are not there, two processes draw them first."""
    start = SEEDS[split][0]
    seeds = range(start, start + count)
    path = folder / f"{split}-v{GENERATOR_VERSION}-{count}.npy"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        with ProcessPoolExecutor(2) as workers:
            pictures = list(tqdm(workers.map(_pixels, seeds, chunksize=64), total=count, desc=f"draw {split}"))
        np.save(path.with_suffix(".part.npy"), np.stack(pictures))
        path.with_suffix(".part.npy").rename(path)
    return ScenePool([make_scene(seed) for seed in seeds], np.load(path, mmap_mode="r"))
