"""`python -m fsr_core.tiny` draws a scene and prints questions about it, with their answers."""

from __future__ import annotations

import argparse
import json
import random
from pathlib import Path

from fsr_core.tiny.questions import KINDS
from fsr_core.tiny.scenes import SEEDS, draw, make_scene


def main(arguments: list[str] | None = None) -> None:
    """Writes the picture of a scene and prints questions about it, with their answers."""
    parser = argparse.ArgumentParser(
        prog="python -m fsr_core.tiny",
        description="Draws a scene and prints one question of each kind that it can answer, with the answer.",
        epilog="example: python -m fsr_core.tiny -o scene.png --seed 1100003",
    )
    parser.add_argument("-o", "--output", type=Path, required=True, help="picture file to write, such as scene.png")
    parser.add_argument("--seed", type=int, default=SEEDS["test"][0], help="which scene; below 1000000: training data")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    options = parser.parse_args(arguments)
    if options.seed < 0:
        parser.error(f"--seed: {options.seed} is negative; give 0 or more")
    scene = make_scene(options.seed)
    try:
        draw(scene).save(options.output)
    except (OSError, ValueError) as error:
        parser.error(f"--output: cannot write {options.output} ({error}); give a writable path ending in .png or .jpg")
    rng = random.Random(f"question-{options.seed}")
    questions = [question for make in KINDS.values() if (question := make(scene, rng)) is not None]
    if options.json:
        rows = [{"kind": q.kind, "question": q.text, "answer": q.answer} for q in questions]
        print(json.dumps({"path": str(options.output), "seed": options.seed, "questions": rows}))
        return
    print(f"{options.output}: scene {options.seed}")
    for question in questions:
        print(f"  {question.text}  {question.answer}")


if __name__ == "__main__":
    main()
