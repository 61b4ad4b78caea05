"""Scenes drawn once and kept as pixels, so that training does not draw at every step."""

from __future__ import annotations

from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import tqdm

from fsr_core.tiny.scenes import GENERATOR_VERSION, SEEDS, Scene, draw, make_scene

SIDE = 144  # pixels, the vision tower's resolution


@dataclass(frozen=True)
class Pool:
    """`pixels` is uint8 [n, 144, 144, 3]; `scenes[i]` is what `pixels[i]` shows."""

    scenes: list[Scene]
    pixels: np.ndarray


def _pixels(seed: int) -> np.ndarray:
    return np.asarray(draw(make_scene(seed)).resize((SIDE, SIDE), Image.Resampling.BICUBIC))


def load_pool(folder: Path, split: str, count: int) -> Pool:
    """The first `count` scenes of a split, drawn on two processes with a progress bar, or read back if drawn before."""
    start = SEEDS[split][0]
    seeds = range(start, start + count)
    path = folder / f"{split}-v{GENERATOR_VERSION}-{count}.npy"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        with ProcessPoolExecutor(2) as workers:
            drawn = list(tqdm(workers.map(_pixels, seeds, chunksize=64), total=count, desc=f"draw {split}"))
        np.save(path.with_suffix(".part.npy"), np.stack(drawn))
        path.with_suffix(".part.npy").rename(path)
    return Pool([make_scene(seed) for seed in seeds], np.load(path, mmap_mode="r"))
