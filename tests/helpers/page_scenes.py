"""The drawn scenes of the gateway's page: `python tests/helpers/page_scenes.py` draws them into its folder again.

They lie there as files because the gateway has neither Pillow nor NumPy. Lossless WebP takes half of what PNG takes.
"""

from __future__ import annotations

import json
import random
from pathlib import Path

from fsr_core.tiny.questions import KINDS
from fsr_core.tiny.scenes import Scene, Thing, draw, make_scene

FOLDER = Path(__file__).parents[2] / "services/fsr/gateway/http/page/scenes"
SEEDS = (1_130_582, 1_160_514, 1_186_219)
_KINDS = ("colour", "where", "digit", "letter", "count", "relation")


def entry(number: int, scene: Scene) -> dict[str, object]:
    """What the page knows of a scene: its file, its name, what is in it, and questions that suit it."""
    rng = random.Random(f"question-{scene.seed}")  # the questions that `fsr scene` prints
    questions = [question for kind in KINDS.values() if (question := kind(scene, rng)) is not None]
    return {
        "file": f"{scene.seed}.webp",
        "name": f"Scene {number}",
        "description": "Drawn scene: " + ", ".join(map(_thing, scene.things)),
        "questions": [question.text for question in questions if question.kind in _KINDS],
    }


def _thing(thing: Thing) -> str:
    mark = "" if thing.mark is None else f" marked {thing.mark}"
    return f"{thing.name}{mark} {thing.place}"


def entries() -> list[dict[str, object]]:
    """The content of scenes.json."""
    return [entry(number, make_scene(seed)) for number, seed in enumerate(SEEDS, 1)]


def main() -> None:
    FOLDER.mkdir(exist_ok=True)
    for seed in SEEDS:
        draw(make_scene(seed)).save(FOLDER / f"{seed}.webp", lossless=True, quality=100, method=6)
    (FOLDER / "scenes.json").write_text(json.dumps(entries(), indent=2) + "\n")


if __name__ == "__main__":
    main()
