"""One tiny checkpoint a family, written once, with everything that reads it."""

import sys
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

sys.path.insert(0, str(Path(__file__).parent))
import checkpoints

from fsr_core.backbones import load_decoder, load_encoder


@dataclass
class Bench:
    """A family's checkpoint, its two halves, the library's own model, and its processor."""

    name: str
    folder: Path
    processor: Any
    options: dict[str, Any] = field(default_factory=dict)

    @property
    def clip(self):
        return "none" if self.name.startswith("llava") else None

    @cached_property
    def encoder(self):
        return load_encoder(str(self.folder), clip=self.clip)

    @cached_property
    def decoder(self):
        return load_decoder(str(self.folder))

    @cached_property
    def whole(self):
        kind = getattr(transformers, checkpoints.CLASSES[self.name])
        return kind.from_pretrained(self.folder, dtype=torch.float32).eval()


@pytest.fixture(scope="session")
def bench(tmp_path_factory):
    made: dict[str, Bench] = {}

    def get(name):
        if name not in made:
            torch.manual_seed(7)
            folder = tmp_path_factory.mktemp(name)
            made[name] = Bench(name, folder, checkpoints.FAMILIES[name](folder))
        return made[name]

    return get
