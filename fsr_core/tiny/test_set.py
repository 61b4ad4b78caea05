"""The frozen test set: 2,048 questions about 2,048 scenes that training and tuning never saw.

The set is not stored but generated from `GENERATOR_VERSION` and the seeds of the test split. `test_set.json` is the
record of what they must give: digests and counts. `verify` finds a change to the generator that changes the test set.
Such a change needs a new version, new weights and new figures.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
from PIL import Image

from fsr_core.tiny.questions import KINDS, Question, frozen_questions
from fsr_core.tiny.scenes import CANVAS, GENERATOR_VERSION, Scene, draw

SIZE = 2048
RECORD = Path(__file__).parent / "test_set.json"


def frozen_test_set(limit: int = SIZE) -> list[tuple[Scene, Question]]:
    """The first `limit` questions of the frozen set, each with its scene; the kinds take turns.

    Raises:
        ValueError: `limit` is not within 1..2048.
    """
    if not 1 <= limit <= SIZE:
        raise ValueError(f"limit = {limit} is outside the test set; give 1 to {SIZE}")
    return frozen_questions("test", limit)


def digest(items: Iterable[tuple[Scene, Question]]) -> str:
    """SHA-256 of every question and of every scene's description, its lengths rounded to a tenth of a pixel."""
    state = hashlib.sha256()
    for scene, question in items:
        things = [
            {**asdict(thing), "centre": [round(x, 1) for x in thing.centre], "radius": round(thing.radius, 1)}
            for thing in scene.things
        ]
        line = {"seed": scene.seed, "things": things, "question": asdict(question)}
        state.update(json.dumps(line, sort_keys=True).encode() + b"\n")
    return state.hexdigest()


def thumbnails(items: Sequence[tuple[Scene, Question]], draw: Callable[[Scene], Image.Image] = draw) -> str:
    """How the first four pictures look: mean and deviation of each colour on a 4 x 4 grid, uint8 as base64."""
    summaries = []
    for scene, _ in items[:4]:
        cells = np.asarray(draw(scene), dtype=np.float32).reshape(4, CANVAS // 4, 4, CANVAS // 4, 3)
        summaries += [cells.mean((1, 3)), cells.std((1, 3))]
    return base64.b64encode(np.stack(summaries).round().astype(np.uint8).tobytes()).decode()


def record(items: list[tuple[Scene, Question]], draw: Callable[[Scene], Image.Image] = draw) -> dict[str, object]:
    """The record of a set: the generator's version, how often each kind is asked, thumbnails and two digests.

    The second digest covers only the first 64 questions, so a quick check need not generate the whole set.
    """
    kinds = {kind: sum(question.kind == kind for _, question in items) for kind in KINDS}
    return {
        "generator_version": GENERATOR_VERSION,
        "questions": len(items),
        "kinds": kinds,
        "sha256": digest(items),
        "sha256_first_64": digest(items[:64]),
        "thumbnails": thumbnails(items, draw),
    }


def verify(items: list[tuple[Scene, Question]]) -> None:
    """Checks the whole set against the stored record.

    Raises:
        ValueError: this is not the set on which the published figures were measured.
    """
    compare(record(items), json.loads(RECORD.read_text()), "test set", RECORD.name)


def _matches(key: str, stored: object, actual: object) -> bool:
    if key != "thumbnails":
        return stored == actual
    # Another release of the drawing library may give a pixel on an edge a slightly different shade.
    one, other = (np.frombuffer(base64.b64decode(str(text)), np.uint8).astype(int) for text in (stored, actual))
    return one.shape == other.shape and int(abs(one - other).max()) <= 2


def compare(actual: dict[str, object], stored: dict[str, object], set_name: str, record_name: str) -> None:
    """Compares a set's record with the stored one.

    Raises:
        ValueError: they differ; the message names the keys.
    """
    keys = stored.keys() | actual.keys()
    changed = sorted(key for key in keys if not _matches(key, stored.get(key), actual.get(key)))
    if changed:
        raise ValueError(
            f"the frozen {set_name} has changed ({', '.join(changed)} differ from {record_name}); undo the change to"
            " the generator, or raise GENERATOR_VERSION, retrain, and write a new record"
        )
